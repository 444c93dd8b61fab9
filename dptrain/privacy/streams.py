"""Random numbers from a cryptographic generator, for noise and sampling."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from ..errors import PrivacyError
from .ahead import Ahead, in_parallel
from .exact import discrete_gaussian

_BLOCK = 2**16  # numbers made at a time: their intermediate results stay in the cache
_making = threading.local()  # the stream for which a thread is making numbers ahead


class NoiseStream:
    """Uniform and Gaussian numbers from AES-256 in counter mode, keyed by the operating system.

    Formal guarantee: without a seed, the key is 256 bits from the operating system's generator, is kept nowhere else,
    and no part of the keystream is used twice, not even by a forked process; two streams are independent. With a
    ``seed`` the stream repeats itself, which is for tests only and voids the guarantee of anything made with it
    (``secure`` is then False). A ``key`` of 256 such bits is given where several processes must make the same numbers:
    they are as good as that key is secret, and of one use.

    :meth:`begin` makes the next numbers in the background. They are the numbers that would have been made without it,
    in the same order, and are taken once; what is dropped is never used. Until then nothing else can be drawn.

    Gaussians are made by the Box-Muller transform from 64 random bits each, in double precision. That is a continuous
    Gaussian up to rounding; what protects from attacks on the rounding (Mironov 2012) is :mod:`dptrain.privacy.exact`.
    """

    factor: tuple[float, ...] = (1.0,)  # by which the noise of steps is correlated: by itself alone

    def __init__(self, seed: int | None = None, purpose: str = "", key: bytes | None = None) -> None:
        self.secure = seed is None
        self._seed, self._purpose = seed, purpose
        self._keystream = _keystream((key or os.urandom(32)) if seed is None else _test_key(seed, purpose))
        self._process = os.getpid()
        self._ahead: Ahead | None = None

    def at(self, step: int) -> NoiseStream:
        """Return the stream for one step: this one, going on; or, of a seeded stream, a repeatable one of its own.

        So a seeded test run that is cut and resumed equals an uncut one, while a secure stream never repeats.
        """
        return self if self.secure else NoiseStream(self._seed, f"{self._purpose} {step}")

    def restart(self) -> None:
        """Begin anew with what correlates steps; here nothing does."""

    def begin(self, count: int, variance: int | None = None, threads: int = 1) -> None:
        """Begin to make, in the background, what :meth:`gaussian` or, with a variance, :meth:`whole` returns next.

        Args:
            count: How many numbers.
            variance: Of whole numbers, see :func:`~dptrain.privacy.exact.discrete_gaussian`; those are made by one
                thread, since how much of the keystream a number takes is known only once it is made.
            threads: How many make them.

        Raises:
            PrivacyError: Numbers that were begun before have been neither taken nor dropped.
        """
        if self._ahead is not None:
            raise PrivacyError("the noise of a step was begun, and neither used nor dropped: resume the run")

        def make(go_on: Callable[[], None]) -> Tensor:
            return self._made(count, variance, threads, go_on)

        self._ahead = Ahead((count, variance), make)

    def drop(self) -> None:
        """Give up what :meth:`begin` began, if anything: these numbers are never used."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and self._process == os.getpid():
            ahead.drop()

    def _taken(self, count: int, variance: int | None = None) -> Tensor:
        """Return the numbers that were begun, or make them now."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or self._process != os.getpid():  # a forked process has not the threads of its parent
            return self._made(count, variance, torch.get_num_threads(), lambda: None)
        return ahead.take((count, variance))

    def _made(self, count: int, variance: int | None, threads: int, go_on: Callable[[], None]) -> Tensor:
        """Make the numbers, in this thread and perhaps others: the same ones for any number of threads."""
        if variance is not None:
            with _maker(self):
                return discrete_gaussian(count, variance, self, go_on)
        numbers = torch.empty(count + count % 2, dtype=torch.float64)
        starts = iter(range(0, len(numbers), _BLOCK))
        turn = threading.Lock()

        def work() -> None:
            with _maker(self):
                while True:
                    go_on()
                    with turn:  # blocks get the keystream in their order, whoever makes them
                        start = next(starts, None)
                        if start is None:
                            return
                        block = numbers[start : start + _BLOCK]
                        words = self.words(len(block))
                    _box_muller(words, block)

        in_parallel(work, max(1, min(threads, -(-count // _BLOCK))))
        return numbers[:count]

    def words(self, count: int) -> np.ndarray:
        """Return ``count`` random words of 64 bits, shape (count,).

        Raises:
            PrivacyError: Noise of this stream is being made ahead, and its words come first.
        """
        if self.secure and self._process != os.getpid():  # forked: going on would repeat the parent's numbers
            self._keystream, self._process, self._ahead = _keystream(os.urandom(32)), os.getpid(), None
        if self._ahead is not None and getattr(_making, "stream", None) is not self:
            raise PrivacyError("noise of this stream was begun: take it or drop it before anything else is drawn")
        return np.frombuffer(self._keystream.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> np.ndarray:
        """Return ``count`` numbers uniform on [0, 1), 53 bits each, shape (count,)."""
        return (self.words(count) >> np.uint64(11)) * 2.0**-53

    def integer(self) -> int:
        """Return a number uniform on [0, 2**63)."""
        return int(self.words(1)[0] >> np.uint64(1))

    def gaussian(self, count: int) -> Tensor:
        """Return ``count`` standard Gaussians in double precision, shape (count,), on the CPU.

        Raises:
            PrivacyError: Others were begun, or these could not be made.
        """
        return self._taken(count)

    def whole(self, count: int, variance: int) -> Tensor:
        """Return what :func:`~dptrain.privacy.exact.discrete_gaussian` makes of this stream; errors as above."""
        return self._taken(count, variance)


def _box_muller(words: np.ndarray, block: Tensor) -> None:
    """Write as many standard Gaussians into ``block`` as there are words: an even number.

    No part has more entries than torch gives a thread at least, so that no call starts threads of its own.
    """
    pairs = len(block) // 2
    uniform = torch.from_numpy((words & np.uint64(2**53 - 1)).astype(np.float64))
    # (0, 1], so that the logarithm is finite; the angle is on [0, 2 pi).
    radius = uniform[:pairs].add_(1.0).mul_(2.0**-53).log_().mul_(-2.0).sqrt_()
    angle = uniform[pairs:].mul_(2.0 * math.pi * 2.0**-53)
    torch.cos(angle, out=block[:pairs]).mul_(radius)
    torch.sin(angle, out=block[pairs:]).mul_(radius)


@contextmanager
def _maker(stream: NoiseStream) -> Iterator[None]:
    """Let this thread draw from a stream of which noise is being made ahead, inside the block."""
    before = getattr(_making, "stream", None)
    _making.stream = stream
    try:
        yield
    finally:
        _making.stream = before


def _keystream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _test_key(seed: int, purpose: str) -> bytes:
    import hashlib

    return hashlib.sha256(f"dptrain test stream {seed} {purpose}".encode()).digest()
