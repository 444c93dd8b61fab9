"""What a value of the settings may be: by itself, and beside the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..datasets.data_yaml import FORMATS
from ..datasets.labels import LABELS
from ..errors import ConfigError
from ..privacy.clipping import CLIPPINGS, Clipping
from ..privacy.outside_clip import is_outside_name
from ..privacy.random_stopping import MOST_MEAN_RUNS, STOPPINGS
from ..privacy.ranges import check_clip_norm, check_noise_multiplier
from ..privacy.units import UNITS
from ..support.devices import refuse_single_precision
from .keys import nearest_key, value_at
from .schema import (
    AUTO,
    BY_VAL,
    ENGINES,
    HEADS,
    NEW_CLASSES,
    NOISES,
    NORMALISERS,
    NORMS,
    OPTIMIZERS,
    PRECISIONS,
    PRIVATE,
    REFUSED_AUGMENTATIONS,
    REMOVED,
    SAME_PICTURE,
    SCHEDULES,
    TUNINGS,
    VALIDATIONS,
    SealConfig,
    TrainConfig,
    TuningConfig,
)

if TYPE_CHECKING:
    from .schema import PrivacyConfig

LARGEST = 1e15  # of any setting: numbers beyond are neither counts nor rates, and overflow where they are used
_SECRET = re.compile(r"^\s*[0-9a-fA-F]{64}\s*$|AGE-SECRET-KEY-1", re.IGNORECASE)  # of a ledger; of a sealed file
_CHOICES: dict[str, tuple[str, ...]] = {
    "privacy.unit": UNITS,
    "privacy.same_picture": SAME_PICTURE,
    "privacy.noise": NOISES,
    "norm": NORMS,
    "head": HEADS,
    "new_classes": NEW_CLASSES,
    "loss.normaliser": NORMALISERS,
    "tuning.method": TUNINGS,
    "engine": ENGINES,
    "precision": PRECISIONS,
    "validation": VALIDATIONS,
    "labels": LABELS,
    "optimizer.name": OPTIMIZERS,
    "privacy.clipping": (*CLIPPINGS, AUTO),
    "schedule.name": SCHEDULES,
}
Ranges = tuple[tuple[str, Callable[[float], bool], str], ...]  # keys, what fits them, and that in words
_RANGES: Ranges = (
    (
        "privacy.epsilon validation_privacy.epsilon",
        lambda v: v > 0,
        "more than 0 and finite: it is the privacy loss allowed",
    ),
    (
        "privacy.delta validation_privacy.delta",
        lambda v: 0 < v < 1,
        "between 0 and 1, both excluded, and well below 1/dataset_size",
    ),
    ("privacy.sample_rate", lambda v: 0 < v <= 1, "in (0, 1]: it is the chance that a unit is in a step"),
    (
        "privacy.expected_batch_size privacy.dataset_size privacy.images_per_group augment.multiplicity steps "
        "validation_privacy.dataset_size privacy.bands evaluate_every checkpoint_every",
        lambda v: v >= 1,
        "1 or more",
    ),
    ("imgsz", lambda v: v >= 32, "32 or more, a multiple of 32"),
    ("workers seed schedule.warmup_steps optimizer.weight_decay", lambda v: v >= 0, "0 or more"),
    ("optimizer.lr", lambda v: v > 0, "more than 0 and finite"),
    ("lora.rank", lambda v: v >= 1, "1 or more"),
    ("lora.alpha loss.constant", lambda v: v > 0, "more than 0 and finite"),
    ("loss.box loss.cls loss.dfl", lambda v: v >= 0, "0 or more"),
    ("loss.focal_gamma", lambda v: v == 0 or 1 <= v <= 10, "0, or from 1 to 10"),
    ("optimizer.momentum ema.decay", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("schedule.final", lambda v: 0 <= v <= 1, "in [0, 1]: a fraction of optimizer.lr"),
    ("augment.fliplr augment.flipud", lambda v: 0 <= v <= 1, "a chance in [0, 1]"),
    ("augment.hsv_h augment.hsv_s augment.hsv_v augment.translate", lambda v: 0 <= v <= 1, "a fraction in [0, 1]"),
    ("augment.scale augment.crop", lambda v: 0 <= v < 1, "a fraction in [0, 1)"),
)


def check_values(config: TrainConfig) -> None:
    """Refuse a value that is none of the choices, or out of range.

    Raises:
        ConfigError: It names the key, its value and the fix.
    """
    for key, instead in (("budget.key", "DPTRAIN_BUDGET_KEY"), ("seal.identity", "DPTRAIN_SEAL_IDENTITY")):
        if _SECRET.search(str(value_at(config, key) or "")):
            raise ConfigError(
                f"{key} holds the key itself, which config.yaml would publish: give the file that holds it, or set "
                f"{instead}"
            )
    for key in (*_CHOICES, "model"):
        if (removed := REMOVED.get(f"{key}={value_at(config, key)}")) is not None:
            raise ConfigError(f"{key}={value_at(config, key)} was removed: {removed}")
    if config.labels in FORMATS:
        raise ConfigError(
            f"labels={config.labels} is how boxes are written: say so in the data.yaml, labels: {config.labels}"
        )
    for key, choices in _CHOICES.items():
        value = value_at(config, key)
        if value is not None and not (key == "privacy.clipping" and is_outside_name(value)):  # None: left open
            check_choice(key, value, choices)
    for name, reason in REFUSED_AUGMENTATIONS.items():
        if getattr(config.augment, name):
            raise ConfigError(f"augment.{name}={getattr(config.augment, name)} is refused: {reason}; leave it out")
    if config.privacy.noise_multiplier is not None:
        check_noise_multiplier(config.privacy.noise_multiplier, "privacy.noise_multiplier")
    if config.validation_privacy.noise_multiplier is not None:
        check_noise_multiplier(config.validation_privacy.noise_multiplier, "validation_privacy.noise_multiplier")
    check_clip_norm(config.privacy.clip_norm, "privacy.clip_norm")
    check_ranges(config, _RANGES)


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices, and name the nearest one."""
    if value not in choices:
        raise ConfigError(f"{key}={value} is not one of {', '.join(choices)}{nearest_key(value, list(choices))}")


