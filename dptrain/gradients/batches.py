"""Batches of any kind as examples: how many there are, some of them, and single ones put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

_OBJECT_KEYS = ("batch_idx", "cls", "bboxes")  # of a detection batch: one row an object, not one an image


@dataclass(frozen=True)
class UnitBatch:
    """Whole privacy units of several examples each, as one batch. What takes batches apart never splits a unit.

    Attributes:
        examples: The batch itself.
        units: The unit of every example, whole numbers of shape (n,) on the CPU: 0, 0, 1, 2, 2, ...
    """

    examples: Any
    units: Tensor


def batch_size(batch: Any) -> int:
    """Return the number of examples: the length of the first tensor, or of ``img`` in a detection batch.

    Of a :class:`UnitBatch` it is the number of units.
    """
    if isinstance(batch, UnitBatch):
        return int(batch.units[-1]) + 1 if len(batch.units) else 0
    if isinstance(batch, Tensor):
        return len(batch)
    if isinstance(batch, Mapping):
        return batch_size(batch["img"] if "img" in batch else next(iter(batch.values())))
    if isinstance(batch, tuple | list) and batch:
        return batch_size(batch[0])
    raise ModelError(f"cannot find the number of examples of a {type(batch).__name__}: use a tensor, tuple or dict")


def take_examples(batch: Any, start: int, stop: int) -> Any:
    """Return the batch that holds the examples from ``start`` to before ``stop``.

    Tensors are cut along their first dimension, and copied: how they lie in memory can show in the last digits of what
    is computed from them. Those of another length than the batch belong to no example and are left as they are. In a
    detection batch (a mapping with ``batch_idx``) the rows of ``batch_idx``, ``cls`` and ``bboxes`` are those of the
    images' objects. Of a :class:`UnitBatch` whole units are taken.
    """
    if isinstance(batch, UnitBatch):
        first, last = torch.searchsorted(batch.units, torch.tensor([start, stop])).tolist()
        return UnitBatch(take_examples(batch.examples, first, last), batch.units[first:last] - start)
    return _take(batch, start, stop, batch_size(batch))


def _take(batch: Any, start: int, stop: int, count: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop].clone() if batch.dim() and len(batch) == count else batch
    if isinstance(batch, Mapping):
        if "batch_idx" not in batch:
            return {key: _take(value, start, stop, count) for key, value in batch.items()}
        image = batch["batch_idx"].view(-1)
        own = (image >= start) & (image < stop)
        taken = {key: _take(value, start, stop, count) for key, value in batch.items() if key not in _OBJECT_KEYS}
        taken |= {key: batch[key][own] for key in _OBJECT_KEYS if key in batch}
        taken["batch_idx"] = torch.sub(taken["batch_idx"], start)
        return taken
    if isinstance(batch, tuple | list):
        return _like(batch, (_take(value, start, stop, count) for value in batch))
    return batch


def join_examples(examples: Sequence[Any], whole: Any) -> Any:
    """Return the batch of ``examples``, in their order; each is one example that was taken of ``whole``."""
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


def _like(batch: tuple | list, values: Iterable[Any]) -> Any:
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)


def fill_up(batch: Any, size: int) -> Any:
    """Return the batch with blank examples, all zeros, after its own, so that it has ``size`` of them.

    Blank images of a detection batch have no objects. Of a :class:`UnitBatch` they are units of their own.
    """
    if isinstance(batch, UnitBatch):
        count, blank = len(batch.units), size - len(batch.units)
        most = int(torch.bincount(batch.units).max()) if count else 1  # no blank unit is larger than the others
        units = batch_size(batch) + torch.arange(max(blank, 0)) // most
        return UnitBatch(fill_up(batch.examples, size), torch.cat((batch.units, units.to(batch.units.dtype))))
    count = batch_size(batch)
    return batch if count >= size else _fill_up(batch, size - count, count)


def _fill_up(batch: Any, blank: int, count: int) -> Any:
    if isinstance(batch, Tensor):
        if not batch.dim() or len(batch) != count:
            return batch
        return torch.cat((batch, batch.new_zeros(blank, *batch.shape[1:])))
    if isinstance(batch, Mapping):
        objects = _OBJECT_KEYS if "batch_idx" in batch else ()
        return {key: value if key in objects else _fill_up(value, blank, count) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return _like(batch, (_fill_up(value, blank, count) for value in batch))
    return batch


def in_pieces(batch: Any, most: int) -> list[Any]:
    """Return the batch as batches of at most ``most`` examples (of a :class:`UnitBatch`, units), in its order."""
    size = batch_size(batch)
    if size <= most:
        return [batch]
    return [take_examples(batch, start, min(start + most, size)) for start in range(0, size, most)]
