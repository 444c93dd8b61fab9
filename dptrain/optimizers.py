"""Optimizers by name; they see noised gradients and public numbers only, so that any of them keeps the guarantee."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .errors import ConfigError
from .schema import OPTIMIZERS, OptimizerConfig


class DPAdamBC(torch.optim.Optimizer):
    """Adam whose second moment is that of the gradient, not of gradient and noise (Tang et al. 2024, DP-AdamBC).

    The square of a noised gradient is larger than that of the gradient by the noise's variance s^2, in the mean. Where
    the noise is large, as it mostly is, Adam's second moments are all about s^2, and its steps are those of momentum.
    Here the variance is taken off again: x moves by lr m / sqrt(max(v - u, floor u)), with m, v and u the corrected
    moving averages of the gradient, of its square, and of s^2, each with Adam's weights. s^2 is a function of the plan
    alone (and of the clip norm, where it adapts, which is noised): (noise multiplier times sensitivity over the
    *expected* batch size)^2, the same for every entry under every clip rule. So u is s^2 itself while s^2 stays, and
    right where it moves. Weight decay is decoupled, as AdamW's.

    Args:
        floor: Least value of the corrected second moment in parts of u. The estimate v scatters around its mean by
            about u sqrt(2 / t) in the first steps t, so that below some such share nothing is told from noise. The
            paper has an absolute floor; this one needs no tuning when the noise or the batch changes.

    ``PrivateTrainer`` sets ``noise_deviation`` (s) of every parameter group before every step.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        floor: float = 0.1,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "floor": floor, "weight_decay": weight_decay, "noise_deviation": None, "steps": 0,
            "noise_variance": 0.0,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; ``closure`` is not supported.

        Raises:
            ConfigError: Nobody has said how much noise is in the gradients.
        """
        if closure is not None:
            raise ConfigError("dp_adam_bc takes no closure: it would see gradients without noise")
        for group in self.param_groups:
            if group["noise_deviation"] is None:
                raise ConfigError("dp_adam_bc does not know the noise: set noise_deviation, as PrivateTrainer does")
            self._step(group)
        return None

    def _step(self, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        group["steps"] += 1
        group["noise_variance"] += (1.0 - second) * (group["noise_deviation"] ** 2 - group["noise_variance"])
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        gradients = [p.grad for p in parameters]
        means = [self.state[p]["mean"] for p in parameters]
        squares = [self.state[p]["square"] for p in parameters]
        torch._foreach_lerp_(means, gradients, 1.0 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - second)
        seen = 1.0 - second ** group["steps"]  # the share of the averages that is not their start
        variance = group["noise_variance"] / seen
        roots = torch._foreach_div(squares, seen)
        torch._foreach_sub_(roots, variance)
        torch._foreach_clamp_min_(roots, group["floor"] * variance)
        torch._foreach_sqrt_(roots)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, means, roots, -group["lr"] / (1.0 - first ** group["steps"]))


_OWN = {"dp_adam_bc": DPAdamBC}


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimizer; settings that its kind does not have are left out.

    Raises:
        ConfigError: The name is unknown, or torch refuses a value.
    """
    kinds: dict[str, Any] = {name.lower(): kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    if config.name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name={config.name!r} is not one of {', '.join(OPTIMIZERS)}")
    kind = {**kinds, **_OWN}[config.name]
    known = inspect.signature(kind).parameters
    wanted = {
        "lr": config.lr,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "betas": tuple(config.betas),
        "floor": config.floor,
        "foreach": True,
    }
    try:
        return kind(list(parameters), **{key: value for key, value in wanted.items() if key in known})
    except ValueError as error:
        raise ConfigError(f"optimizer {config.name} refuses its settings: {error}") from error
