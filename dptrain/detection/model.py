"""Ultralytics detectors that are safe for DP-SGD, and weights that stock Ultralytics opens."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import DetectionModel, guess_model_task, torch_safe_load, yaml_model_load
from ultralytics.utils import LOGGER

from ..checkpoint import refuse_damage
from ..errors import ConfigError, ModelError
from ..files import write_atomically
from ..layers import FrozenBatchNorm2d, group_norm_from_batch_norm

NORMS = ("auto", "frozen_bn", "group")
GROUPS = ("all", "head", "neck_and_head", "norm_and_bias")
_BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def load_model(
    model: str | Path,
    num_classes: int | None = None,
    *,
    norm: str = "auto",
    trainable: str | Sequence[str] = "all",
    names: Mapping[int, str] | None = None,
) -> DetectionModel:
    """Load a YOLOv8, YOLO11 or YOLO26 detector whose layers treat every image on its own.

    Args:
        model: A model description (``yolo26n.yaml``) or a checkpoint file (``.pt``). Nothing is downloaded.
        num_classes: Classes of the data; the last layer of the class head is new where it differs from the
            checkpoint's, except for classes of the same name, and every other layer is kept.
        norm: ``frozen_bn`` keeps the checkpoint's public statistics; ``group`` puts group normalisation in the place
            of every batch normalisation and keeps eps, scale and shift; ``auto`` is ``frozen_bn`` for a checkpoint
            that has batch normalisation and ``group`` otherwise.
        trainable: What receives gradients, see :func:`set_trainable`.
        names: Class names by number, written into the model.

    Raises:
        ModelError: The file is missing, unreadable, or not a plain detector.
        ConfigError: ``norm``, ``trainable`` or ``num_classes`` is not one of the choices.
    """
    if norm not in NORMS:
        raise ConfigError(f"norm={norm!r} is not one of {', '.join(NORMS)}")
    if names is not None and num_classes is None:
        num_classes = len(names)
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes={num_classes}: a detector needs at least one class")
    if names is not None:
        _check_names(names, num_classes)
    file = Path(model)
    if file.suffix in (".yaml", ".yml"):
        detector = _from_yaml(str(model), num_classes)
        has_statistics = False
    elif file.suffix == ".pt":
        detector = _from_checkpoint(file)
        has_statistics = any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
        _set_classes(detector, num_classes, names)
    else:
        raise ModelError(f"model={str(model)!r}: expected a model .yaml (such as yolo26n.yaml) or a .pt checkpoint")
    if norm == "auto":
        norm = "frozen_bn" if has_statistics else "group"
    if norm == "frozen_bn" and not has_statistics:
        raise ModelError(
            f"norm=frozen_bn needs public batch statistics and {str(model)!r} has none: use norm=group, or a checkpoint"
        )
    _replace_norms(detector, norm)
    if names is not None:
        set_names(detector, names)
    detector.args = get_cfg()  # Ultralytics' default loss gains
    detector.task = "detect"
    detector.train()
    set_trainable(detector, trainable)
    return detector


def _from_yaml(name: str, num_classes: int | None) -> DetectionModel:
    try:
        description = yaml_model_load(name)
    except Exception as error:  # Ultralytics raises several kinds, and tries its own search before
        raise ModelError(f"model={name!r}: no such model description ({_first_line(error)})") from error
    with _quietly():  # it announces the number of classes on stdout
        task = guess_model_task(description)
        if task != "detect":
            raise ModelError(f"model={name!r} is {_kind(task)}, not a detector: use one such as yolo26n.yaml")
        try:
            detector = DetectionModel(description, nc=num_classes, verbose=False)
        except Exception as error:  # a data.yaml, a family with inputs of its own, a misspelt layer: many kinds
            raise ModelError(
                f"model={name!r} does not describe a plain detector such as yolo26n.yaml ({_first_line(error)})"
            ) from error
    _check_head(detector, name)
    return detector


@contextmanager
def _quietly() -> Iterator[None]:
    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def _kind(task: str | None) -> str:
    return f"a model for {task!r}" if task else "a model of another kind"


def _from_checkpoint(file: Path) -> DetectionModel:
    if not file.is_file():
        raise ModelError(f"model={str(file)!r}: no such file (dptrain downloads nothing: put the checkpoint there)")
    try:
        refuse_damage(file)
        # By its whole path: a damaged yolo26n.pt in the working directory would be deleted and another one downloaded.
        checkpoint, _ = torch_safe_load(file.absolute(), safe_only=True)
        detector = (checkpoint.get("ema") or checkpoint["model"]).float()
    except Exception as error:  # unpickling fails in many ways; all mean the same to the user
        raise ModelError(
            f"model={str(file)!r} is not a checkpoint that can be opened ({_first_line(error)})"
        ) from error
    if not isinstance(detector, DetectionModel):
        raise ModelError(f"model={str(file)!r} holds a {type(detector).__name__}, not a detector")
    try:
        _check_detector(detector, file)
    except ModelError:
        raise
    except Exception as error:  # what was pickled may lack any part
        raise ModelError(f"model={str(file)!r} is not a whole detector ({_first_line(error)})") from error
    for leftover in ("criterion", "args", "pt_path", "class_weights"):
        detector.__dict__.pop(leftover, None)
    return detector


def _check_detector(detector: DetectionModel, file: Path) -> None:
    """A plain detector with all its parts, and weights that are numbers; what is missing raises anything."""
    with _quietly():
        task = getattr(detector, "task", None) or guess_model_task(detector)
    if task != "detect":
        raise ModelError(f"model={str(file)!r} is {_kind(task)}, not a detector")
    if detector.is_fused() and not any(isinstance(m, nn.GroupNorm) for m in detector.modules()):
        raise ModelError(f"model={str(file)!r} was fused for inference and has lost its norm layers: use the original")
    _check_head(detector, str(file))
    for name, tensor in detector.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"model={str(file)!r}: {name} holds values that are not finite numbers")
    names, classes = detector.names, detector.model[-1].nc
    if not isinstance(names, Mapping) or sorted(names) != list(range(classes)) or not detector.yaml["backbone"]:
        raise ModelError(f"model={str(file)!r} does not name its {classes} classes")
    with torch.no_grad():
        copy.deepcopy(detector).eval()(torch.zeros(1, 3, 64, 64))


def _first_line(error: Exception) -> str:
    if isinstance(error, AttributeError | TypeError | LookupError):  # these speak of Python's objects, not of the file
        return type(error).__name__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _check_head(detector: DetectionModel, name: str) -> None:
    head = detector.model[-1]
    if type(head) is not Detect:
        raise ModelError(
            f"model={name!r} has the head {type(head).__name__}, and its loss is not supported: "
            "dptrain trains the detection models of the v8, 11 and 26 families"
        )


def _set_classes(detector: DetectionModel, num_classes: int | None, names: Mapping[int, str] | None) -> None:
    """Give a checkpoint's head ``num_classes`` outputs; rows of classes with the same name are kept."""
    head = detector.model[-1]
    if num_classes is None:
        return
    old_names = {str(v).strip().lower(): k for k, v in dict(detector.names).items() if str(k) != str(v)}
    new_names = {k: str(v).strip().lower() for k, v in (names or {}).items()}
    kept = {row: old_names[name] for row, name in new_names.items() if name in old_names}
    if num_classes == head.nc and (not kept or all(new == old for new, old in kept.items())):
        return
    for branch in (head.cv3, getattr(head, "one2one_cv3", None)):
        for level, layers in enumerate(branch or ()):
            old = layers[-1]
            new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size)
            assert new.bias is not None and old.bias is not None
            with torch.no_grad():
                # The prior of Detect.bias_init: about five objects in a 640 px image.
                new.bias.fill_(math.log(5 / num_classes / (640 / float(head.stride[level])) ** 2))
                for row, source in kept.items():
                    new.weight[row] = old.weight[source]
                    new.bias[row] = old.bias[source]
            layers[-1] = new
    head.nc = num_classes
    head.no = num_classes + head.reg_max * 4
    detector.nc = num_classes
    detector.yaml["nc"] = num_classes
    detector.names = {i: str(i) for i in range(num_classes)}


