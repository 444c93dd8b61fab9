"""The settings of ``dptrain pretrain``: those of ``dptrain train`` where they mean the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...errors import ConfigError
from ...settings.keys import config_error, keys, nearest_key, value_at
from ...settings.limits import Ranges, check_choice, check_ranges
from ...settings.resolve import default_output_dir
from ...settings.schema import DEFAULT_LEDGER
from ...support.devices import parse_device

NORMS = ("auto", "group", "batch")
OPTIMIZERS = ("auto", "sgd", "musgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop")
SCHEDULES = ("linear", "cosine")
# What may be another when a training goes on.
FREE_TO_CHANGE = ("device", "workers", "budget", "resume", "output_dir", "download")
_SHARED = dict(keys())


def _key(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _same(name: str, *default: Any) -> Any:
    """The key of ``dptrain train``: its help line, and its default unless another is given."""
    shared = _SHARED[name]
    return field(default=default[0] if default else shared.default, metadata=shared.metadata)


@dataclass
class ScenesConfig:
    """Synthetic scenes instead of a data.yaml. ``docs/pretraining.md`` says how to write a generator."""

    generator: str | None = _key(None, "importable module with NAMES and scene(rng), such as experiments.cells.scenes")
    train: int = _key(5000, "scenes to train on")
    val: int = _key(300, "scenes to validate on")
    seed: int = _key(0, "of the scenes")


@dataclass
class PublicOptimizerConfig:
    """Ultralytics' optimizers."""

    name: str = _key("auto", f"one of {', '.join(OPTIMIZERS)}; auto: Ultralytics chooses, and the rate with it")
    lr: float | None = _key(None, "learning rate; with a name other than auto, default 0.01 (sgd) or 0.001")
    momentum: float = _key(0.9, "momentum (sgd), first beta of the Adam family")
    weight_decay: float = _key(5e-4, "weight decay")


@dataclass
class PublicScheduleConfig:
    """Learning rate by epoch."""

    name: str = _key("linear", f"one of {', '.join(SCHEDULES)}")
    warmup_epochs: float = _key(3.0, "epochs of warm-up, at most a tenth of all")
    final: float = _same("schedule.final")


@dataclass
class PublicAugmentConfig:
    """Ultralytics' augmentations with its defaults; on public data those that mix images are allowed."""

    fliplr: float = _same("augment.fliplr", 0.5)
    flipud: float = _same("augment.flipud")
    hsv_h: float = _same("augment.hsv_h", 0.015)
    hsv_s: float = _same("augment.hsv_s", 0.7)
    hsv_v: float = _same("augment.hsv_v", 0.4)
    scale: float = _same("augment.scale", 0.5)
    translate: float = _same("augment.translate", 0.1)
    degrees: float = _key(0.0, "rotation, plus or minus")
    mosaic: float = _key(1.0, "chance of four images in one")
    close_mosaic: int = _key(10, "last epochs without it, at most a fifth of all")
    mixup: float = _key(0.0, "chance of one image over another")
    cutmix: float = _key(0.0, "chance of a part of one image in another")


@dataclass
class LookConfig:
    """The ledger whose images are private, and so are refused here. Nothing is charged."""

    url: str | None = _key(DEFAULT_LEDGER, "sqlite:///FILE or postgresql://USER@HOST/NAME; null: none is looked at")
    key: str | None = _same("budget.key")


@dataclass
class PretrainConfig:
    """Everything one public training is told. See ``dptrain pretrain --help`` for the keys."""

    model: str = _key(MISSING, "yolo26n.yaml (from scratch) or a .pt checkpoint trained on public data")
    data: str | None = _key(None, "an Ultralytics data.yaml whose images you declare public")
    imgsz: int = _same("imgsz")
    device: str = _same("device")
    epochs: int = _key(100, "passes over the training split")
    batch_size: int = _key(64, "images a step")
    output_dir: str = _same("output_dir")
    seed: int = _key(0, "of weights, order and augmentation; nothing here is private")
    norm: str = _key("auto", f"one of {', '.join(NORMS)}; auto: a checkpoint's own, group from scratch")
    workers: int = _key(2, "processes that load images (GPU only)")
    public_data: str | None = _key(None, "what the images are, in your words; for the record and later statements")
    download: bool = _same("download")
    resume: bool = _same("resume")
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    optimizer: PublicOptimizerConfig = field(default_factory=PublicOptimizerConfig)
    schedule: PublicScheduleConfig = field(default_factory=PublicScheduleConfig)
    augment: PublicAugmentConfig = field(default_factory=PublicAugmentConfig)
    budget: LookConfig = field(default_factory=LookConfig)


