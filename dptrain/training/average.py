"""The moving average of the iterates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import ConfigError


class MovingAverage:
    """Exponential moving average of the iterates, corrected for its start (De et al. 2022, section 3.2).

    After step t the decay is ``min(decay, (1 + t) / (10 + t))``. It is made of noised iterates and costs no privacy.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"ema.decay={decay} is not in [0, 1)")
        self.decay = decay
        self._live = parameters
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the iterate after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self._live.values()], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the iterate inside the block."""
        kept = {name: p.detach().clone() for name, p in self._live.items()}
        try:
            copy_into(self._live, self.values)
            yield
        finally:
            copy_into(self._live, kept)


@torch.no_grad()
def copy_into(target: Mapping[str, nn.Parameter], source: Mapping[str, Tensor]) -> None:
    """Give every parameter of ``target`` the values that ``source`` has for it."""
    for name, parameter in target.items():
        parameter.copy_(source[name])