def check_ranges(config: Any, ranges: Ranges) -> None:
    """Refuse a number that is out of its range, or larger than any setting; and an image size of part of a cell."""
    for keys, valid, needed in ranges:
        for key in keys.split():
            value = value_at(config, key)
            if value is not None and not (-LARGEST <= value <= LARGEST and valid(value)):
                too_large = f", and at most {LARGEST:g}" if value > LARGEST else ""
                raise ConfigError(f"{key}={value} must be {needed}{too_large}")
    if config.imgsz % 32:
        below = max(32, config.imgsz // 32 * 32)
        raise ConfigError(f"imgsz={config.imgsz} is not a multiple of 32: give {below} or {below + 32}")


def check_together(config: TrainConfig) -> None:
    """Refuse what one value alone does not show.

    Raises:
        ConfigError: It names the keys, their values and the fix.
    """
    refuse_single_precision(config.device)
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"optimizer.betas={betas} must be two numbers in [0, 1), such as [0.9,0.999]")
    clipping = clipping_of(config.privacy)
    if clipping.name == "scaled" and not config.privacy.clip_scales:
        raise ConfigError(
            "privacy.clipping=scaled needs privacy.clip_scales: the data.yaml of labelled public images, such as "
            "scenes/data.yaml in the folder of dptrain pretrain; or val, for the val split"
        )
    if config.privacy.clip_scales == BY_VAL and config.validation != "public":
        raise ConfigError(
            f"privacy.clip_scales={BY_VAL} measures on the val split without noise, and validation={config.validation} "
            "does not declare it public: set validation=public, or leave privacy.clip_scales out"
        )
    _check_noise(config)
    _check_validation(config)
    if config.loss.constant is not None and config.loss.normaliser != "constant":
        raise ConfigError(f"loss.constant={config.loss.constant} has no effect without loss.normaliser=constant")
    if not config.loss.box + config.loss.cls + config.loss.dfl:
        raise ConfigError("loss.box, loss.cls and loss.dfl are all 0: nothing would be learnt")
    adapts = "lora" in ([config.trainable] if isinstance(config.trainable, str) else config.trainable or ())
    for name, given in vars(config.lora).items():
        if given is not None and not adapts:
            raise ConfigError(f"lora.{name}={given} has no effect without trainable=lora")
    if config.steps is not None and config.schedule.warmup_steps > config.steps:
        warmup = config.schedule.warmup_steps
        raise ConfigError(f"schedule.warmup_steps={warmup} is more than steps={config.steps}: give a shorter one")


