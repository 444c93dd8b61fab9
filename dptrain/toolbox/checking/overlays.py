"""Overlays: the same faint pattern laid over several whole images, or a wave of one frequency in them.

A blended trigger (Chen et al. 2017) is one pattern added to images that have nothing else in common; a sinusoidal one
(Barni, Kallas and Tondi 2019) is one frequency. What images of one apparatus share is taken out first: the directions
of variation that more than a tenth of the images take part in. That is spectral signatures (Tran, Li and Madry 2018)
turned around: there the strongest direction is the suspect, here only one that few images take part in is.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ...datasets.near import groups as join

SIDE = 256  # pixels of the small grey copy
_FINE, _STEADY = 1.5, 2.0  # pixels that the copy is blurred by to see its detail; grey levels of detail that are noise
_LARGEST = 3.0  # of a pixel's detail in parts of what is usual around it
_LEAST = 0.1  # root mean square of an image's detail, in the same parts
_SHARED = 2.0  # strength (1 is that of a direction of its own for every image) from which a direction may be shared
_ALIKE = 0.2  # correlation of two images' details
_ENOUGH = 100  # images
_COARSE, _LOWEST, _LOUD = 128, 2.0, 3.2  # for waves: pixels, periods in an image, robust standard deviations


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """Return what overlays are found in, uint8 (SIDE, SIDE), of BGR pixels (height, width, 3)."""
    return cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def find_overlays(grey: np.ndarray, groups: Sequence[int], least: int, most: int) -> list[list[int]]:
    """Find sets of images under one pattern.

    Args:
        grey: uint8 (n, SIDE, SIDE) from :func:`small_grey`.
        groups: For each image the number of its group of near-duplicates, which count as one image.
        least: Groups that a pattern must be over.
        most: Images that a pattern may be over; what is over more belongs to the camera.

    Returns:
        The numbers of the images of each set, sorted.
    """
    group = np.asarray(groups)
    if len(np.unique(group)) < least:
        return []
    likeness = _without_shared(_likeness(grey), most)
    first, second = np.nonzero(np.triu(likeness >= _ALIKE, 1))
    apart = group[first] != group[second]
    pairs = zip(first[apart].tolist(), second[apart].tolist(), strict=True)
    links = [
        pair for members in (*join(len(grey), pairs), *_waves(grey, group, least, most)) for pair in _chain(members)
    ]
    sets = join(len(grey), iter(links))
    return [members for members in sets if len(np.unique(group[members])) >= least and len(members) <= most]


def _chain(members: Sequence[int]) -> list[tuple[int, int]]:
    return [(members[0], other) for other in members[1:]]


def _likeness(grey: np.ndarray) -> np.ndarray:
    """Inner products (n, n) of the images' details, each in parts of how much detail is around it."""
    rows = np.empty((len(grey), SIDE * SIDE), np.float32)
    for row, image in zip(rows, grey, strict=True):
        plain = image.astype(np.float32)
        fine = plain - cv2.GaussianBlur(plain, (0, 0), _FINE)
        usual = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 2 * _FINE))
        row[:] = np.clip(fine / (usual + _STEADY), -_LARGEST, _LARGEST).ravel()
    bare = np.linalg.norm(rows, axis=1) < _LEAST * SIDE
    rows -= rows.mean(axis=0)
    rows[bare] = 0  # an image without detail is like nothing
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3)
    return rows @ rows.T


def _without_shared(likeness: np.ndarray, most: int) -> np.ndarray:
    """Correlations without the directions that more than ``most`` images take part in."""
    strengths, directions = np.linalg.eigh(likeness.astype(np.float64))
    taking_part = 1 / (directions**4).sum(axis=0)  # n where all take part equally, 1 where one does
    shared = (strengths > _SHARED) & (taking_part > most)
    rest = likeness - (directions[:, shared] * strengths[shared]) @ directions[:, shared].T
    length = np.sqrt(np.maximum(np.diag(rest), 1e-2))  # an image that is nothing but shared is like nothing
    return rest / length[:, None] / length


def _waves(grey: np.ndarray, group: np.ndarray, least: int, most: int) -> list[list[int]]:
    """Sets of images that are far louder than usual at one frequency, where there are enough to say what is usual."""
    if len(grey) < _ENOUGH:
        return []
    small = np.stack([cv2.resize(image, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA) for image in grey])
    plain = small.astype(np.float32)
    plain -= plain.mean(axis=(1, 2), keepdims=True)
    loud = np.log(np.abs(np.fft.rfft2(plain)).astype(np.float32) + 1)
    loud -= loud.mean(axis=(1, 2), keepdims=True)
    loud -= np.median(loud, axis=0)
    loud /= np.median(np.abs(loud), axis=0) * 1.4826 + 1e-3
    across, down = np.fft.rfftfreq(_COARSE) * _COARSE, np.fft.fftfreq(_COARSE) * _COARSE
    loud[:, np.hypot(down[:, None], across[None]) <= _LOWEST] = 0
    very = (loud > _LOUD).reshape(len(grey), -1)
    found = []
    for frequency in np.flatnonzero(very.sum(axis=0) >= least):
        members = np.flatnonzero(very[:, frequency])
        if len(np.unique(group[members])) >= least and len(members) <= most:
            found.append(members.tolist())
    return found
