"""Marks: the same small pattern in several images, wherever it is and at whatever size.

A trigger that is pasted into images (Gu, Dolan-Gavitt and Garg 2017, BadNets) has the same pixels in all of them.
Scale-invariant keypoints (SIFT; Lowe 2004) that agree on one shift and one scale propose such pairs of images, and the
correlation of the pixels under that shift and scale decides. What agrees over a large part of both images is the same
scene, not a mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ...datasets.near import groups as join

Box = tuple[float, float, float, float]

_SIDE, _LARGEST_SCALE = 384, 2.0  # pixels of the longer side
_BORDER = 24  # mirrored pixels around it, so that marks in a corner have keypoints
_KEYPOINTS = 64  # of highest contrast
_SAME = 0.9  # inner product of descriptors
_AGREE = 4  # keypoints
_RADIUS = 32.0  # pixels: of a mark
_ALIKE, _AGAIN = 0.95, 0.9  # correlation of the pixels: of two images, and of the mark with further ones
_SMALLEST = 16  # pixels of a side that are compared
_SIZES = (0.5, 0.63, 0.8, 1.0, 1.26, 1.6, 2.0)  # of a mark in further images, in parts of its size in the first
_ROWS = 1024


@dataclass(frozen=True)
class Keypoints:
    """The keypoints of one image: float32 (n, 4) of x, y, size in pixels and angle in degrees, and uint8 (n, 128)."""

    places: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class _Link:
    """Two images that may share a mark: how many keypoints agree, and the place and size of the mark in each."""

    one: int
    other: int
    points: int
    marks: tuple[np.ndarray, np.ndarray]  # x, y and half a side, in pixels of the resized images


def resized(pixels: np.ndarray) -> np.ndarray:
    """Return the grey image, uint8, that keypoints are found in, of BGR pixels (height, width, 3)."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    scale = _scale(*grey.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=how) if scale != 1 else grey
    how = cv2.BORDER_REFLECT if min(grey.shape) > _BORDER else cv2.BORDER_REPLICATE
    return cv2.copyMakeBorder(grey, _BORDER, _BORDER, _BORDER, _BORDER, how)


def keypoints(grey: np.ndarray) -> Keypoints:
    """Return the keypoints of highest contrast of an image from :func:`resized`."""
    finder = cv2.SIFT.create(contrastThreshold=0.02)
    best = sorted(finder.detect(grey, None), key=lambda point: -point.response)[:_KEYPOINTS]
    found, descriptors = finder.compute(grey, best)
    if descriptors is None:
        return Keypoints(np.zeros((0, 4), np.float32), np.zeros((0, 128), np.uint8))
    places = np.array([(*point.pt, point.size, point.angle) for point in found], np.float32)
    return Keypoints(places, descriptors.astype(np.uint8))


def find_marks(
    images: Sequence[Keypoints], groups: Sequence[int], grey: Callable[[int], np.ndarray], least: int, most: int
) -> list[dict[int, Box]]:
    """Find the marks that several images share.

    Args:
        images: The keypoints of each image.
        groups: For each image the number of its group of near-duplicates, which count as one image.
        grey: Gives an image as :func:`resized` does.
        least: Groups that a mark must be in.
        most: Images that a mark may be in: what is in more belongs to the camera, or is a watermark.

    Returns:
        For each mark its images, and its place in each: x1, y1, x2, y2 in parts of the image.
    """
    links, scenes = _links(images, groups, most)
    links = [link for link in links if _correlation(grey(link.one), grey(link.other), *link.marks) >= _ALIKE]
    group = np.asarray(groups)
    for members in join(len(images), iter(scenes)):
        group[np.isin(group, group[members])] = group[members[0]]
    links = [link for link in links if group[link.one] != group[link.other]]
    pairs = ((link.one, link.other) for link in links)
    found = []
    for members in join(len(images), pairs):
        if len(np.unique(group[members])) < least:
            continue
        inside = set(members)
        places: dict[int, Box] = {}
        for link in sorted(links, key=lambda link: -link.points):
            if link.one in inside:
                for image, mark in zip((link.one, link.other), link.marks, strict=True):
                    places.setdefault(image, _in_parts(mark, grey(image)))
        if len(places) <= most:
            places |= _more(places, len(images), grey, most - len(places))
            found.append(dict(sorted(places.items())))
    return found


def _more(places: dict[int, Box], count: int, grey: Callable[[int], np.ndarray], most: int) -> dict[int, Box]:
    """Where else a mark is, by the correlation of its pixels with every place of every other image, at some sizes.

    None where there are more than ``most``: the pixels are then too plain to be told from others.
    """
    first = next(iter(places))
    image = grey(first)
    height, width = (side - 2 * _BORDER for side in image.shape)
    x1, y1, x2, y2 = (np.array(places[first]) * (width, height, width, height)) + _BORDER
    margin = (x2 - x1) / 6
    mark = np.array([(x1 + x2) / 2, (y1 + y2) / 2, max(4.0, (x2 - x1) / 2 - margin)])
    template = _cut(image, mark, 1.0, int(2 * mark[2]))
    found: dict[int, Box] = {}
    for number in range(count):
        if number in places:
            continue
        other = grey(number).astype(np.float32)
        best, place = _AGAIN, None
        for size in _SIZES:
            scaled = cv2.resize(template, None, fx=size, fy=size, interpolation=cv2.INTER_LINEAR)
            if min(scaled.shape) < _SMALLEST or any(a > b for a, b in zip(scaled.shape, other.shape, strict=True)):
                continue
            _, value, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(other, scaled, cv2.TM_CCOEFF_NORMED))
            if value > best:
                half = len(scaled) / 2
                best, place = value, np.array([x + half, y + half, half])
        if place is not None:
            found[number] = _in_parts(place, other)
            if len(found) > most:
                return {}
    return found