def set_names(detector: DetectionModel, names: Mapping[int, str]) -> None:
    """Write the class names that Ultralytics shows.

    Raises:
        ConfigError: The names are not those of classes 0, 1, ... of the model.
    """
    _check_names(names, detector.model[-1].nc)
    detector.names = {int(k): str(v) for k, v in names.items()}


def _check_names(names: Mapping[int, str], classes: int | None) -> None:
    if len(names) != classes:
        raise ConfigError(f"{len(names)} class names for a model of {classes} classes")
    if sorted(int(number) for number in names) != list(range(classes)):
        raise ConfigError(f"the class names are numbered {sorted(names)}: number them 0 to {classes - 1}")


def _replace_norms(detector: DetectionModel, norm: str) -> None:
    for name, module in list(detector.named_modules()):
        if norm == "group" and isinstance(module, Conv) and isinstance(getattr(module, "bn", None), _BATCH_NORMS):
            # Stock Ultralytics fuses every Conv that has a `bn`. One without it, whose forward is `forward_fuse`,
            # is what its own fused models consist of and is left alone.
            module.conv = nn.Sequential(module.conv, group_norm_from_batch_norm(module.bn))
            del module.bn
            module.forward = module.forward_fuse
            continue
        for child_name, child in list(module.named_children()):
            if norm == "frozen_bn" and isinstance(child, nn.BatchNorm2d):
                setattr(module, child_name, FrozenBatchNorm2d.from_batch_norm(child))
            elif norm == "group" and isinstance(child, _BATCH_NORMS) and not isinstance(module, Conv):
                raise ModelError(
                    f"norm=group cannot replace {name}.{child_name} ({type(module).__name__}): use frozen_bn"
                )


