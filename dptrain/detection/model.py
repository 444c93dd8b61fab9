"""Ultralytics detectors that are safe for DP-SGD, and weights that stock Ultralytics opens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules import Conv, Detect, DWConv, RepConv, RepVGGDW
from ultralytics.nn.tasks import DetectionModel, guess_model_task, torch_safe_load
from ultralytics.utils import LOGGER

from ..errors import ConfigError, ModelError, SealError
from ..gradients.modules import CentredConv2d, FrozenBatchNorm2d, LowRankConv2d, group_norm_from_batch_norm
from ..gradients.rules import register_pair
from ..sealing.weights import is_weights, plain_weights
from ..support.files import refuse_damage, write_atomically
from .description import read_description, refuse_code
from .heads import OneToOneDetect, check_names, choose_head, class_branches, set_classes, set_names
from .trainable import Lora, add_adapters, set_trainable

NORMS = ("auto", "frozen_bn", "group")
_BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)

register_pair(Conv, "conv", "bn")
register_pair(DWConv, "conv", "bn")


def load_model(
    model: str | Path,
    num_classes: int | None = None,
    *,
    norm: str = "auto",
    trainable: str | Sequence[str] = "all",
    names: Mapping[int, str] | None = None,
    head: str = "auto",
    lora: Lora | None = None,
    new_classes: str = "random",
    similar: Mapping[str, str] | None = None,
) -> DetectionModel:
    """Load a detector, such as YOLOv8, YOLO11 or YOLO26, whose layers treat every image on its own.

    Args:
        model: A model description (``yolo26n.yaml``) or a checkpoint file (``.pt``, or ``.pt.age``, which is opened in
            memory with the key of the environment). Nothing is downloaded.
        num_classes: Classes of the data; the last layer of the class head is new where it differs from the
            checkpoint's, except for classes of the same name, and every other layer is kept.
        norm: ``frozen_bn`` keeps the checkpoint's public statistics; ``group`` puts group normalisation in the place
            of every batch normalisation and keeps eps, scale and shift; ``auto`` is ``frozen_bn`` for a checkpoint that
            has batch normalisation and ``group`` otherwise.
        trainable: What receives gradients, see :func:`set_trainable`; ``lora`` puts adapters in.
        names: Class names by number, written into the model.
        head: ``both`` branches of YOLO26, or ``one_to_many`` or ``one_to_one`` without the other; ``auto`` is what the
            start has.
        lora: Rank and targets of the adapters.
        new_classes: First weights of classes that the start does not have: ``random``, ``zero`` or the ``mean`` of its
            classes.
        similar: Class of the data to the class of the start that it begins as.

    Raises:
        ModelError: The file is missing, unreadable, not a plain detector, or has not the branch asked for.
        ConfigError: A setting is not one of the choices.
    """
    if norm not in NORMS:
        raise ConfigError(f"norm={norm!r} is not one of {', '.join(NORMS)}")
    if names is not None and num_classes is None:
        num_classes = len(names)
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes={num_classes}: a detector needs at least one class")
    if names is not None:
        check_names(names, num_classes)
    file = Path(model)
    if file.suffix in (".yaml", ".yml"):
        detector = _from_yaml(str(model), num_classes)
        has_statistics = False
        _begin_classes(detector, new_classes, similar)
    elif is_weights(file):
        detector = _from_checkpoint(file)
        has_statistics = any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
        set_classes(detector, num_classes, names, new_classes, similar)
    else:
        raise ModelError(f"{str(model)!r}: expected a model .yaml (such as yolo26n.yaml) or a .pt checkpoint")
    if norm == "auto":
        norm = "frozen_bn" if has_statistics else "group"
    if norm == "frozen_bn" and not has_statistics:
        raise ModelError(
            f"norm=frozen_bn needs public batch statistics and {str(model)!r} has none: use norm=group, or a checkpoint"
        )
    choose_head(detector, head, str(model))
    _replace_norms(detector, norm)
    if "lora" in ([trainable] if isinstance(trainable, str) else trainable):
        add_adapters(detector, lora or Lora())
    if names is not None:
        set_names(detector, names)
    detector.args = get_cfg()  # Ultralytics' default loss gains
    detector.task = "detect"
    detector.train()
    set_trainable(detector, trainable)
    return detector


def _begin_classes(detector: DetectionModel, new_classes: str, similar: Mapping[str, str] | None) -> None:
    if new_classes not in ("random", "zero"):
        raise ConfigError(f"new_classes={new_classes}: a description has no classes to begin from; use random or zero")
    if similar:
        raise ConfigError("similar_classes needs a checkpoint with classes: a description has none")
    for layers in (layers for branch in class_branches(detector) for layers in branch if new_classes == "zero"):
        nn.init.zeros_(layers[-1].weight)


def _from_yaml(name: str, num_classes: int | None) -> DetectionModel:
    description = read_description(name)
    with _quietly():  # it announces the number of classes on stdout
        task = guess_model_task(description)
        if task != "detect":
            raise ModelError(f"{name!r} is {_kind(task)}, not a detector: use one such as yolo26n.yaml")
        refuse_code(name, description)
        activation = Conv.default_act
        try:
            detector = DetectionModel(description, nc=num_classes, verbose=False)
        except Exception as error:  # values that do not fit their layers: many kinds
            raise ModelError(
                f"{name!r} does not describe a plain detector such as yolo26n.yaml ({_first_line(error)})"
            ) from error
        finally:
            Conv.default_act = activation  # of the process: a description that fails half-way would leave its own
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


def open_checkpoint(file: Path) -> DetectionModel:
    """Return the network of a checkpoint in single precision: a detector, or one of Ultralytics' kinds of it.

    Raises:
        ModelError: The file is missing, cannot be opened, or holds something else.
    """
    if not file.is_file():
        raise ModelError(f"checkpoint {str(file)!r}: no such file: put it there")
    try:
        with plain_weights(file) as plain:
            refuse_damage(plain)
            # By its whole path: a damaged yolo26n.pt in the working directory would be deleted and another downloaded.
            checkpoint, _ = torch_safe_load(plain.absolute(), safe_only=True)
        detector = (checkpoint.get("ema") or checkpoint["model"]).float()
    except (SealError, ConfigError):
        raise
    except Exception as error:  # unpickling fails in many ways; all mean the same to the user
        raise ModelError(f"{str(file)!r} is not a checkpoint that can be opened ({_first_line(error)})") from error
    if not isinstance(detector, DetectionModel):
        raise ModelError(f"{str(file)!r} holds a {type(detector).__name__}, not a detector")
    return detector


def _from_checkpoint(file: Path) -> DetectionModel:
    detector = open_checkpoint(file)
    try:
        _check_detector(detector, file)
    except ModelError:
        raise
    except Exception as error:  # what was pickled may lack any part
        raise ModelError(f"{str(file)!r} is not a whole detector ({_first_line(error)})") from error
    for leftover in ("criterion", "args", "pt_path", "class_weights"):
        detector.__dict__.pop(leftover, None)
    return detector


def _check_detector(detector: DetectionModel, file: Path) -> None:
    """A plain detector with all its parts, and weights that are numbers; what is missing raises anything."""
    with _quietly():
        task = getattr(detector, "task", None) or guess_model_task(detector)
    if task != "detect":
        raise ModelError(f"{str(file)!r} is {_kind(task)}, not a detector")
    if detector.is_fused() and not any(isinstance(m, nn.GroupNorm) for m in detector.modules()):
        raise ModelError(f"{str(file)!r} was fused for inference and has lost its norm layers: use the original")
    _check_head(detector, str(file))
    for name, tensor in detector.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{str(file)!r}: {name} holds values that are not finite numbers")
    names, classes = detector.names, detector.model[-1].nc
    if not isinstance(names, Mapping) or sorted(names) != list(range(classes)) or not detector.yaml["backbone"]:
        raise ModelError(f"{str(file)!r} does not name its {classes} classes")
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
            f"{name!r} has the head {type(head).__name__}, and its loss is not supported: "
            "dptrain trains detectors with Ultralytics' head Detect: v3 to v9, 11, 12 and 26"
        )


def _replace_norms(detector: DetectionModel, norm: str) -> None:
    for name, module in list(detector.named_modules()):
        if norm == "group" and isinstance(module, RepVGGDW) and hasattr(module, "conv1"):
            raise ModelError(
                f"norm=group: {name} (RepVGGDW) has branches that Ultralytics merges, which only batch norms allow: it "
                "could not open the weights; start from a checkpoint with norm=frozen_bn"
            )
        if norm == "group" and isinstance(module, Conv):
            if isinstance(getattr(module, "bn", None), _BATCH_NORMS):
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
                    f"norm={norm} cannot replace {name}.{child_name} ({type(module).__name__}): use frozen_bn"
                )


def norm_of(detector: DetectionModel) -> str:
    """Return the kind of norm that a loaded detector has: ``frozen_bn`` or ``group``."""
    kinds = {type(module) for module in detector.modules()}
    return "frozen_bn" if FrozenBatchNorm2d in kinds else "group"


def stock_copy(detector: DetectionModel) -> DetectionModel:
    """Return a copy made of Ultralytics' and torch's own classes only, in eval mode."""
    stock = copy.deepcopy(detector)
    for module in list(stock.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FrozenBatchNorm2d):
                setattr(module, name, child.to_batch_norm())
            elif isinstance(child, LowRankConv2d):
                setattr(module, name, child.folded())
            elif isinstance(child, CentredConv2d):
                plain, shift = child.folded()
                setattr(module, name, plain)
                if plain.bias is None:
                    module.bn.running_mean -= shift
        if isinstance(module, RepConv) and not any(isinstance(m, nn.BatchNorm2d) for m in module.modules()):
            # Stock Ultralytics merges its two branches, which group norms do not allow. With a `conv` they count as
            # merged, and what is then run is `forward_fuse`.
            module.conv = nn.Identity()
            module.forward_fuse = module.forward
    if isinstance(stock.model[-1], OneToOneDetect):
        stock.model[-1].__class__ = Detect
    for leftover in ("criterion", "pt_path", "class_weights", "trained_whole", "unfilled_layers", "lacks_classes"):
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
    train_args: Mapping[str, Any] | None = None,
    write: Callable[[Path, Callable[[IO[bytes]], object]], object] = write_atomically,
) -> Path:
    """Write a checkpoint that ``ultralytics.YOLO(file)`` opens without dptrain; ``write`` does it, and may seal it.

    It holds the model and what ``train_args`` says, such as the ``imgsz`` at which stock commands will use it, and
    nothing else about the run.
    """
    stock = stock_copy(detector).cpu()
    if half:
        stock = stock.half()
    told = {"task": "detect", "data": None, **(train_args or {})}
    payload = {"model": stock, "ema": None, "train_args": told, "license": "AGPL-3.0"}
    write(Path(file), lambda stream: torch.save(payload, stream))
    return Path(file)
