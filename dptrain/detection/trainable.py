"""Which parameters of a detector train: groups by name, patterns, and low-rank adapters."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from ultralytics.nn.tasks import DetectionModel

from ..errors import ConfigError
from ..gradients.modules import FrozenBatchNorm2d, LowRankConv2d

GROUPS = ("all", "head", "neck_and_head", "norm_and_bias", "head_and_norms", "lora", "new_classes")
RANK = 4


@dataclass(frozen=True)
class Lora:
    """How ``trainable=lora`` adapts convolutions.

    Attributes:
        rank: Outputs of the first convolution of an adapter.
        alpha: The adapter is multiplied by ``alpha / rank``; default ``rank``.
        targets: ``all``, ``head``, ``neck_and_head`` or patterns on parameter names: whose convolutions are adapted.
    """

    rank: int = RANK
    alpha: float | None = None
    targets: tuple[str, ...] = ("all",)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


def set_trainable(detector: DetectionModel, trainable: str | Sequence[str] = "all") -> list[str]:
    """Let the parameters train that :func:`trainable_names` finds, and freeze the others; return their names.

    Raises:
        ConfigError: A pattern matches no parameter.
    """
    chosen = trainable_names(detector, trainable)
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def trainable_names(detector: DetectionModel, trainable: str | Sequence[str] = "all") -> list[str]:
    """Return the names of the parameters that ``trainable`` stands for, in the detector's order.

    ``all``; ``head`` (the Detect layer); ``neck_and_head`` (everything after the backbone); ``norm_and_bias`` (scale
    and shift of the norm layers and every bias); ``head_and_norms`` (both); ``lora`` (the adapters that
    :func:`dptrain.detection.load_model` put in, and the weights that :func:`add_adapters` left to train as they are);
    ``new_classes`` (the layers that the checkpoint did not fill: the last of every class branch, where the data has
    classes that the start lacks); ``layers_from_10`` (what ``freeze=10`` of Ultralytics leaves); or a shell pattern, or
    several, on the names, such as ``model.2[0-3].*``. The fixed weights of the DFL layer never train.

    Raises:
        ConfigError: A pattern matches no parameter.
    """
    patterns = [trainable] if isinstance(trainable, str) else list(trainable)
    modules = dict(detector.named_modules())
    parameters = {name: p for name, p in detector.named_parameters() if ".dfl." not in name}
    whole = set(getattr(detector, "trained_whole", ()))
    unfilled: Sequence[str] | None = getattr(detector, "unfilled_layers", None)  # None: the start is random

    def belongs(name: str, group: str) -> bool:
        owner = modules[name.rpartition(".")[0]]
        if group == "lora":
            above = modules[name.rpartition(".")[0].rpartition(".")[0]]
            return name in whole or (isinstance(above, LowRankConv2d) and owner is not above.base)
        if group == "new_classes":
            return any(name.startswith(f"{layer}.") for layer in unfilled or ())
        if group == "norm_and_bias":
            return name.endswith(".bias") or isinstance(owner, nn.GroupNorm | FrozenBatchNorm2d)
        if group == "head_and_norms":
            return belongs(name, "head") or belongs(name, "norm_and_bias")
        return _in_part(detector, name, group)

    chosen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in parameters if belongs(name, pattern)]
        if not matched and pattern == "lora":
            raise ConfigError("trainable='lora' and the detector has no adapters: load it with trainable='lora'")
        if not matched and pattern == "new_classes":
            raise ConfigError(
                "trainable=new_classes, and there are none: "
                + (
                    "every layer of a random start is new; use all"
                    if unfilled is None
                    else "the start has weights for every class of the data; use head, neck_and_head or all"
                )
            )
        if not matched:
            raise ConfigError(
                f"trainable={pattern!r} matches no parameter: use {', '.join(GROUPS)} or patterns such as 'model.22.*'"
            )
        chosen.update(matched)
    return [name for name in parameters if name in chosen]


def _in_part(detector: DetectionModel, name: str, group: str) -> bool:
    index = int(name.split(".")[1])
    if group == "all":
        return True
    if group == "head":
        return index == len(detector.model) - 1
    if group == "neck_and_head":
        return index >= len(detector.yaml["backbone"])
    if first := re.fullmatch(r"layers_from_(\d+)", group):
        return index >= int(first[1])
    return fnmatch.fnmatchcase(name, group)


def add_adapters(detector: DetectionModel, lora: Lora) -> None:
    """Put a low-rank adapter beside every target convolution; nothing of what the detector computes changes.

    A convolution that has no more numbers than its adapter would have, such as the last one of a class head of few
    classes, is left to train as it is. Grouped convolutions have few numbers, and no adapter; they stay as they are.

    Raises:
        ConfigError: A target matches no convolution.
    """
    reached: set[str] = set()
    whole: list[str] = []
    for owner_name, owner in list(detector.named_modules()):
        for child_name, conv in list(owner.named_children()):
            name = f"{owner_name}.{child_name}.weight"
            hits = [target for target in lora.targets if type(conv) is nn.Conv2d and _in_part(detector, name, target)]
            if not hits or ".dfl." in name or conv.groups != 1:
                continue
            reached.update(hits)
            taps = conv.weight[0].numel()
            if lora.rank * (taps + conv.out_channels) >= conv.weight.numel():
                whole.append(name)
            else:
                setattr(owner, child_name, LowRankConv2d(conv, lora.rank, lora.scale))
    missed = [target for target in lora.targets if target not in reached]
    if missed:
        raise ConfigError(f"lora.targets={missed[0]!r} matches no convolution: use all, neck_and_head or 'model.22.*'")
    detector.trained_whole = whole