def set_trainable(detector: DetectionModel, trainable: str | Sequence[str] = "all") -> list[str]:
    """Choose the parameters that train and freeze the others; return their names.

    ``all``; ``head`` (the Detect layer); ``neck_and_head`` (everything after the backbone); ``norm_and_bias`` (scale
    and shift of the norm layers and every bias); or a shell pattern, or several, on the names, such as
    ``model.2[0-3].*``. The fixed weights of the DFL layer never train.

    Raises:
        ConfigError: A pattern matches no parameter.
    """
    patterns = [trainable] if isinstance(trainable, str) else list(trainable)
    modules = dict(detector.named_modules())
    last = len(detector.model) - 1
    backbone = len(detector.yaml["backbone"])

    def belongs(name: str, group: str) -> bool:
        index = int(name.split(".")[1])
        if group == "all":
            return True
        if group == "head":
            return index == last
        if group == "neck_and_head":
            return index >= backbone
        if group == "norm_and_bias":
            owner = modules[name.rpartition(".")[0]]
            return name.endswith(".bias") or isinstance(owner, nn.GroupNorm | FrozenBatchNorm2d)
        return fnmatch.fnmatchcase(name, group)

    chosen: list[str] = []
    parameters = {n: p for n, p in detector.named_parameters() if ".dfl." not in n}
    for pattern in patterns:
        matched = [name for name in parameters if belongs(name, pattern)]
        if not matched:
            raise ConfigError(
                f"trainable={pattern!r} matches no parameter: use {', '.join(GROUPS)} or patterns such as 'model.22.*'"
            )
        chosen += matched
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(name in set(chosen))
    return [name for name in parameters if name in set(chosen)]


def stock_copy(detector: DetectionModel) -> DetectionModel:
    """Return a copy made of Ultralytics' and torch's own classes only, in eval mode."""
    stock = copy.deepcopy(detector)
    for module in list(stock.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FrozenBatchNorm2d):
                setattr(module, name, child.to_batch_norm())
    for leftover in ("criterion", "pt_path", "class_weights"):
        stock.__dict__.pop(leftover, None)
    stock.args = {"task": "detect"}
    for parameter in stock.parameters():
        parameter.requires_grad_(True)
    return stock.eval()


def save_weights(
    detector: DetectionModel,
    file: str | Path,
    *,
    half: bool = False,
    write: Callable[[Path, Callable[[IO[bytes]], object]], object] = write_atomically,
) -> Path:
    """Write a checkpoint that ``ultralytics.YOLO(file)`` opens without dptrain; ``write`` does it, and may seal it.

    It holds the model and nothing about the run: a whitelist of one.
    """
    stock = stock_copy(detector).cpu()
    if half:
        stock = stock.half()
    train_args = {"task": "detect", "data": None}
    payload = {"model": stock, "ema": None, "train_args": train_args, "license": "AGPL-3.0"}
    write(Path(file), lambda stream: torch.save(payload, stream))
    return Path(file)
