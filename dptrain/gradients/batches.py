"""Batches of any kind as rows of examples: how many there are, and some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

_OBJECT_KEYS = ("batch_idx", "cls", "bboxes")


def batch_size(batch: Any) -> int:
    """Return the number of examples: the length of the first tensor, or of ``img`` in a detection batch."""
    if isinstance(batch, Tensor):
        return len(batch)
    if isinstance(batch, Mapping):
        return batch_size(batch["img"] if "img" in batch else next(iter(batch.values())))
    if isinstance(batch, tuple | list) and batch:
        return batch_size(batch[0])
    raise ModelError(f"cannot tell the number of examples of a {type(batch).__name__}: use a tensor, tuple or dict")


def take_examples(batch: Any, start: int, stop: int) -> Any:
    """Return the batch that holds the examples from ``start`` to before ``stop``.

    Tensors are cut along their first dimension, and copied: how they lie in memory can show in the last digits of what
    is computed from them. In a detection batch (a mapping with ``batch_idx``) the rows of ``batch_idx``, ``cls`` and
    ``bboxes`` are those of the images' objects.
    """
    if isinstance(batch, Tensor):
        return batch[start:stop].clone()
    if isinstance(batch, Mapping):
        if "batch_idx" not in batch:
            return {key: take_examples(value, start, stop) for key, value in batch.items()}
        image = batch["batch_idx"].view(-1)
        own = (image >= start) & (image < stop)
        taken = {key: take_examples(value, start, stop) for key, value in batch.items() if key not in _OBJECT_KEYS}
        taken |= {key: batch[key][own] for key in _OBJECT_KEYS if key in batch}
        taken["batch_idx"] = torch.sub(taken["batch_idx"], start)
        return taken
    if isinstance(batch, tuple | list):
        return type(batch)(take_examples(value, start, stop) for value in batch)
    return batch


def in_pieces(batch: Any, most: int) -> list[Any]:
    """Return the batch as batches of at most ``most`` examples, in its order."""
    size = batch_size(batch)
    if size <= most:
        return [batch]
    return [take_examples(batch, start, min(start + most, size)) for start in range(0, size, most)]
