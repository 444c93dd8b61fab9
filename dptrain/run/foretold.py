"""What a run is likely to be worth, said before its first step, from public numbers alone."""

from __future__ import annotations

import math
from bisect import bisect_right

from ..detection import DetectionModel
from ..gradients import trainable_parameters
from ..privacy.plan import PrivacyPlan

# Of starts that lack classes of the data: the signal up to which runs came to that share of the mAP50 without privacy.
# docs/benchmarks.md has the runs. Nothing is said above the last.
_SIGNALS = (0.7, 1.1, 2.0)
_SHARES = ("less than a fifth", "about a fifth", "a quarter to a third")


def signal_of(plan: PrivacyPlan, trained: int) -> float:
    """Return how long the sum of all clipped gradients can be over a run, if all images agreed, next to its noise.

    Args:
        plan: The run's.
        trained: Number of parameters that train, each of which has noise.
    """
    return math.sqrt(2.0) * plan.signal * plan.expected_batch_size / plan.sample_rate / math.sqrt(trained)


def foretold(plan: PrivacyPlan, model: DetectionModel) -> str | None:
    """Return a line for a run that promises little, and what would help; None for one that nothing is known against."""
    if not getattr(model, "lacks_classes", False):
        return None
    signal = signal_of(plan, sum(p.numel() for p in trainable_parameters(model).values()))
    kind = bisect_right(_SIGNALS, signal)
    if kind == len(_SIGNALS):
        return None
    return (
        f"expect little: the start lacks classes of the data, and the signal is {signal:.2g} times the noise at most; "
        f"runs like this one came to {_SHARES[kind]} of the mAP50 without privacy (docs/training.md#what-to-expect). "
        "More images help most, then a start that knows the classes, then more time"
    )
