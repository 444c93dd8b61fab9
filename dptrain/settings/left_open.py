"""What a run settles by itself: ``steps``, and with it the batch and what trains, where nobody gave them."""

from __future__ import annotations

from ..errors import ConfigError
from .phases import in_phases
from .schema import TrainConfig
from .times import seconds_of

EMA_DECAY = 0.99
_MOST_EPOCHS = 1e6


def steps_are_open(config: TrainConfig) -> bool:
    """Whether neither ``steps`` is given, nor what it follows from; the run then goes by ``time`` or ``epochs``."""
    privacy = config.privacy
    both = privacy.epsilon is not None and privacy.noise_multiplier is not None
    return config.steps is None and not both and not in_phases(config)


def settle_defaults(config: TrainConfig) -> None:
    """Fill in what depends on no start and no machine, in place.

    Raises:
        ConfigError: A time or epochs beside what settles the steps.
    """
    if config.time is not None:
        seconds_of(config.time)
        if config.epochs is not None:
            raise ConfigError(f"time={config.time} and epochs={config.epochs:g} both say how long: give one of them")
    if config.epochs is not None and not 0 < config.epochs <= _MOST_EPOCHS:
        raise ConfigError(f"epochs={config.epochs:g} must be above 0, and at most {_MOST_EPOCHS:g}")
    if steps_are_open(config) and config.tuning.method == "none":
        return
    for name, value in (("time", config.time), ("epochs", config.epochs)):
        if value is None:
            continue
        shown = f"{value:g}" if isinstance(value, float) else value
        raise ConfigError(
            f"{name}={shown} chooses the number of steps, which "
            f"{'is settled' if config.steps is None else f'steps={config.steps} has settled'}: leave one of them out"
        )
    config.trainable = "all" if config.trainable is None and not in_phases(config) else config.trainable
    config.head = config.head or "auto"
    config.ema.decay = EMA_DECAY if config.ema.decay is None else config.ema.decay
