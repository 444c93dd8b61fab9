"""Batches as people make them (tensor, tuple, mapping, Ultralytics' collate), taken apart and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

_OBJECT_KEYS = ("batch_idx", "cls", "bboxes")  # of a detection batch: one row an object, not one an image


def batch_size(batch: Any) -> int:
    """Return the number of examples: the length of the first tensor, or of ``img`` in a detection batch."""
    if isinstance(batch, Tensor):
        return len(batch)
    if isinstance(batch, Mapping):
        return batch_size(batch["img"] if "img" in batch else next(iter(batch.values())))
    if isinstance(batch, tuple | list) and batch:
        return batch_size(batch[0])
    raise ModelError(f"cannot tell the number of examples of a {type(batch).__name__}: use a tensor, tuple or dict")


def take_example(batch: Any, index: int) -> Any:
    """Return the batch that holds example ``index`` alone.

    Tensors are sliced along their first dimension; those of another length than the batch belong to no example and are
    left as they are. In a detection batch (a mapping with ``batch_idx``) the rows of ``batch_idx``, ``cls`` and
    ``bboxes`` are those of the image's objects.
    """
    return _take(batch, index, batch_size(batch))


def _take(batch: Any, index: int, count: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[index : index + 1] if batch.dim() and len(batch) == count else batch
    if isinstance(batch, Mapping):
        if "batch_idx" not in batch:
            return {key: _take(value, index, count) for key, value in batch.items()}
        own = batch["batch_idx"].view(-1) == index
        example = {key: _take(value, index, count) for key, value in batch.items() if key not in _OBJECT_KEYS}
        example |= {key: batch[key][own] for key in _OBJECT_KEYS if key in batch}
        example["batch_idx"] = torch.zeros_like(example["batch_idx"])
        return example
    if isinstance(batch, tuple | list):
        return _like(batch, (_take(value, index, count) for value in batch))
    return batch


def _like(batch: tuple | list, values: Iterable[Any]) -> Any:
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)


def join_examples(examples: Sequence[Any], whole: Any) -> Any:
    """Return the batch of ``examples``, in their order; each is what :func:`take_example` took of ``whole``."""
    return _join(examples, whole, batch_size(whole))


def _join(examples: Sequence[Any], whole: Any, count: int) -> Any:
    first = examples[0]
    if isinstance(first, Tensor):
        return torch.cat(list(examples)) if whole.dim() and len(whole) == count else whole
    if isinstance(first, Mapping):
        objects = _OBJECT_KEYS if "batch_idx" in first else ()
        joined = {
            key: torch.cat([example[key] for example in examples])
            if key in objects
            else _join([example[key] for example in examples], whole[key], count)
            for key in first
        }
        if objects:
            owners = [torch.full_like(example["batch_idx"], number) for number, example in enumerate(examples)]
            joined["batch_idx"] = torch.cat(owners)
        return joined
    if isinstance(first, tuple | list):
        columns = zip(*examples, strict=True)
        return _like(first, (_join(column, part, count) for column, part in zip(columns, whole, strict=True)))
    return first
