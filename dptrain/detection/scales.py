"""How large the gradients of a detector's layers are on public images: the scales of ``privacy.clipping=scaled``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from torch import nn

from ..errors import ConfigError, DataError
from ..gradients import per_sample_gradients, trainable_parameters
from ..gradients.autotune import by_rule
from .data import DataConfig, DetectionDataset, load_data
from .loader import collate, to_device
from .loss import PerImageLoss

IMAGES = 64  # 128 drawn digits and 128 handwritten ones gave sizes within a tenth of each other
_RANGE = 100.0  # a layer that hardly learns would else be scaled up until its noise is all that is left

Item = TypeVar("Item")


def spread(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return at most :data:`IMAGES` of some items, evenly from the first on."""
    return tuple(items[:: max(1, len(items) // IMAGES)][:IMAGES])


def public_part(file: str, private: DataConfig) -> DataConfig:
    """Return the public images that the layers are measured on: train images of a data.yaml, spread over all of them.

    Raises:
        ConfigError: Its classes are not those of the private images.
        DataError: The file cannot be read.
    """
    public = load_data(file, private.labels)
    if public.names != private.names:
        raise ConfigError(f"privacy.clip_scales={file} has other names of classes than {private.file}: make them one")
    return replace(public, train=spread(public.train))


def layer_scales(model: nn.Module, loss: PerImageLoss, images: DetectionDataset) -> tuple[tuple[str, float], ...]:
    """Return a number for every layer that trains, the larger the smaller a typical entry of its gradient is.

    They are inverse to the root mean square of the entries, over the gradients of all images, each taken to
    norm 1, and within a factor of 100 of each other; together they leave the norm of such a gradient about as it was.
    All are powers of two, which round nothing. The same weights and images give the same.

    Nothing of this is noised: the images must be public.

    Raises:
        DataError: No image gives any layer a gradient.
    """
    device = next(model.parameters()).device
    sizes: Counter[str] = Counter()
    for name, parameter in trainable_parameters(model).items():
        sizes[_layer(name)] += parameter.numel()
    energy = dict.fromkeys(sizes, 0.0)
    with by_rule():
        for index in range(len(images)):
            batch = to_device(collate([images.sample(index)]), device)
            gradients = per_sample_gradients(model, loss, batch)  # of one image: nothing of size images x parameters
            squares = {name: float(rows.double().square().sum()) for name, rows in gradients.items()}
            whole = sum(squares.values())
            if 0.0 < whole < math.inf:
                for name, square in squares.items():
                    energy[_layer(name)] += square / whole
    typical = {layer: math.sqrt(energy[layer] / sizes[layer]) for layer in energy}
    floor = max(typical.values()) / _RANGE
    if floor == 0.0:
        raise DataError(
            f"none of the {len(images)} public images of privacy.clip_scales ({images.split} of {images.data.file}) "
            "gives a finite gradient that is not 0, so the layers' gradients cannot be measured: name others, or set "
            "privacy.clipping=flat"
        )
    scales = {layer: 1.0 / max(size, floor) for layer, size in typical.items()}
    longer = math.sqrt(sum(scales[layer] ** 2 * energy[layer] for layer in energy) / sum(energy.values()))
    return tuple((layer, 2.0 ** round(math.log2(scale / longer))) for layer, scale in scales.items())


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]
