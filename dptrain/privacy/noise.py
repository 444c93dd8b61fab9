"""Gaussian noise from a cryptographic generator, and the one door through which private quantities leave.

Everything that private images shaped is handed to :func:`privatize` before anything else sees it. An auditor can wrap
that one function, record what goes in, fix what comes out, and replay a run on a neighbouring dataset (Re:cord-play,
Cebere et al. 2026): nothing else may then differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ConfigError, PrivacyError
from .exact import variance
from .ranges import check_noise_multiplier
from .streams import NoiseStream


def privatize(
    value: Mapping[str, Tensor], *, sensitivity: float, noise_multiplier: float, stream: NoiseStream
) -> dict[str, Tensor]:
    """Add Gaussian noise of standard deviation ``noise_multiplier * sensitivity`` to every entry.

    Formal guarantee: if ``value``, all its tensors taken as one vector, changes by at most ``sensitivity`` in Euclidean
    norm between neighbouring datasets, the result is one Gaussian mechanism with that noise multiplier
    (``GaussianDpEvent(noise_multiplier)``). Whole numbers (int64) get noise in whole numbers, of exactly the law that
    :mod:`dptrain.privacy.exact` has; other tensors get Gaussians up to the rounding of floating point.

    Args:
        value: What private data shaped, by name.
        sensitivity: Stated by what made the value, such as ``FlatClip.sensitivity``.
        noise_multiplier: Standard deviation in units of the sensitivity; above 0.
        stream: Where the noise comes from.

    Raises:
        ConfigError: ``noise_multiplier`` is out of its range, or ``sensitivity`` is not a finite number above 0.
        PrivacyError: The value holds an entry that is not finite, which noise would not hide.
    """
    total = sum(tensor.numel() for tensor in value.values())
    whole = all(tensor.dtype == torch.int64 for tensor in value.values())
    law = _variance(sensitivity, noise_multiplier, whole)
    _refuse_not_finite(value)
    noise = stream.gaussian(total) if law is None else stream.whole(total, law)
    devices = {tensor.device for tensor in value.values()}
    if len(devices) == 1:
        noise = noise.to(devices.pop())  # one transfer, and not one a parameter
    if not whole:
        noise = noise.mul_(noise_multiplier * sensitivity)
    noised: dict[str, Tensor] = {}
    start = 0
    for name, tensor in value.items():
        part = noise[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
        part = part.to(tensor.device)
        noised[name] = tensor + part if whole else (tensor.double() + part).to(tensor.dtype)
    return noised


def begin_noise(
    count: int, *, sensitivity: float, noise_multiplier: float, stream: NoiseStream, whole: bool, threads: int
) -> None:
    """Begin to make the noise that :func:`privatize` will add to ``count`` entries, in the background.

    It is the noise that would be added without this, and nothing here sees what it is added to.

    Args:
        count: Number of entries.
        sensitivity, noise_multiplier, stream: As given to :func:`privatize` afterwards.
        whole: Whether they will be whole numbers.
        threads: How many threads make it.

    Raises:
        ConfigError, PrivacyError: As of :func:`privatize`, or other noise was begun before.
    """
    stream.begin(count, _variance(sensitivity, noise_multiplier, whole), threads)


def _variance(sensitivity: float, noise_multiplier: float, whole: bool) -> int | None:
    """Return the parameter of the discrete Gaussian for whole numbers; ``None`` for others."""
    check_noise_multiplier(noise_multiplier)
    if not (math.isfinite(sensitivity) and sensitivity > 0):
        raise ConfigError(f"sensitivity={sensitivity} must be a finite number above 0")
    if not whole:
        return None
    if int(sensitivity) != sensitivity:
        raise ConfigError(f"sensitivity={sensitivity} of whole numbers must be a whole number")
    return variance(noise_multiplier, int(sensitivity))


def _refuse_not_finite(value: Mapping[str, Tensor]) -> None:
    finite = [torch.isfinite(tensor).all() for tensor in value.values()]
    if finite and not bool(torch.stack([one.to(finite[0].device) for one in finite]).all()):  # a GPU is asked once
        name = next(name for name, one in zip(value, finite, strict=True) if not bool(one))
        raise PrivacyError(f"the sum for {name!r} is not finite: noise would not hide it, so the step is not taken")