def from_arguments(arguments: Sequence[str]) -> PretrainConfig:
    """Read ``KEY=VALUE`` arguments.

    Raises:
        ConfigError: One of them is no such pair, an unknown key, or a value of the wrong type.
    """
    fields = dict(keys(PretrainConfig))
    node = OmegaConf.structured(PretrainConfig)
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or name.startswith("-"):
            raise ConfigError(f"cannot read {argument!r}: give key=value (dptrain pretrain --help lists the keys)")
        if name not in fields:
            raise ConfigError(_unknown(name, list(fields)))
        is_text = str(fields[name].type).startswith("str")
        # Text stays as it is typed, but for null; numbers are read by OmegaConf.
        value = None if text == "null" else text if is_text else OmegaConf.from_dotlist([f"x={text}"]).x
        _update(node, name, value)
    return _typed(node)


def from_kwargs(values: Mapping[str, Any]) -> PretrainConfig:
    """Read Python keywords; a section is a dict.

    Raises:
        ConfigError: An unknown key, or a value of the wrong type.
    """
    fields = dict(keys(PretrainConfig))
    node = OmegaConf.structured(PretrainConfig)
    for name, value in values.items():
        pairs = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
        for key, item in pairs.items():
            if key not in fields:
                raise ConfigError(_unknown(key, list(fields)))
            _update(node, key, item)
    return _typed(node)


def _unknown(name: str, known: list[str]) -> str:
    if name in _SHARED:
        return f"{name} is a key of dptrain train: pre-training is public and has no such setting; leave it out"
    return f"unknown key {name}{nearest_key(name, known) or ' (dptrain pretrain --help lists the keys)'}"


def _update(node: Any, key: str, value: Any) -> None:
    try:
        OmegaConf.update(node, key, value)
    except OmegaConfBaseException as error:
        raise config_error(error, PretrainConfig) from error


def _typed(node: Any) -> PretrainConfig:
    values = OmegaConf.to_container(node, resolve=True)
    sections = {item.name: item.default_factory for item in dataclasses.fields(PretrainConfig)}
    assert isinstance(values, dict)
    return PretrainConfig(
        **{
            str(name): sections[str(name)](**value) if isinstance(value, dict) else value  # type: ignore[operator]
            for name, value in values.items()
        }
    )


def resolve(config: PretrainConfig) -> PretrainConfig:
    """Check every value, once, and return a copy in canonical form.

    Raises:
        ConfigError: One line that names the key, its value and the fix.
    """
    if config.model in ("", MISSING):
        raise ConfigError("model is not set: give model=yolo26n.yaml or model=start.pt")
    generator = config.scenes.generator
    if (config.data is None) == (generator is None):
        both = f"data={config.data} and scenes.generator={generator} cannot be combined: " if config.data else ""
        raise ConfigError(f"{both}give data=public.yaml, or scenes.generator=MODULE to draw scenes")
    config = dataclasses.replace(
        config,
        device=parse_device(config.device),
        output_dir=config.output_dir or default_output_dir(),
        optimizer=dataclasses.replace(config.optimizer, name=config.optimizer.name.lower()),
    )
    for key, choices in (("norm", NORMS), ("optimizer.name", OPTIMIZERS), ("schedule.name", SCHEDULES)):
        check_choice(key, value_at(config, key), choices)
    if config.optimizer.lr is not None and config.optimizer.name == "auto":
        raise ConfigError(f"optimizer.lr={config.optimizer.lr} needs a name: with optimizer.name=auto both are chosen")
    check_ranges(config, _RANGES)
    return config


_RANGES: Ranges = (
    ("epochs batch_size scenes.train scenes.val", lambda v: v >= 1, "1 or more"),
    ("imgsz", lambda v: v >= 32, "32 or more, a multiple of 32"),
    (
        "workers seed scenes.seed optimizer.weight_decay schedule.warmup_epochs augment.close_mosaic",
        lambda v: v >= 0,
        "0 or more",
    ),
    ("optimizer.lr", lambda v: v > 0, "more than 0 and finite"),
    ("optimizer.momentum augment.scale", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("augment.degrees", lambda v: 0 <= v <= 180, "in [0, 180]"),
    (
        "schedule.final augment.fliplr augment.flipud augment.hsv_h augment.hsv_s augment.hsv_v augment.translate "
        "augment.mosaic augment.mixup augment.cutmix",
        lambda v: 0 <= v <= 1,
        "in [0, 1]",
    ),
)
