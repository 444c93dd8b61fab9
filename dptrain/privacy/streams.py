"""Random numbers from a cryptographic generator, for noise and sampling."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

_BLOCK = 2**16  # numbers made at a time: their intermediate results stay in the cache


class NoiseStream:
    """Uniform and Gaussian numbers from AES-256 in counter mode, keyed by the operating system.

    Formal guarantee: without a seed, the key is 256 bits from the operating system's generator, is kept nowhere else,
    and no part of the keystream is used twice, not even by a forked process; two streams are independent. With a
    ``seed`` the stream repeats itself, which is for tests only and voids the guarantee of anything made with it
    (``secure`` is then False). A ``key`` of 256 such bits is given where several processes must make the same numbers:
    they are as good as that key is secret, and of one use.

    Gaussians are made by the Box-Muller transform from 64 random bits each, in double precision. That is a continuous
    Gaussian up to rounding; what protects from attacks on the rounding (Mironov 2012) is :mod:`dptrain.privacy.exact`.
    """

    factor: tuple[float, ...] = (1.0,)  # by which the noise of steps is correlated: by itself alone

    def __init__(self, seed: int | None = None, purpose: str = "", key: bytes | None = None) -> None:
        self.secure = seed is None
        self._seed, self._purpose = seed, purpose
        self._keystream = _keystream((key or os.urandom(32)) if seed is None else _test_key(seed, purpose))
        self._process = os.getpid()

    def at(self, step: int) -> NoiseStream:
        """Return the stream for one step: this one, going on; or, of a seeded stream, a repeatable one of its own.

        So a seeded test run that is cut and resumed equals an uncut one, while a secure stream never repeats.
        """
        return self if self.secure else NoiseStream(self._seed, f"{self._purpose} {step}")

    def restart(self) -> None:
        """Begin anew with what correlates steps; here nothing does."""

    def words(self, count: int) -> np.ndarray:
        """Return ``count`` random words of 64 bits, shape (count,)."""
        if self.secure and self._process != os.getpid():  # forked: going on would repeat the parent's numbers
            self._keystream, self._process = _keystream(os.urandom(32)), os.getpid()
        return np.frombuffer(self._keystream.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> np.ndarray:
        """Return ``count`` numbers uniform on [0, 1), 53 bits each, shape (count,)."""
        return (self.words(count) >> np.uint64(11)) * 2.0**-53

    def integer(self) -> int:
        """Return a number uniform on [0, 2**63)."""
        return int(self.words(1)[0] >> np.uint64(1))

    def gaussian(self, count: int) -> Tensor:
        """Return ``count`` standard Gaussians in double precision, shape (count,), on the CPU."""
        numbers = torch.empty(count + count % 2, dtype=torch.float64)
        for start in range(0, len(numbers), _BLOCK):
            block = numbers[start : start + _BLOCK]
            pairs = len(block) // 2
            words = torch.from_numpy(self.words(2 * pairs).astype(np.int64))
            uniform = words.bitwise_and_(2**53 - 1).double()
            # (0, 1], so that the logarithm is finite; the angle is on [0, 2 pi).
            radius = uniform[:pairs].add_(1.0).mul_(2.0**-53).log_().mul_(-2.0).sqrt_()
            angle = uniform[pairs:].mul_(2.0 * math.pi * 2.0**-53)
            torch.cos(angle, out=block[:pairs]).mul_(radius)
            torch.sin(angle, out=block[pairs:]).mul_(radius)
        return numbers[:count]


def _keystream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _test_key(seed: int, purpose: str) -> bytes:
    import hashlib

    return hashlib.sha256(f"dptrain test stream {seed} {purpose}".encode()).digest()
