"""A learning rate to begin with, from public numbers alone: shapes, optimizer, plan, kind of start.

With most private budgets the noise in a step outweighs the gradient, and what limits the learning rate is how far the
noise alone carries the weights over the run. The rule lets it carry each of them by a fixed share of its usual size:

* An adaptive optimizer moves a weight by about the rate a step whatever the noise, so after T steps of independent
  noise by rate * sqrt(T).
* Plain gradient descent moves it by rate * sigma * C / B a step, sigma the noise multiplier, C the clip norm and B the
  expected batch size.
* Correlated noise (``bands`` above 1) partly takes back what it did in the steps before, so it carries a weight less
  far than independent noise of the same size, and the rate is larger in proportion.

The usual size of a weight is that of PyTorch's initialisation, (3 * fan-in) ** -0.5, and 1 for scales and shifts; the
geometric mean over all trained numbers stands for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..privacy.bands import accumulated, size_of_a_step
from ..privacy.plan import PrivacyPlan

SHARE = {"frozen_bn": 0.05, "group": 0.1}  # of its size that noise may move a trained weight
SCRATCH = 10.0  # times as much where weights are random, and worth nothing yet
LACKING = 10.0  # where the start lacks classes of the data: at a smaller rate they are never learnt (docs/results.md)
NEW_ONLY = 70.0  # where nothing trains but the layers that the start did not fill
_LEAST, _MOST = 1e-6, 1.0
_BY_SUM = ("sgd", "asgd")  # whose step grows with the gradient
_OWN_UNITS = {"adadelta": 1.0}  # torch's own rate: its steps have the units of the weights


def default_rate(
    optimizer: str,
    plan: PrivacyPlan,
    shapes: Iterable[tuple[int, ...]],
    *,
    norm: str = "group",
    times: float = 1.0,
    momentum: float = 0.0,
) -> float:
    """Return the learning rate that a run begins with unless it is given one, to two digits.

    Args:
        optimizer: Its name, as in the settings.
        plan: Steps, noise, clip norm and expected batch size.
        shapes: Of the trained parameters.
        norm: Of the detector; with frozen batch normalisation nothing normalises what noise does to a layer.
        times: How much further than its share noise may move a weight: 1, :data:`SCRATCH`, :data:`LACKING` or
            :data:`NEW_ONLY`, by the start.
        momentum: Of plain gradient descent.
    """
    if optimizer in _OWN_UNITS:
        return _OWN_UNITS[optimizer]
    numbers, logs = 0, 0.0
    for shape in shapes:
        count = math.prod(shape)
        numbers += count
        if len(shape) > 1:
            logs -= 0.5 * math.log(3.0 * math.prod(shape[1:])) * count
    size = math.exp(logs / max(1, numbers))
    steps = 1.0 + math.log(plan.steps) if optimizer == "adagrad" else float(plan.steps)  # whose steps shrink as 1/t
    moved = SHARE[norm] * times * size / math.sqrt(steps)
    moved *= accumulated(plan.steps, 1) / accumulated(plan.steps, plan.bands)
    if optimizer in _BY_SUM:
        moved *= (
            (1.0 - momentum)
            * plan.expected_batch_size
            / (plan.noise_multiplier * plan.clipping.longest(plan.clip_norm))
        )
        return float(f"{moved:.1e}")
    moved *= size_of_a_step(plan.steps, plan.bands)  # which an adaptive optimizer divides by
    return float(f"{min(max(moved, _LEAST), _MOST):.1e}")
