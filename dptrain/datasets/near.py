"""Equal images, and near-duplicates by a perceptual hash, confirmed on a small copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

SIDE = 32  # of the small copy that pictures are compared by
_BLOCK = 4000  # of neighbours in path order, among which all pairs are compared before a run
_BITS = 8  # of the lowest frequencies each way
_FAR = 10  # bits of 63 that near-duplicates may differ in
_ALIKE = 0.97  # correlation of the small copies
_ROWS = 2048


def hashes(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of images and of their mirror images: signs of low DCT frequencies (Zauner 2010).

    Args:
        small: uint8 (n, SIDE, SIDE).

    Returns:
        Two float32 arrays (n, 63) of -1 and 1.
    """
    plain = np.empty((len(small), _BITS, _BITS), np.float32)
    for row, image in enumerate(small):
        plain[row] = cv2.dct(image.astype(np.float32))[:_BITS, :_BITS]
    mirrored = plain * np.where(np.arange(_BITS) % 2, -1, 1)  # mirroring turns the sign of the odd columns
    found = []
    for table in (plain, mirrored):
        rows = table.reshape(len(small), -1)[:, 1:]  # without the mean brightness
        found.append(np.where(rows > np.median(rows, axis=1, keepdims=True), 1, -1).astype(np.float32))
    return found[0], found[1]


def pairs(small: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of near-duplicates: re-encoded, resized, brightened, slightly cropped, mirrored.

    All pairs are compared, as one matrix product: 20,000 images are 50 billion operations, some seconds of a core.

    Args:
        small: uint8 (n, SIDE, SIDE) from :func:`small_copy`.
    """
    if not len(small):
        return
    plain, mirrored = hashes(small)
    flat = _centred(small)
    turned = _centred(small[:, :, ::-1])
    enough = plain.shape[1] - 2 * _FAR  # of the product of two hashes
    for start in range(0, len(small), _ROWS):
        rows = slice(start, min(start + _ROWS, len(small)))
        for table, copies in ((plain, flat), (mirrored, turned)):
            first, second = np.nonzero(table[rows] @ plain.T >= enough)
            first += start
            first, second = first[first < second], second[first < second]
            alike = np.einsum("ij,ij->i", copies[first], flat[second]) >= _ALIKE
            yield from zip(first[alike].tolist(), second[alike].tolist(), strict=True)


def small_copy(image: np.ndarray) -> np.ndarray:
    """Return what pictures are compared by, uint8 (SIDE, SIDE), of BGR pixels (height, width, 3)."""
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def pairs_nearby(small: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the :func:`pairs` among neighbours: of n images this takes n steps, where all pairs are n * n."""
    for start in range(0, len(small), _BLOCK):
        for one, other in pairs(small[start : start + _BLOCK]):
            yield start + one, start + other


def equal(pictures: Sequence[bytes | None]) -> Iterator[tuple[int, int]]:
    """Yield what joins the equal ones: the first of a picture, and each later one."""
    first: dict[bytes, int] = {}
    for item, picture in enumerate(pictures):
        if picture is not None and first.setdefault(picture, item) != item:
            yield first[picture], item


def _centred(small: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1; a picture of one grey has length 0, and is like nothing."""
    flat = small.reshape(len(small), SIDE * SIDE).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > SIDE, length, np.inf)  # one grey level of contrast


def groups(count: int, linked: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Join pairs into groups of two or more, each sorted."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in linked:
        parent[max(root(one), root(other))] = min(root(one), root(other))
    found: dict[int, list[int]] = {}
    for item in range(count):
        found.setdefault(root(item), []).append(item)
    return [group for group in found.values() if len(group) > 1]
