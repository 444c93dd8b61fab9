"""The head of a detector: its classes, its first class weights, and which of YOLO26's two branches it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

from ..errors import ConfigError, ModelError

HEADS = ("auto", "both", "one_to_many", "one_to_one")
NEW_CLASSES = ("random", "zero", "mean")


class OneToOneDetect(Detect):
    """A head whose one-to-many branch was dropped, as Ultralytics does for inference, and that can still be trained.

    Ultralytics trains the one-to-one branch on detached features, and leaves the layers before it to the other one.
    Here it is the only one, so its gradient reaches them.
    """

    def forward(self, x: list[Tensor]) -> Any:
        if self.training:
            return {"one2one": self.forward_head(x, **self.one2one)}
        return super().forward(x)


def choose_head(detector: DetectionModel, head: str, source: str) -> None:
    """Drop the branch that is not asked for.

    Raises:
        ConfigError: ``head`` is not one of the choices.
        ModelError: The detector does not have that branch.
    """
    if head not in HEADS:
        raise ConfigError(f"head={head!r} is not one of {', '.join(HEADS)}")
    detect = detector.model[-1]
    has = {"one_to_many": detect.cv2 is not None, "one_to_one": getattr(detect, "one2one_cv2", None) is not None}
    wanted = has if head == "auto" else {name: head in ("both", name) for name in has}
    missing = [name for name in has if wanted[name] and not has[name]]
    if missing:
        raise ModelError(f"head={head}: {source!r} has no {missing[0]} branch; use head=auto, or a yolo26 detector")
    if has["one_to_one"] and not wanted["one_to_one"]:
        del detect.one2one_cv2, detect.one2one_cv3
        detector.yaml["end2end"] = False
    if not wanted["one_to_many"]:
        detect.cv2 = detect.cv3 = None  # as Ultralytics' Detect.fuse leaves it: it then answers without suppression
        detect.__class__ = OneToOneDetect


def class_branches(detector: DetectionModel) -> list[Any]:
    """Return the class branches of the head, one or two, each a ModuleList of a Sequential a level."""
    head = detector.model[-1]
    return [branch for branch in (head.cv3, getattr(head, "one2one_cv3", None)) if branch is not None]


def set_classes(
    detector: DetectionModel,
    num_classes: int | None,
    names: Mapping[int, str] | None,
    new_classes: str = "random",
    similar: Mapping[str, str] | None = None,
) -> None:
    """Give a checkpoint's head ``num_classes`` outputs.

    Rows of classes with the same name are kept, and a class of ``similar`` begins as the old one that it names. The
    others begin as ``new_classes`` says: ``random`` weights; ``zero``, so that every place has the score of the bias;
    or the ``mean`` of the old classes. Their bias is that of a rare class. With as many classes as before, ``random``
    lets the rows of classes with other names stay.

    ``detector.unfilled_layers`` then names the new layers that the checkpoint does not fill whole, and
    ``detector.lacks_classes`` is whether the data has classes that the checkpoint has not, also where it fills all.
    """
    if new_classes not in NEW_CLASSES:
        raise ConfigError(f"new_classes={new_classes!r} is not one of {', '.join(NEW_CLASSES)}")
    head = detector.model[-1]
    old_names = {_plain(v): k for k, v in dict(detector.names).items() if str(k) != str(v)}
    new_names = {k: _plain(v) for k, v in (names or {}).items()}
    wanted = {**{name: name for name in new_names.values()}, **_similar(similar, old_names, new_names)}
    kept = {row: old_names[wanted[name]] for row, name in new_names.items() if wanted[name] in old_names}
    detector.unfilled_layers = ()
    known = {_plain(v) for v in dict(detector.names).values()}  # also names that are only numbers, as of digits
    detector.lacks_classes = not known.issuperset(wanted[name] for name in new_names.values())
    stays = num_classes == head.nc and all(new == old for new, old in kept.items())
    if num_classes is None or (stays and (new_classes == "random" or len(kept) == num_classes or not names)):
        return
    for branch in class_branches(detector):
        for level, layers in enumerate(branch):
            old = layers[-1]
            new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size)
            assert new.bias is not None and old.bias is not None
            with torch.no_grad():
                if new_classes == "zero":
                    new.weight.zero_()
                elif new_classes == "mean":
                    new.weight.copy_(old.weight.mean(0, keepdim=True).expand_as(new.weight))
                # The prior of Detect.bias_init: about five objects in a 640 px image.
                new.bias.fill_(math.log(5 / num_classes / (640 / float(head.stride[level])) ** 2))
                for row, source in kept.items():
                    new.weight[row] = old.weight[source]
                    new.bias[row] = old.bias[source]
            layers[-1] = new
    if len(kept) < num_classes:
        new_layers = {id(layers[-1]) for branch in class_branches(detector) for layers in branch}
        detector.unfilled_layers = tuple(name for name, m in detector.named_modules() if id(m) in new_layers)
    head.nc = num_classes
    head.no = num_classes + head.reg_max * 4
    detector.nc = num_classes
    detector.yaml["nc"] = num_classes
    detector.names = {i: str(i) for i in range(num_classes)}


def _plain(name: Any) -> str:
    return str(name).strip().lower()


def _similar(
    similar: Mapping[str, str] | None, old_names: Mapping[str, int], new_names: Mapping[int, str]
) -> dict[str, str]:
    found = {_plain(new): _plain(old) for new, old in (similar or {}).items()}
    for new, old in found.items():
        if new not in new_names.values():
            raise ConfigError(f"similar_classes has {new!r}, which is not a class of the data")
        if old not in old_names:
            raise ConfigError(f"similar_classes has {new!r}: {old!r}, and the start has no class {old!r}")
    return found


def set_names(detector: DetectionModel, names: Mapping[int, str]) -> None:
    """Write the class names that Ultralytics shows.

    Raises:
        ConfigError: The names are not those of classes 0, 1, ... of the model.
    """
    check_names(names, detector.model[-1].nc)
    detector.names = {int(k): str(v) for k, v in names.items()}


def check_names(names: Mapping[int, str], classes: int | None) -> None:
    """Refuse names that are not those of ``classes`` classes, numbered from 0."""
    if len(names) != classes:
        raise ConfigError(f"{len(names)} class names for a model of {classes} classes")
    if sorted(int(number) for number in names) != list(range(classes)):
        raise ConfigError(f"the class names are numbered {sorted(names)}: number them 0 to {classes - 1}")
