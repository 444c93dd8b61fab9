"""Dirac canaries: training examples whose gradient is one coordinate of the parameters and nothing else.

A canary must enter where a unit's gradient enters, or the audit would test a copy of the training loop. So it is an
example of the dataset like any other, drawn by the same coins, and its gradient comes out of the same backward pass:
its loss is ``scale * w`` for one weight w of one layer of the model, got by *calling that layer* on an input that is 1
at one place, so that the engine's own rule for the layer forms the gradient ``scale * e_w``. It is longer than the clip
norm, so the clip makes it C e_w. Whatever the engine, the clip, the sum or the noise get wrong shows at w.

The mark of a canary rides in its label, as a class number below 0, so it passes every loader and engine unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..gradients import LossFunction

_MOST_LAYERS = 12  # that hold canaries; every one costs time
_LENGTH = 10.0  # of a canary's gradient in clip norms: one that escapes the clip is seen


class Examples(Protocol):
    """A dataset of images with boxes, such as ``DetectionDataset``."""

    imgsz: int

    def __len__(self) -> int: ...

    def sample(self, index: int, seed: int = 0) -> dict[str, Tensor]: ...


class WithCanaries:
    """The examples of a dataset, and after them one for each canary that is in it; their images are blank."""

    def __init__(self, examples: Examples, included: np.ndarray) -> None:
        self.examples, self.imgsz = examples, examples.imgsz
        self._canaries = np.flatnonzero(included)

    def __len__(self) -> int:
        return len(self.examples) + len(self._canaries)

    def sample(self, index: int, seed: int = 0) -> dict[str, Tensor]:
        """Return example ``index``, see ``DetectionDataset.sample``; a canary k has one box of class -1 - k."""
        if index < len(self.examples):
            return self.examples.sample(index, seed)
        number = int(self._canaries[index - len(self.examples)])
        return {
            "img": torch.zeros((3, self.imgsz, self.imgsz), dtype=torch.uint8),
            "cls": torch.tensor([[-1.0 - number]]),
            "bboxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]]),
        }


@dataclass(frozen=True)
class Site:
    """The canaries of one layer: numbers ``first`` to ``first + len(entries) - 1``, each an entry of its weight."""

    layer: str
    first: int
    entries: np.ndarray


def choose_sites(module: nn.Module, count: int) -> list[Site]:
    """Spread ``count`` canaries over the weights of the module's convolutions and linear layers, by their sizes.

    Of more than 12 such layers, that many are taken at even distances; every one costs time.

    Raises:
        ConfigError: They have fewer weights than that, and two canaries cannot share one.
    """
    names = [name for name, layer in module.named_modules() if _can_hold(layer)]
    layers = dict(module.named_modules())
    sizes = {name: layers[name].weight.numel() for name in names}
    if len(names) > _MOST_LAYERS:
        even = [names[int(i)] for i in np.linspace(0, len(names) - 1, _MOST_LAYERS).round()]
        # Where those are too small, the largest ones do.
        names = even if sum(sizes[name] for name in even) >= count else sorted(names, key=lambda n: -sizes[n])
        names = names[:_MOST_LAYERS]
    room = sum(sizes[name] for name in names)
    if room < count:
        raise ConfigError(
            f"canaries={count} is more than the {room} weights of convolutions and linear layers that train: use "
            "fewer canaries, or audit a larger model"
        )
    ends = np.floor(np.cumsum([sizes[name] for name in names]) * (count / room)).astype(int)
    ends[-1] = count
    sites = []
    for name, first, end in zip(names, [0, *ends[:-1]], ends, strict=True):
        entries = np.linspace(0, sizes[name] - 1, int(end - first)).round().astype(int)
        sites.append(Site(name, int(first), entries))
    return [site for site in sites if len(site.entries)]


def _can_hold(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and layer.weight.requires_grad
    return type(layer) is nn.Linear and layer.weight.requires_grad


@torch.no_grad()
def read_sites(module: nn.Module, sites: Sequence[Site]) -> np.ndarray:
    """Return the weight of every canary, by number, in double precision, shape (m,)."""
    layers = dict(module.named_modules())
    parts = [layers[site.layer].weight.flatten()[torch.from_numpy(site.entries)].double().cpu() for site in sites]
    return torch.cat(parts).numpy()


class DiracLoss:
    """A loss function with canaries: ``scale * w`` for a canary, and the model's own loss for every other example.

    Formal guarantee: the gradient of a canary over all trainable parameters is exactly ``scale`` at its weight and 0
    elsewhere (a bias is taken off by a second call of the layer on zeros).

    Args:
        loss: The model's loss, one an example; given batches of images and boxes without the marks.
        sites: From :func:`choose_sites`.
        clip_norm: Of the plan; the canaries' gradients are ten times as long.
    """

    def __init__(self, loss: LossFunction, sites: Sequence[Site], clip_norm: float) -> None:
        self.loss, self.sites, self.scale = loss, tuple(sites), _LENGTH * clip_norm

    def __call__(self, module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        marked = batch["cls"].view(-1) < 0
        if not bool(marked.any()):
            return self.loss(module, batch)
        examples = batch["batch_idx"].view(-1)[marked].long()
        numbers = (-1.0 - batch["cls"].view(-1)[marked]).long()
        kept = {key: batch[key][~marked] for key in ("batch_idx", "cls", "bboxes")}
        losses = self.loss(module, {**batch, **kept})
        layers = dict(module.named_modules())
        weights = torch.zeros_like(losses)
        for site in self.sites:
            here = (numbers >= site.first) & (numbers < site.first + len(site.entries))
            if bool(here.any()):
                entries = torch.from_numpy(site.entries).to(numbers.device)[numbers[here] - site.first]
                found = _weights_by_calling(layers[site.layer], entries, examples[here], len(losses), batch["img"])
                weights = weights.index_add(0, examples[here], found.to(losses.dtype))
        canary = torch.zeros(len(losses), dtype=torch.bool, device=losses.device).index_fill(0, examples, True)
        return torch.where(canary, self.scale * weights, losses)


def _weights_by_calling(layer: Any, entries: Tensor, examples: Tensor, count: int, like: Tensor) -> Tensor:
    """Return entries of a layer's weight as outputs of the layer, each from its own example; shape (k,)."""
    if isinstance(layer, nn.Linear):
        out, into = entries // layer.in_features, entries % layer.in_features
        probe = like.new_zeros((count, layer.in_features))
        probe[examples, into] = 1.0
        return _without_bias(layer, probe)[examples, out]
    shape = layer.weight.shape
    places = np.unravel_index(entries.cpu().numpy(), shape)
    out, channel, i, j = (torch.from_numpy(place).to(examples.device) for place in places)
    channel = channel + out // (shape[0] // layer.groups) * shape[1]
    # The first window that touches no padding, and where it starts: its taps then all meet pixels.
    windows = [math.ceil(pad / step) for pad, step in zip(layer.padding, layer.stride, strict=True)]
    starts = [window * step - pad for window, step, pad in zip(windows, layer.stride, layer.padding, strict=True)]
    sides = [start + gap * (taps - 1) + 1 for start, gap, taps in zip(starts, layer.dilation, shape[2:], strict=True)]
    probe = like.new_zeros((count, layer.in_channels, *sides))
    probe[examples, channel, starts[0] + i * layer.dilation[0], starts[1] + j * layer.dilation[1]] = 1.0
    return _without_bias(layer, probe)[examples, out, windows[0], windows[1]]


def _without_bias(layer: Any, probe: Tensor) -> Tensor:
    output = layer(probe)
    return output if layer.bias is None else output - layer(torch.zeros_like(probe))
