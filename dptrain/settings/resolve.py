"""The settings of a training run: from Hydra or from Python keywords, checked once, turned into the frozen plan.

``dptrain train`` fills the dataclasses of :mod:`dptrain.settings.schema` through Hydra (``conf/``),
``dptrain.train(...)`` through :func:`from_kwargs`; both then pass :func:`resolve`, so a value is checked in the same
words wherever it came from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..datasets.groups import GroupsConfig, check_groups
from ..errors import ConfigError
from ..support.devices import devices_of
from ..support.environment import experiment_name, ledger_address, tracking_address
from ..support.files import flatten
from .keys import config_error, value_at
from .left_open import settle_defaults
from .limits import LARGEST, check_seal, check_together, check_tuning, check_values, clipping_of
from .phases import check_names, settle_phases
from .schema import (
    AUTO,
    CHECKPOINTS_PER_RUN,
    DEFAULT_IMAGES_PER_GROUP,
    EVALUATIONS_PER_RUN,
    PRIVATE,
    PUBLIC,
    REFUSED_AUGMENTATIONS,
    AugmentConfig,
    BudgetConfig,
    EmaConfig,
    LoraConfig,
    LossConfig,
    NoiseConfig,
    OptimizerConfig,
    PhaseConfig,
    PrivacyConfig,
    ScheduleConfig,
    SealConfig,
    TrackingConfig,
    TrainConfig,
    TuningConfig,
    ValidationPrivacyConfig,
)
from .to_plan import make_plan

if TYPE_CHECKING:
    from ..privacy.plan import PrivacyPlan

__all__ = [
    "AugmentConfig",
    "BudgetConfig",
    "EmaConfig",
    "GroupsConfig",
    "LoraConfig",
    "LossConfig",
    "NoiseConfig",
    "OptimizerConfig",
    "PrivacyConfig",
    "ScheduleConfig",
    "SealConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuningConfig",
    "ValidationPrivacyConfig",
    "default_output_dir",
    "from_kwargs",
    "from_omegaconf",
    "make_plan",
    "resolve",
    "with_plan",
]


def from_kwargs(*, plan: PrivacyPlan | None = None, **kwargs: Any) -> TrainConfig:
    """Build the configuration from Python keywords; sections are given as dicts.

    ``from_kwargs(model="yolo26n.yaml", data="pets.yaml", plan=plan, optimizer={"name": "sgd", "lr": 0.1})``

    Args:
        plan: Fills ``steps`` and the ``privacy`` keys; a key given beside it that says otherwise is an error.
        **kwargs: The fields of :class:`TrainConfig`; a section is a dict or its dataclass.

    Raises:
        ConfigError: A misspelt keyword (with the nearest name), a value of the wrong type, or one that
            contradicts ``plan``.
    """
    sections = {item.name for item in dataclasses.fields(TrainConfig) if isinstance(item.default_factory, type)}
    for name in sections & kwargs.keys():
        value = kwargs[name]
        if not isinstance(value, Mapping) and not (dataclasses.is_dataclass(value) and not isinstance(value, type)):
            shown = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
            raise ConfigError(f"{name}={shown} is not a dict such as {name}={{...}}")
        kwargs[name] = dict(value) if isinstance(value, Mapping) else value
    try:
        config = _typed(OmegaConf.merge(_schema(), kwargs))
    except OmegaConfBaseException as error:
        raise config_error(error) from error
    except OverflowError as error:  # a whole number where a fraction belongs, too large to be made one
        large = [key for key, value in flatten(kwargs).items() if isinstance(value, int) and abs(value) > LARGEST]
        name = large[0] if large else "a number"
        raise ConfigError(f"{name} has too many digits: give at most {LARGEST:g}") from error
    if plan is None:
        return config
    given = _given_keys(kwargs)
    for key, value in _plan_values(plan).items():
        if key in given and value_at(config, key) != value:
            raise ConfigError(f"{key}={value_at(config, key)} contradicts the plan, which has {value}: give it once")
        _set(config, key, value)
    if config.privacy.epsilon is not None:
        raise ConfigError("privacy.epsilon is fixed by the plan: leave it out, or leave the plan out")
    return config


def with_plan(config: TrainConfig, plan: PrivacyPlan) -> TrainConfig:
    """Return ``config`` with everything the plan settles written out, so that it makes the same plan again.

    ``privacy.epsilon``, ``time`` and ``epochs`` become null (steps and noise determine them), and ``evaluate_every``
    and ``checkpoint_every`` are filled in. ``privacy.clipping=auto`` stays: the run settles it by its val split.
    """
    settled = _typed(config)
    values = _plan_values(plan)
    if settled.privacy.clipping == AUTO and plan.clipping == clipping_of(settled.privacy):
        del values["privacy.clipping"]
    for key, value in values.items():
        _set(settled, key, value)
    settled.privacy.epsilon = settled.time = settled.epochs = None
    if settled.evaluate_every is None:  # a look at private images costs, so there is one, at the end
        looks = 1 if settled.validation == PRIVATE else EVALUATIONS_PER_RUN
        settled.evaluate_every = max(1, plan.steps // looks)
    if settled.checkpoint_every is None:
        settled.checkpoint_every = max(1, plan.steps // CHECKPOINTS_PER_RUN)
    return settled


def default_output_dir() -> str:
    """``runs/<date>_<time>``, relative to the working directory."""
    return datetime.now().strftime("runs/%Y-%m-%d_%H-%M-%S")


def resolve(config: TrainConfig) -> TrainConfig:
    """Check every value, once, and return a copy in canonical form.

    Raises:
        ConfigError: One line that names the key, its value and the fix.
    """
    try:
        config = _typed(config)
    except OmegaConfBaseException as error:
        raise config_error(error) from error
    for key, example in (("model", "model=yolo26n.yaml or model=start.pt"), ("data", "data=pets.yaml")):
        if value_at(config, key) in ("", MISSING):
            raise ConfigError(f"{key} is not set: give {example}")
    config.optimizer.name = config.optimizer.name.lower()
    config.device = ",".join(devices_of(config.device))
    config.output_dir = config.output_dir or default_output_dir()
    config.tracking.uri = tracking_address(config.tracking.uri)
    config.tracking.experiment = experiment_name(config.tracking.experiment)
    if config.budget.url == "":  # the variable is set and empty
        config.budget.url = ledger_address()
    if config.validation is None:
        config.validation = PUBLIC
    settle_phases(config)
    settle_defaults(config)
    if config.trainable is not None:
        config.trainable = check_names("trainable", config.trainable)
    if config.lora.targets is not None:
        config.lora.targets = check_names("lora.targets", config.lora.targets)
    config.physical_batch_size = _physical_batch_size(config.physical_batch_size)

    check_values(config)
    check_together(config)
    _check_units(config)
    check_seal(config.seal)
    check_tuning(config.tuning)
    return config


def _check_units(config: TrainConfig) -> None:
    """What is one unit, and whether its examples differ."""
    privacy = config.privacy
    if privacy.unit != "image":
        check_groups(privacy.groups)
        if privacy.unit == "person" and privacy.groups.csv is None:
            raise ConfigError(
                "privacy.unit=person needs a table with a row for each person in each picture: give "
                "privacy.groups.csv=people.csv"
            )
        privacy.images_per_group = privacy.images_per_group or DEFAULT_IMAGES_PER_GROUP
        if privacy.same_picture != "refuse":
            raise ConfigError(
                f"privacy.same_picture={privacy.same_picture} has no effect with privacy.unit={privacy.unit}, where "
                "copies in one group count once: leave it out"
            )
    else:
        given = {f"groups.{name}": value for name, value in vars(privacy.groups).items()}
        for name, value in {**given, "images_per_group": privacy.images_per_group}.items():
            if value is not None:
                raise ConfigError(
                    f"privacy.{name}={value} is of groups, and privacy.unit=image protects single images: give "
                    "privacy.unit=group, or leave it out"
                )
    augment = config.augment
    if augment.multiplicity > 1 and not any(
        value for name, value in vars(augment).items() if name != "multiplicity" and name not in REFUSED_AUGMENTATIONS
    ):
        raise ConfigError(
            f"augment.multiplicity={augment.multiplicity} without an augmentation averages equal gradients, and costs "
            f"{augment.multiplicity} times as much: turn one on, such as augment.fliplr=0.5, or leave it out"
        )


def _physical_batch_size(value: Any) -> str | int:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST:
        return value
    raise ConfigError(f"physical_batch_size={value} must be auto, or a whole number that is 1 or more")


@functools.cache
def _schema() -> Any:
    """The typed node of every key, which costs as much to make as a configuration to check; merging copies it."""
    return OmegaConf.structured(TrainConfig)


def _typed(config: Any) -> TrainConfig:
    """A checked copy: OmegaConf converts and validates the types of every field, and raises for the wrong ones."""
    node = config if OmegaConf.is_config(config) else OmegaConf.structured(config)
    plain = OmegaConf.to_container(node, resolve=True)  # a plain dict: Hydra's +key=value gets past a typed node
    values = OmegaConf.to_container(OmegaConf.merge(_schema(), plain))
    assert isinstance(values, dict)
    # Built by hand, since OmegaConf.to_object raises for a missing model or data, which resolve() words better.
    return _built(TrainConfig, values)


def _built(kind: Any, values: Mapping[Any, Any]) -> Any:
    """Return a dataclass from plain values, its sections too; a field that is a plain mapping stays one."""
    sections = {item.name: item.default_factory for item in dataclasses.fields(kind)}

    def value_of(name: str, value: Any) -> Any:
        section = sections[name]
        if name == "phases":
            return [_built(PhaseConfig, phase) for phase in value]
        return _built(section, value) if isinstance(value, dict) and dataclasses.is_dataclass(section) else value

    return kind(**{str(name): value_of(str(name), value) for name, value in values.items()})


def from_omegaconf(node: Any) -> TrainConfig:
    """The dataclass of a composed Hydra configuration (job part); interpolations are resolved.

    Raises:
        ConfigError: A key or value that the schema does not have, or an interpolation that leads nowhere.
    """
    try:
        return _typed(node)
    except OmegaConfBaseException as error:
        raise config_error(error) from error


def _plan_values(plan: PrivacyPlan) -> dict[str, Any]:
    """What the settings call the fields of a plan."""
    values = plan.to_dict()
    rule = values.pop("clipping")
    if rule.pop("scales"):
        raise ConfigError(
            "the plan has scales of its own, and a run measures them: give Clipping('scaled') without any, and the "
            "public images in privacy.clip_scales"
        )
    return {
        "steps": values.pop("steps"),
        "privacy.noise": "banded" if plan.bands > 1 else "independent",
        **{f"privacy.{name}": value for name, value in values.items()},
        "privacy.clipping": rule.pop("name"),
        **{f"privacy.clip_{name}": value for name, value in rule.items()},
    }


def _given_keys(kwargs: Mapping[str, Any]) -> set[str]:
    given = set(kwargs)
    privacy = kwargs.get("privacy", {})
    return given | {f"privacy.{name}" for name in (privacy if isinstance(privacy, Mapping) else vars(privacy))}


def _set(config: Any, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, name, value)
