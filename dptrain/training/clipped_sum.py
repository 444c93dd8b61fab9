"""The clipped sum of a batch by a plan: with units of several examples, and in whole numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..gradients import LossFunction, clipped_gradient_sum
from ..gradients.batches import UnitBatch, batch_size
from ..gradients.checks import trainable_parameters
from ..privacy.exact import to_grid
from ..privacy.plan import Mechanism, PrivacyPlan


@dataclass(frozen=True)
class ClippedSum:
    """Sums the gradients of a module over the units of a batch, each clipped by the plan's rule.

    Formal guarantee: the rule is made once, from the plan and the module's trainable parameters. The noise of
    ``mechanism`` is scaled to the sensitivity of that same rule.

    Every example of a batch is a unit, unless the batch is a ``dptrain.UnitBatch``: then the gradients of a unit's
    examples are averaged first.

    Attributes:
        plan: Has the clip rule and the noise.
        module, loss_function: As for :func:`~dptrain.clipped_gradient_sum`.
        engine: ``fused``, ``opacus`` or ``microbatch``.
        examples_at_once: Number of examples in every forward pass, see :func:`~dptrain.clipped_gradient_sum`.
        among: Names of all parameters that train in the run, where these steps train some of them; None: they are all.
        mechanism: The rule by which units are clipped, and the noise that fits it.

    Raises:
        ConfigError: The plan's clip rule does not fit the parameters.
    """

    plan: PrivacyPlan
    module: nn.Module
    loss_function: LossFunction
    engine: str = "fused"
    examples_at_once: int | None = None
    among: tuple[str, ...] | None = None
    mechanism: Mechanism = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mechanism", self.plan.mechanism(trainable_parameters(self.module), self.among))

    def over(self, batch: Any) -> dict[str, Tensor]:
        """Return the sum over the units of ``batch``."""
        return self._sum(batch, self.examples_at_once)

    def on_grid(self, unit: Any) -> dict[str, Tensor]:
        """Return the clipped gradient of one unit, a batch of one, in whole numbers: see :mod:`dptrain.privacy.exact`.

        Sums of them change by at most ``exact.SENSITIVITY`` with one unit more or less, exactly.
        """
        if batch_size(unit) > 1:
            raise ConfigError(f"a batch of {batch_size(unit)} units is not exact: give them one at a time")
        examples = len(unit.units) if isinstance(unit, UnitBatch) else 1
        # Alone in its pass, whose shape is then a function of the unit: nothing to fill up.
        alone = self.examples_at_once is None or examples <= self.examples_at_once
        return to_grid(self._sum(unit, None if alone else self.examples_at_once), self.mechanism.rule.sensitivity())

    def _sum(self, batch: Any, at_once: int | None) -> dict[str, Tensor]:
        examples, units = (batch.examples, batch.units) if isinstance(batch, UnitBatch) else (batch, None)
        rule = self.mechanism.rule
        return clipped_gradient_sum(self.module, self.loss_function, examples, rule, self.engine, units, at_once)
