"""The words of Ultralytics: which settings of its training are dptrain's too, under which key, and which cannot be.

A setting that only changes speed, files or a task that is no detection is taken at the value at which it does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from ..errors import ConfigError

SAME = ("model", "data", "epochs", "time", "imgsz", "device", "workers", "seed", "resume")  # as dptrain has them
RENAMED = {
    "batch": "privacy.expected_batch_size",
    "lr0": "optimizer.lr",
    "lrf": "schedule.final",
    "momentum": "optimizer.momentum",
    "weight_decay": "optimizer.weight_decay",
    "box": "loss.box",
    "cls": "loss.cls",
    "dfl": "loss.dfl",
    **{
        name: f"augment.{name}"
        for name in (
            "fliplr", "flipud", "hsv_h", "hsv_s", "hsv_v", "scale", "translate",
            "mosaic", "mixup", "cutmix", "copy_paste", "rect", "cls_pw",
        )
    },
}  # fmt: skip

_NOISED_ONLY = "dptrain shows what is noised or public, and nothing of the training images"
_ONE_IMAGE = "use augment.scale, augment.translate or augment.crop"
_OWN_LOOP = "dptrain trains in its own loop, on one image size"
# By name: the values that change nothing, and why no other works.
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "patience": ((None, 0), "the number of steps is part of the guarantee and fixed before the first: leave it out"),
    "classes": ((None,), "leave the labels of other classes out of the label files, and their names out of data.yaml"),
    "single_cls": ((False,), "give data.yaml one name, and its number, 0, to every label"),
    "fraction": ((1, 1.0), "list the images to train on in a .txt file, and declare as many in privacy.dataset_size"),
    "val": ((True,), "evaluate_every=N says how often, validation=off never"),
    "save": ((True,), "the weights are written anyway"),
    "save_period": (
        (-1, 0),
        "weights are written at every evaluation, evaluate_every=N",
    ),
    "cache": ((False, None), "images are read, and compared with what was checked, when they are drawn"),
    "exist_ok": ((False,), "every run has a folder of its own; resume=true continues one"),
    "pretrained": ((True, None), "model=start.pt trains from a checkpoint, model=yolo26n.yaml from random weights"),
    "cls_remap": (
        (True,),
        "classes keep the start's weights of the same name; new_classes has the rest",
    ),
    "multi_scale": ((0, 0.0, False), _OWN_LOOP),
    "compile": ((False, None), _OWN_LOOP),
    "channels_last": ((False, None), _OWN_LOOP),
    "quantize": ((None,), "quantize a finished model, on public images only"),
    "nbs": ((64,), "gradients are summed over the whole of batch, which may be in the thousands"),
    "warmup_epochs": ((0, 0.0), "use schedule.warmup_steps, in steps"),
    "warmup_momentum": ((0.8,), "there is one momentum"),
    "warmup_bias_lr": ((0.1,), "there is one learning rate"),
    "close_mosaic": ((0, 10), "there is no mosaic to close: it would mix images"),
    "copy_paste_mode": (("flip",), "there is no copy-paste: it would mix images"),
    "degrees": ((0, 0.0), _ONE_IMAGE),
    "shear": ((0, 0.0), _ONE_IMAGE),
    "perspective": ((0, 0.0), _ONE_IMAGE),
    "bgr": ((0, 0.0), _ONE_IMAGE),
    "augmentations": ((None,), _ONE_IMAGE),
    "auto_augment": ((None, "randaugment"), "it is of classification"),
    "erasing": ((0, 0.0, 0.4), "it is of classification"),
    "dropout": ((0, 0.0), "it is of classification"),
    "distill_model": ((None,), "a teacher is not supported"),
    "plots": ((False, True), _NOISED_ONLY),
    "profile": ((False,), _NOISED_ONLY),
    "show": ((False,), _NOISED_ONLY),
    "save_json": ((False,), "run yolo val on the finished weights"),
    "split": (("val", None), "the split val is evaluated"),
    "conf": ((None, 0.001), "run yolo val on the finished weights"),
    "iou": ((0.7,), "run yolo val on the finished weights"),
    "max_det": ((300,), "run yolo val on the finished weights"),
    "nms": ((None,), "head=one_to_one trains the branch that needs none"),
    "cfg": ((None,), "give the settings, or a preset of your own: --config-dir DIR experiment=NAME"),
    "task": (("detect",), "dptrain trains detectors"),
    "mode": (("train",), "dptrain train trains; dptrain evaluate and yolo do the rest"),
    "verbose": ((True, False), ""),
    "deterministic": ((True, False), ""),
}
_CHOICES = ("adam", "adamw", "sgd")  # have a preset of their own
_FOLDER = ("project", "name")


def in_our_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under dptrain's keys, dotted, where Ultralytics has another word; others stay as they are.

    Raises:
        ConfigError: A setting that cannot work with this guarantee or this loop, or one given under both names.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        for key, ours in _translated(name, value):
            if key in found or (key != name and key in given):
                raise ConfigError(f"{name} is Ultralytics' word for {key}, which is given too: give it once")
            found[key] = ours
    if any(given.get(name) for name in _FOLDER):
        if "output_dir" in given:
            raise ConfigError("project and name are Ultralytics' words for output_dir, given too: give it once")
        found["output_dir"] = "/".join([str(given.get("project") or "runs"), str(given.get("name") or _now())])
    return found


def _translated(name: str, value: Any) -> list[tuple[str, Any]]:
    if name in _FOLDER:
        return []
    if name in NEUTRAL:
        values, instead = NEUTRAL[name]
        if value not in values:
            raise ConfigError(f"{name}={value} of Ultralytics is not for private training: {instead}")
        return []
    if name in _SPECIAL:
        return _SPECIAL[name](value)
    return [(RENAMED.get(name, name), value)]


def _batch(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, int | float) and not (value >= 1 and value == int(value)):
        raise ConfigError(
            f"batch={value:g} measures the batch size on private images: leave it out, or give a number of images; "
            "physical_batch_size=auto fits the memory"
        )
    return [(RENAMED["batch"], value)]


def _optimizer(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, str):
        return [("optimizer", value)]
    if value == "auto":
        return []
    if value.lower() == "musgd":
        raise ConfigError("optimizer=MuSGD is not offered: use adamw, adam or sgd")
    return [("optimizer" if value.lower() in _CHOICES else "optimizer.name", value.lower())]


def _amp(value: Any) -> list[tuple[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, bool):
        raise ConfigError(f"amp={value} must be true or false")
    return [("precision", "auto" if value else "fp32")]


def _cosine(value: Any) -> list[tuple[str, Any]]:
    return [("schedule", "cosine")] if value else []


def _freeze(value: Any) -> list[tuple[str, Any]]:
    layers = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value or []
    if not isinstance(layers, list) or sorted(layers, key=str) != sorted(range(len(layers)), key=str):
        raise ConfigError(f"freeze={value} is not the first layers: name what trains, such as trainable=[model.22.*]")
    return [("trainable", f"layers_from_{len(layers)}")] if layers else []


_SPECIAL: dict[str, Callable[[Any], list[tuple[str, Any]]]] = {
    "batch": _batch,
    "optimizer": _optimizer,
    "amp": _amp,
    "cos_lr": _cosine,
    "freeze": _freeze,
}


def _now() -> str:
    from .resolve import default_output_dir

    return default_output_dir().rpartition("/")[2]


def as_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments of ``dptrain train`` with Ultralytics' words as dptrain's; flags and dotted keys stay.

    Raises:
        ConfigError: As :func:`in_our_words`.
    """
    words = {*RENAMED, *NEUTRAL, *_SPECIAL, *_FOLDER}
    mine, kept = {}, []
    for argument in arguments:
        name, is_pair, text = argument.partition("=")
        if is_pair and name in words:
            mine[name] = text
        else:
            kept.append(argument)
    if not mine:
        return arguments
    others = dict(argument.split("=", 1) for argument in kept if "=" in argument)
    values = {name: text if name in RENAMED and name != "batch" else _parsed(text) for name, text in mine.items()}
    found = in_our_words({**others, **values})
    texts = {key: "null" if value is None else value for key, value in found.items() if key not in others}
    return [*kept, *(f"{key}={text}" for key, text in texts.items())]


def _parsed(text: str) -> Any:
    """What Hydra would make of a single value; a sweep of several stays a text."""
    try:
        return None if text == "None" else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def as_keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of :func:`dptrain.train` with Ultralytics' words as dptrain's, in their sections.

    Raises:
        ConfigError: As :func:`in_our_words`, or a section that is no dict.
    """
    flat = {name: value for name, value in given.items() if not isinstance(value, Mapping)}
    sections: dict[str, Any] = {name: dict(value) for name, value in given.items() if name not in flat}
    for key, value in in_our_words(flat).items():
        section, dot, leaf = key.rpartition(".")
        if key in ("optimizer", "schedule") and isinstance(value, str):
            section, dot, leaf = key, ".", "name"
        if not dot:
            sections[key] = value
            continue
        inner = sections.setdefault(section, {})
        if leaf in inner:
            raise ConfigError(f"{section}.{leaf} is given twice, once in Ultralytics' words: give it once")
        inner[leaf] = value
    return sections