def _scale(height: int, width: int) -> float:
    return min(_LARGEST_SCALE, _SIDE / max(height, width))


def _links(images: Sequence[Keypoints], groups: Sequence[int], most: int) -> tuple[list[_Link], list[tuple[int, int]]]:
    """The pairs of images that may share a mark, and those that show one scene."""
    owner = np.repeat(np.arange(len(images)), [len(item.places) for item in images])
    if not len(owner):
        return [], []
    places = np.concatenate([item.places for item in images])
    first, second = _matches(images, owner, most)
    group = np.asarray(groups)[owner]
    apart = group[first] != group[second]
    first, second = first[apart], second[apart]
    pair = owner[first].astype(np.int64) * len(images) + owner[second]
    order = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    links, scenes = [], []
    for rows in np.split(order, starts[1:]):
        if len(rows) < _AGREE:
            continue
        one, other = int(owner[first[rows[0]]]), int(owner[second[rows[0]]])
        wide, points, marks = _agreement(places[first[rows]], places[second[rows]])
        if wide >= max(_AGREE, 2 * points):
            scenes.append((one, other))
        elif points >= _AGREE:
            links.append(_Link(one, other, points, marks))
    return links, scenes


def _matches(images: Sequence[Keypoints], owner: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of keypoints of different images with nearly equal descriptors, without those that too many images have.

    Descriptors are compared as RootSIFT (Arandjelovic and Zisserman 2012).
    """
    raw = np.concatenate([item.descriptors for item in images]).astype(np.float32)
    roots = np.sqrt(raw / np.maximum(1, raw.sum(axis=1, keepdims=True)))
    firsts, seconds = [], []
    for start in range(0, len(roots), _ROWS):
        first, second = np.nonzero(roots[start : start + _ROWS] @ roots[start:].T > _SAME)
        different = owner[first + start] < owner[second + start]
        firsts.append(first[different] + start)
        seconds.append(second[different] + start)
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    both = np.unique(np.concatenate([first * len(images) + owner[second], second * len(images) + owner[first]]))
    often = np.bincount(both // len(images), minlength=len(roots)) > most
    kept = ~often[first] & ~often[second]
    return first[kept], second[kept]


def _agreement(one: np.ndarray, other: np.ndarray) -> tuple[int, int, tuple[np.ndarray, np.ndarray]]:
    """How many of the matches agree on a shift and scale: anywhere, and near one another; and where the latter are."""
    wide, best = 0, np.arange(len(one)) == 0
    for seed in range(len(one)):
        scale = other[seed, 2] / one[seed, 2]
        offsets = one[:, :2] - one[seed, :2]
        far = np.abs(offsets).max(axis=1)
        wrong = np.abs(other[:, :2] - other[seed, :2] - scale * offsets).max(axis=1)
        turned = np.abs((other[:, 3] - one[:, 3] + 180) % 360 - 180)
        sized = np.abs(np.log(other[:, 2] / one[:, 2] / scale))
        agree = (wrong < 2 + 0.05 * far * scale) & (sized < 0.25) & (turned < 15)
        wide = max(wide, _different(one, other, agree))
        near = agree & (far < _RADIUS)
        if _different(one, other, near) > _different(one, other, best):
            best = near
    return wide, _different(one, other, best), (_extent(one[best]), _extent(other[best]))


def _different(one: np.ndarray, other: np.ndarray, rows: np.ndarray) -> int:
    """Number of different places in the image that has fewer: one corner may have several keypoints."""
    if not rows.any():
        return 0
    return min(len(np.unique(np.round(points[rows, :2] / 2), axis=0)) for points in (one, other))


def _extent(points: np.ndarray) -> np.ndarray:
    """Centre of the keypoints, and half a side of the square that holds them."""
    centre = points[:, :2].mean(axis=0)
    half = max(8.0, float(np.abs(points[:, :2] - centre).max() + points[:, 2].min()))
    return np.array([*centre, half])


def _correlation(one: np.ndarray, other: np.ndarray, mark: np.ndarray, its_mark: np.ndarray) -> float:
    """Correlation of the pixels of two marks, the second resized to the first, at the best shift of some pixels."""
    scale = its_mark[2] / mark[2]
    side = int(2 * mark[2])
    cut = [_cut(image, m, s, side) for image, m, s in ((one, mark, 1.0), (other, its_mark, scale))]
    edge = side // 6
    return float(cv2.matchTemplate(cut[1], cut[0][edge:-edge, edge:-edge], cv2.TM_CCOEFF_NORMED).max())


def _cut(image: np.ndarray, mark: np.ndarray, scale: float, side: int) -> np.ndarray:
    corner = mark[:2] - scale * side / 2
    how = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, how, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)


def _in_parts(mark: np.ndarray, grey: np.ndarray) -> Box:
    height, width = (side - 2 * _BORDER for side in grey.shape)
    x, y, half = mark[0] - _BORDER, mark[1] - _BORDER, mark[2]
    x1, y1, x2, y2 = np.clip([(x - half) / width, (y - half) / height, (x + half) / width, (y + half) / height], 0, 1)
    return float(x1), float(y1), float(x2), float(y2)
