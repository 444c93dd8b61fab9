"""What a noise multiplier and a clip norm may be. Every place that takes one calls the check here."""

from __future__ import annotations

from ..errors import ConfigError

NOISE_MULTIPLIER = (1e-3, 1e6)
CLIP_NORM = (1e-10, 1e10)  # single precision holds these with room to spare


def check_noise_multiplier(value: float, name: str = "noise_multiplier") -> None:
    """Refuse noise that is none, or that is out of the range of the accountants; ``name`` is the key in the message.

    Raises:
        ConfigError: It is not a number from 0.001 to 1,000,000.
    """
    least, most = NOISE_MULTIPLIER
    if not least <= value <= most:
        raise ConfigError(f"{name}={value} must be from {least:g} to {most:,.0f}: without noise there is no guarantee")


def check_clip_norm(value: float, name: str = "clip_norm") -> None:
    """Refuse a clip norm that bounds nothing, or that single precision cannot hold; ``name`` as above.

    Raises:
        ConfigError: It is not a number from 1e-10 to 1e10.
    """
    least, most = CLIP_NORM
    if not least <= value <= most:
        raise ConfigError(f"{name}={value} must be from {least:g} to {most:g}: it bounds what one unit can change")
