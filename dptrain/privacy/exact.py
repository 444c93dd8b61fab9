"""Noise that no rounding weakens: clipped gradients as whole numbers, and a discrete Gaussian added to their sum.

A Gaussian in floating point takes some values and misses others, and which ones depends on what it was added to
(Mironov 2012). Whole numbers have no such gaps: one unit is a vector of whole numbers of norm at most ``SENSITIVITY``,
checked by whole-number arithmetic, sums of them are exact, and the noise has exactly the law it claims
(Canonne, Kamath and Steinke 2020).

What is accounted stays the Gaussian mechanism. Let Y be Gaussian of variance s^2 - 16, rounded at random to a whole
number X with chances proportional to exp(-(x - Y)^2 / 32). Moving Y by a whole number moves X by it, so adding X to
whole numbers is a function of having added Y, and every bound for that holds: with Poisson sampling, by RDP at any
order, by PLD. X is the discrete Gaussian of parameter s^2 but for one factor: its chances are the integral of
exp(-y^2 / 2(s^2 - 16)) exp(-(x - y)^2 / 32) / n(y), with n(y) the sum of exp(-(x - y)^2 / 32) over whole x. Were n
constant, that would be exp(-x^2 / 2 s^2) times a constant (a product of Gaussians). By Poisson summation n(y) is
sqrt(32 pi) (1 + 2 exp(-32 pi^2) cos(2 pi y) + ...), constant to one part in 1e136. The chances of a vector of d
coordinates are therefore off by a factor within 1 +- d 1e-136, and T steps add at most 2 T d 1e-136 to epsilon, and
that part of delta to delta. Hence ``variance`` adds 16. To round a Gaussian at random for a discrete one is an idea of
Peikert (2010), who bounds the statistical distance; a factor says more, so the argument is given here in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError

SENSITIVITY = 2**30  # parts that the clip norm is cut into
_SHRINK = 1.0 - 2e-5  # so that rounding to the grid does not lead out of the clip norm
_ROUNDED = 16  # variance of the rounding in the argument above
_BLOCK = 2**16
_DOUBT = 2.0**-40  # floating-point comparisons closer than this are made again exactly; their error is below 2^-45


class Words(Protocol):
    """Where random words come from, such as a :class:`~dptrain.privacy.streams.NoiseStream`."""

    def words(self, count: int) -> np.ndarray:
        """Return ``count`` random words of 64 bits, shape (count,)."""


def to_grid(gradient: Mapping[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    """Return one unit's clipped gradient in whole numbers of ``clip_norm / SENSITIVITY``.

    Formal guarantee: the result, all its tensors taken as one vector, has Euclidean norm at most ``SENSITIVITY``,
    whatever ``gradient`` is: one that would be longer, or is not finite, becomes zero.
    """
    scale = SENSITIVITY / clip_norm * _SHRINK
    scaled = {name: tensor.double().mul(scale).round_() for name, tensor in gradient.items()}
    about = float(sum(tensor.square().sum() for tensor in scaled.values()))
    if about <= 2.0 * SENSITIVITY**2:  # so that the squares below fit in 64 bits; NaN does not pass
        whole = {name: tensor.long() for name, tensor in scaled.items()}
        if sum(int(tensor.square().sum()) for tensor in whole.values()) <= SENSITIVITY**2:
            return whole
    return {name: torch.zeros_like(tensor, dtype=torch.int64) for name, tensor in gradient.items()}


def variance(noise_multiplier: float, sensitivity: int) -> int:
    """Return the parameter of the discrete Gaussian that is worth a Gaussian of this noise multiplier."""
    return math.ceil((Fraction(noise_multiplier) * sensitivity) ** 2) + _ROUNDED


def discrete_gaussian(count: int, variance: int, stream: Words, go_on: Callable[[], None] = lambda: None) -> Tensor:
    """Return whole numbers, each x with chance proportional to ``exp(-x**2 / (2 * variance))``; int64, on the CPU.

    Rejection from the discrete Laplace of a scale t that is a power of two (Canonne, Kamath and Steinke 2020,
    algorithms 2 and 3 in one): the magnitude is u + t v with u uniform below t and v geometric, P[v >= k] = exp(-k),
    and it is kept with chance exp(-(y^2 / (2 s^2) - v + s^2 / (2 t^2))). The law is exact: a uniform number is
    compared with an exponential in floating point where that leaves no doubt, and with more and more digits elsewhere.
    ``go_on`` is called on the way, and may raise.
    """
    bits = max(0, round(math.log2(variance) / 2))
    if bits > 55:
        raise ConfigError(f"noise of variance {variance} does not fit in whole numbers of 64 bits: use less")
    found = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        go_on()
        kept = _accepted(min(_BLOCK, 3 * (count - filled) + 64), variance, bits, stream)[: count - filled]
        found[filled : filled + len(kept)] = kept
        filled += len(kept)
    return torch.from_numpy(found)


def _accepted(proposals: int, variance: int, bits: int, stream: Words) -> np.ndarray:
    word, first, second = stream.words(3 * proposals).reshape(3, proposals)
    u = (word & np.uint64(2**bits - 1)).astype(np.int64)
    negative = word >> np.uint64(63) == 1
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = -np.log(first * 2.0**-64)  # a standard exponential: its floor is geometric
        nearest = np.abs(exponent - np.round(exponent))  # NaN of infinity
    v = np.minimum(np.floor(exponent), 64.0)
    y = u + (v.astype(np.int64) << bits)
    chance = np.exp(v - y.astype(float) ** 2 / (2.0 * variance) - variance / 2.0 ** (2 * bits + 1))
    apart = second * 2.0**-64 - chance
    kept = apart < 0.0
    for place in np.flatnonzero(~(nearest >= _DOUBT) | (np.abs(apart) < _DOUBT)):
        one, other = (_Uniform(int(words[place]), stream) for words in (first, second))
        exact = _decide(int(u[place]), one, other, variance, bits)
        kept[place] = exact is not None
        y[place] = exact or 0
    kept &= ~(negative & (y == 0))  # zero has one sign only
    return np.where(negative, -y, y)[kept]


def _decide(u: int, first: _Uniform, second: _Uniform, variance: int, bits: int) -> int | None:
    """Return the magnitude of a proposal, or ``None`` if it is rejected, without rounding anything."""
    v = 0
    while first.is_below_exp(Fraction(v + 1)):
        v += 1
    y = u + (v << bits)
    exponent = Fraction(y * y, 2 * variance) - v + Fraction(variance, 2 << 2 * bits)
    return y if second.is_below_exp(exponent) else None


class _Uniform:
    """A uniform number on [0, 1), known to as many binary digits as were ever asked for."""

    def __init__(self, word: int, stream: Words) -> None:
        self._value, self._bits, self._stream = word, 64, stream

    def is_below_exp(self, exponent: Fraction) -> bool:
        """Whether it is less than ``exp(-exponent)``."""
        while True:
            low, high = _exp(exponent, self._bits)
            if Fraction(self._value + 1, 1 << self._bits) <= low:
                return True
            if Fraction(self._value, 1 << self._bits) >= high:
                return False
            self._value = self._value << 64 | int(self._stream.words(1)[0])
            self._bits += 64


def _exp(exponent: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Return bounds of ``exp(-exponent)``, apart by less than 2**-bits of it."""
    with localcontext() as context:
        context.prec = bits // 3 + len(str(int(exponent))) + 8
        about = Fraction((-(Decimal(exponent.numerator) / Decimal(exponent.denominator))).exp())
        # The quotient is right to its last digit, and the exponential to its own (both are rounded correctly).
        error = about * (exponent + 2) * Fraction(10) ** (1 - context.prec)
    return about - error, about + error
