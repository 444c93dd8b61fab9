"""Correlated noise: that of a step takes back a part of the noise of the steps before it.

Whoever sees the sums x with the noise C^-1 z sees C x + z and nothing more. In C x one use of a unit is one column
long, at most 1, and uses that are as many steps apart as C has bands lie in rows of their own: each is one Gaussian
mechanism with the noise multiplier of z. ``docs/guarantee.md`` has the proof.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from torch import Tensor

from ..errors import PrivacyError
from .bands import factor, square
from .streams import NoiseStream


class BandedStream(NoiseStream):
    """Gaussians that are correlated from step to step: the rows of C^-1 z, one a step.

    Formal guarantee: the numbers of consecutive steps, multiplied by C, are independent standard Gaussians, and every
    column of C has norm at most 1: a whole one, and one that the end of the run or a new beginning cuts short. The
    correlation begins anew where a step was left out, and after :meth:`restart`; C is then block diagonal. No step has
    two noises. The last ``bands - 1`` noises are kept in memory, nowhere else, since whoever has them can take them out
    of what was released.

    Args:
        bands: b, at least 2; a use of a unit must be b steps from its next.
        seed, purpose: As of :class:`NoiseStream`.

    Raises:
        PrivacyError: A column is longer than 1.
    """

    def __init__(self, bands: int, seed: int | None = None, purpose: str = "") -> None:
        super().__init__(seed, purpose)
        self.factor = _measured(factor(bands))
        self._past: deque[Tensor] = deque(maxlen=bands - 1)  # the last noise first
        self._step = -1  # of the last noise
        self._asked: int | None = None

    def at(self, step: int) -> NoiseStream:
        """Return this stream, for the noise of a step.

        Raises:
            PrivacyError: The noise of this step, or of a later one, was drawn before.
        """
        if step <= self._step:
            raise PrivacyError(
                f"the noise of step {step + 1} was drawn before, and a unit may not be used twice within "
                f"{len(self.factor)} steps: resume the run"
            )
        if step != self._step + 1:
            self.restart()
        self._asked = step
        return self

    def restart(self) -> None:
        """Begin the correlation anew: the next noise takes back nothing of those before it."""
        self.drop()  # it would take them back
        self._past.clear()

    def begin(self, count: int, variance: int | None = None, threads: int = 1) -> None:
        """Begin to make the numbers of the step that :meth:`at` named; errors as of :meth:`gaussian`."""
        self._refuse(count)
        super().begin(count, variance, threads)

    def gaussian(self, count: int) -> Tensor:
        """Return the numbers of the step that :meth:`at` named, once: shape (count,), on the CPU.

        Raises:
            PrivacyError: No step was named, or the step before had another count and nothing began anew.
        """
        asked = self._refuse(count)
        numbers = super().gaussian(count)
        self._step, self._asked = asked, None
        self._past.appendleft(numbers.clone())  # whoever gets the numbers may write into them
        return numbers

    def _refuse(self, count: int) -> int:
        """Return the step that was named."""
        if self._asked is None:
            raise PrivacyError("correlated noise is that of a step, once: ask for it by stream.at(step)")
        if self._past and len(self._past[0]) != count:
            raise PrivacyError(f"{count} numbers of noise after {len(self._past[0])}: begin anew with stream.restart()")
        return self._asked

    def _made(self, count: int, variance: int | None, threads: int, go_on: Callable[[], None]) -> Tensor:
        assert self._asked is not None
        own = NoiseStream.at(self, self._asked)
        numbers = NoiseStream._made(own, count, variance, threads, go_on)
        for weight, past in zip(self.factor[1:], self._past, strict=False):
            numbers.sub_(past, alpha=weight)
        return numbers.div_(self.factor[0])


def _measured(column: tuple[float, ...]) -> tuple[float, ...]:
    """The column, if it is not longer than 1; every column of C is this one or, where something ends, its beginning."""
    if square(column) > 1:
        raise PrivacyError(
            f"the factor of {len(column)} bands has a column longer than 1: its noise would be too small"
        )
    return column
