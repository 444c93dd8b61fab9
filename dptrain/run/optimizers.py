"""Optimizers by name; they see noised gradients and public numbers only, so that any of them keeps the guarantee."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..settings.schema import OPTIMIZERS, OptimizerConfig


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimizer; settings that its kind does not have are left out.

    Raises:
        ConfigError: The name is unknown, or torch refuses a value.
    """
    kinds: dict[str, Any] = {name.lower(): kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    if config.name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name={config.name!r} is not one of {', '.join(OPTIMIZERS)}")
    kind = kinds[config.name]
    known = inspect.signature(kind).parameters
    wanted = {
        "lr": config.lr,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "betas": tuple(config.betas),
        "foreach": True,
    }
    try:
        return kind(list(parameters), **{key: value for key, value in wanted.items() if key in known})
    except ValueError as error:
        raise ConfigError(f"optimizer {config.name} refuses its settings: {error}") from error