def _check_noise(config: TrainConfig) -> None:
    """Correlated noise goes with what its accounting was worked out for."""
    privacy = config.privacy
    if privacy.noise == "independent":
        if privacy.bands not in (None, 1):
            raise ConfigError(
                f"privacy.bands={privacy.bands} has no effect with privacy.noise=independent: give "
                "privacy.noise=banded, or leave it out"
            )
        return
    refused = {
        f"privacy.unit={privacy.unit}": privacy.unit != "image",
        "noise.exact=true": config.noise.exact,
        f"tuning.method={config.tuning.method}": config.tuning.method != "none",
    }
    for name, given in refused.items():
        if given:
            raise ConfigError(f"privacy.noise=banded with {name} is not worked out: leave one of them out")


def _check_validation(config: TrainConfig) -> None:
    """A private val split needs a guarantee of its own, and public constants; no other kind has a use for them."""
    section = config.validation_privacy
    if config.validation != PRIVATE:
        for name, value in vars(section).items():
            if value is not None:
                raise ConfigError(
                    f"validation_privacy.{name}={value} is of validation=private, and validation={config.validation}: "
                    "give validation=private, or leave it out"
                )
        return
    if config.tuning.method != "none":
        raise ConfigError(
            f"validation=private with tuning.method={config.tuning.method}: the score that picks the winner must be "
            "computed on public images; declare a public val split (validation=public)"
        )
    if config.privacy.unit == "person":
        raise ConfigError(
            "validation=private with privacy.unit=person is not worked out: somebody may be in several val pictures; "
            "give validation=off"
        )
    if section.epsilon is not None and section.noise_multiplier is not None:
        raise ConfigError(
            f"validation_privacy.epsilon={section.epsilon} and validation_privacy.noise_multiplier="
            f"{section.noise_multiplier} say the same twice: give one of them"
        )
    if section.epsilon is None and section.noise_multiplier is None:
        raise ConfigError(
            "validation=private, and nothing says how much the val images may lose: give validation_privacy.epsilon=1, "
            "or validation_privacy.noise_multiplier"
        )
    if section.delta is None and section.dataset_size is None:
        raise ConfigError(
            "validation_privacy.delta is not set, and the val images are not counted for it (their number is private): "
            "declare it, validation_privacy.dataset_size=..., or give validation_privacy.delta=1e-5"
        )


def check_seal(seal: SealConfig) -> None:
    """A secret key in the settings would be in config.yaml and in the history of a shell."""
    from ..sealing.keys import recipients_of, refuse_secret

    for key in ("identity", "keyring"):
        refuse_secret(str(getattr(seal, key) or ""), f"seal.{key}")
    if seal.identity and seal.keyring:
        raise ConfigError(f"seal.identity={seal.identity} and seal.keyring={seal.keyring} are one too many: give one")
    if seal.recipients:
        recipients_of(seal.recipients)


def check_tuning(tuning: TuningConfig) -> None:
    """The bound of random stopping holds for some distributions of the number of runs only."""
    distribution, mean = tuning.distribution, tuning.mean_runs
    if distribution not in STOPPINGS:
        raise ConfigError(
            f"tuning.distribution={distribution} is not one of {', '.join(STOPPINGS)}: the bound of Papernot and "
            "Steinke (2022) needs a random number of runs from one of them, and a fixed number does not qualify"
        )
    if not 1 <= mean <= MOST_MEAN_RUNS or (mean == 1 and distribution != "poisson"):
        raise ConfigError(
            f"tuning.mean_runs={mean} must be more than 1 and at most {MOST_MEAN_RUNS}: it is a mean, not a number"
        )


def clipping_of(privacy: PrivacyConfig) -> Clipping:
    """Return the clip rule that the settings ask for; ``auto`` is flat until the run has looked at its val split.

    Raises:
        ConfigError: An option is out of range, or belongs to another rule; or a rule from outside is not usable.
    """
    if privacy.clip_scales is not None and privacy.clipping != "scaled":
        fix = "give privacy.clipping=scaled, or leave it out"
        raise ConfigError(f"privacy.clip_scales has no effect with clipping={privacy.clipping}: {fix}")
    if privacy.clip_groups and privacy.clipping == AUTO:
        fix = "give privacy.clipping=groups, or leave it out"
        raise ConfigError(f"privacy.clip_groups has no effect with clipping={AUTO}: {fix}")
    try:
        name = "flat" if privacy.clipping == AUTO else privacy.clipping
        clipping = Clipping(name, tuple(privacy.clip_groups))
        clipping.refuse_unusable(privacy.clip_norm)
        return clipping
    except ConfigError as error:
        raise ConfigError(f"privacy.{error}") from error
