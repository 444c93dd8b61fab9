"""What a run is likely to be worth, said before its first step, from public numbers alone."""

from __future__ import annotations

import math

from ..detection import DetectionModel
from ..gradients import trainable_parameters
from ..privacy.plan import PrivacyPlan

_SMALL = 2.0  # runs with a signal up to this were tried, from starts that lacked the classes


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
    if signal > _SMALL:
        return None
    return (
        f"the start lacks classes of the data, and the signal of this run is {signal:.2g} (docs/training.md has what "
        "such runs came to: between a quarter and nearly all of the mAP50 without privacy, by the set of photos). More "
        "images help most, then a start that knows the classes"
    )
