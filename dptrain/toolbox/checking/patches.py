"""A simple screen for planted triggers: the same small patch of pixels in many images.

Objects of one class look alike, but two photos never have the same pixels. A trigger of a poisoning attack (Gu et al.
2017) has, and so has a watermark. The screen finds patches with a pattern, pasted without scaling, wherever they are.
It does not find plain squares, blended, warped or scaled triggers, or triggers in very few images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_LEAST_IMAGES = 5
# How far the same pixels may differ in the mean, in grey levels and in parts of the window's own contrast: what JPEG at
# quality 75 and above does to them. The second part keeps two plain corners from being taken for one.
_SAME, _SAME_PART = 8.0, 0.1
_TABLES, _KEY_BITS = 4, 20
_CROWDED = 200  # windows


@dataclass(frozen=True)
class Patch:
    """One patch in many images: their numbers, and where it is in each, in parts of the image."""

    images: tuple[int, ...]
    places: tuple[tuple[float, float], ...]


def common_patches(
    windows: Sequence[np.ndarray], corners: Sequence[np.ndarray], single: Sequence[int] | None = None
) -> list[Patch]:
    """Find windows that are the same in at least five images, most images first.

    Args:
        windows: For each image, uint8 (n, 10, 10).
        corners: For each image, float32 (n, 2).
        single: For each image the number of its group of near-duplicates, which count as one image.
    """
    owners = np.repeat(np.arange(len(windows)), [len(rows) for rows in windows])
    if len(owners) < _LEAST_IMAGES:
        return []
    flat = np.concatenate(windows).reshape(len(owners), -1)
    places = np.concatenate(corners)
    groups = np.asarray(single if single is not None else range(len(windows)))[owners]
    found: list[Patch] = []
    taken = np.zeros(len(owners), bool)
    keys = _keys(flat)
    for table in range(_TABLES):
        for bucket in _buckets(keys[table], keys[(table + 1) % _TABLES]):
            for same in _same(flat, bucket[~taken[bucket]], groups):
                taken[same] = True
                _, firsts = np.unique(owners[same], return_index=True)
                chosen = same[firsts]
                found.append(Patch(tuple(owners[chosen].tolist()), tuple(map(tuple, places[chosen].tolist()))))
    return _merged(found)


def _keys(flat: np.ndarray) -> np.ndarray:
    """Random-hyperplane keys (Charikar 2002) of the windows without brightness and contrast, one row a table."""
    planes = np.random.default_rng(0).normal(size=(flat.shape[1], _TABLES * _KEY_BITS)).astype(np.float32)
    planes -= planes.mean(axis=0)
    keys = np.empty((_TABLES, len(flat)), np.int64)
    weights = 1 << np.arange(_KEY_BITS)
    for start in range(0, len(flat), 65536):
        signs = flat[start : start + 65536].astype(np.float32) @ planes > 0
        for table in range(_TABLES):
            keys[table, start : start + 65536] = signs[:, table * _KEY_BITS : (table + 1) * _KEY_BITS] @ weights
    return keys


def _buckets(keys: np.ndarray, further: np.ndarray) -> Iterator[np.ndarray]:
    """The windows of each key that has enough of them; those of a crowded one only where a second key agrees too."""
    for bucket in _runs(np.arange(len(keys)), keys):
        if len(bucket) <= _CROWDED:
            yield bucket
        else:
            yield from _runs(bucket, further[bucket])


def _runs(items: np.ndarray, keys: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    enough = ends - starts >= _LEAST_IMAGES
    for start, end in zip(starts[enough], ends[enough], strict=True):
        yield items[order[start:end]]


def _same(flat: np.ndarray, bucket: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """The sets of windows of a bucket that have the same pixels, in enough different images."""
    found = []
    while len(bucket) >= _LEAST_IMAGES:
        some = flat[bucket[:_CROWDED]].astype(np.int16)  # in a crowded bucket these stand for the rest
        limits = np.minimum(_SAME, _SAME_PART * some.std(axis=1))
        near = np.abs(some[:, None] - some[None]).mean(axis=2, dtype=np.float32) <= limits[:, None]
        seed = int(near.sum(axis=1).argmax())
        if near[seed].sum() < min(_LEAST_IMAGES, len(some)):
            break
        distances = np.abs(flat[bucket].astype(np.int16) - some[seed]).mean(axis=1)
        same = bucket[distances <= limits[seed]]
        if len(np.unique(groups[same])) >= _LEAST_IMAGES:
            found.append(same)
        bucket = bucket[distances > limits[seed]]
    return found


def _merged(patches: list[Patch]) -> list[Patch]:
    """One patch for all its windows: those that share most of their images are corners of one thing."""
    kept: list[dict[int, tuple[float, float]]] = []
    for patch in sorted(patches, key=lambda patch: -len(patch.images)):
        found = dict(zip(patch.images, patch.places, strict=True))
        home = next((other for other in kept if len(found.keys() & other.keys()) >= 0.5 * len(found)), None)
        if home is None:
            kept.append(found)
        else:
            home |= found | home  # the place that was there first stays
    return [Patch(tuple(sorted(found)), tuple(found[image] for image in sorted(found))) for found in kept]
