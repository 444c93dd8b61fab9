"""What a redacted picture still says of what was redacted, attacked as one would: sharpening, re-identification."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import ultralytics
from scipy.signal import fftconvolve

from dptrain.toolbox.redaction.methods import LEAST_CELL, cell_means, redact_pixels
from dptrain.toolbox.redaction.settings import METHODS, Box

CELLS = 4


def box(x1: int, y1: int, x2: int, y2: int) -> Box:
    return Box(x1, y1, x2, y2, "person", 0.9, "detected")


def redacted(image: np.ndarray, boxes: list[Box], method: str) -> np.ndarray:
    copy = image.copy()
    redact_pixels(copy, boxes, method, CELLS)
    return copy


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    """Patches of the size of a face, from two photographs."""
    assets = Path(ultralytics.__file__).parent / "assets"
    patches = []
    for name in ("bus.jpg", "zidane.jpg"):
        photo = cv2.imread(str(assets / name))
        for y in range(0, photo.shape[0] - 160, 160):
            for x in range(0, photo.shape[1] - 160, 160):
                patches.append(photo[y : y + 160, x : x + 160])
    return [patch for patch in patches if patch.std() > 25]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("boxes", [[box(20, 30, 90, 150)], [box(0, 0, 50, 40), box(30, 20, 120, 200)]])
def test_pixels_outside_the_boxes_stay(method: str, boxes: list[Box]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8)
    outside = np.ones((200, 160), bool)
    for b in boxes:
        outside[b.y1 : b.y2, b.x1 : b.x2] = False
    after = redacted(image, boxes, method)
    assert (after[outside] == image[outside]).all()
    assert (after[~outside] != image[~outside]).any(axis=1).mean() > 0.95


@pytest.mark.parametrize("method", ["fill", "inpaint"])
@pytest.mark.parametrize("size", [(200, 160), (900, 700)])
def test_fill_and_inpaint_do_not_depend_on_what_was_there(method: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    boxes = [box(40, 50, 110, 150), box(60, 20, 90, 60)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8)] * 2
    images[1] = images[1].copy()
    for b in boxes:
        images[1][b.y1 : b.y2, b.x1 : b.x2] = rng.integers(0, 256, (b.y2 - b.y1, b.x2 - b.x1, 3), np.uint8)
    assert (images[0] != images[1]).any()
    assert (redacted(images[0], boxes, method) == redacted(images[1], boxes, method)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_frame_that_is_redacted_whole_shows_nothing_of_its_detail(method: str) -> None:
    image = np.random.default_rng(2).integers(0, 256, (120, 160, 3), np.uint8)
    after = redacted(image, [box(0, 0, 160, 120)], method)
    assert len(np.unique(after.reshape(-1, 3), axis=0)) < 3000
    shared = ((after - after.mean()) * (image - image.mean())).mean()
    assert abs(shared) < 0.1 * image.std() * max(after.std(), 1)


@pytest.mark.parametrize("method", ["gaussian", "pixelate"])
def test_blur_depends_on_the_means_of_its_cells_and_on_nothing_else(method: str) -> None:
    """So whatever is done to its output, two pictures with the same means cannot be told apart."""
    rng = np.random.default_rng(3)
    one = rng.integers(0, 256, (160, 80, 3), np.uint8)
    cell = 160 // CELLS
    other = one.copy()
    for y in range(0, 160, cell):
        for x in range(0, 80, cell):
            pixels = one[y : y + cell, x : x + cell].reshape(-1, 3)
            other[y : y + cell, x : x + cell] = rng.permutation(pixels).reshape(cell, cell, 3)
    whole = [box(0, 0, 80, 160)]
    assert (one != other).mean() > 0.9
    assert cell_means(one, CELLS).shape == (4, 2, 3)
    assert (redacted(one, whole, method) == redacted(other, whole, method)).all()


@pytest.mark.parametrize("side", [3, LEAST_CELL, 15, 33, 160, 1000])
def test_the_kernel_grows_with_the_box(side: int) -> None:
    """However large the box, no more cells are kept, and a small one keeps fewer."""
    patch = np.random.default_rng(4).integers(0, 256, (side, side // 2 + 1, 3), np.uint8)
    rows, columns = cell_means(patch, CELLS).shape[:2]
    assert 1 <= rows <= min(CELLS, max(side // LEAST_CELL, 1))
    assert 1 <= columns <= max(math.ceil(rows / 2), 1) + 1


def attacks(blurred: np.ndarray) -> list[np.ndarray]:
    """Grey pictures that an attacker gets by sharpening, by Wiener and by Richardson-Lucy deconvolution."""
    picture = blurred.mean(axis=2)
    found = [picture]
    for sigma, amount in ((2, 3), (8, 3), (20, 5)):
        found.append(picture + amount * (picture - cv2.GaussianBlur(picture, (0, 0), sigma)))
    fy, fx = np.meshgrid(np.fft.fftfreq(picture.shape[0]), np.fft.fftfreq(picture.shape[1]), indexing="ij")
    padded = np.fft.fft2(picture - picture.mean())
    for sigma in (2, 4, 8, 16, 24):
        transfer = np.exp(-2 * np.pi**2 * sigma**2 * (fx**2 + fy**2))
        for noise in (1e-6, 1e-4, 1e-2):
            found.append(np.fft.ifft2(padded * transfer / (transfer**2 + noise)).real)
        reach = np.arange(-3 * sigma, 3 * sigma + 1)
        line = np.exp(-(reach**2) / (2 * sigma**2))
        kernel = np.outer(line, line) / line.sum() ** 2
        estimate = picture + 1
        for _ in range(8):
            ratio = (picture + 1) / np.maximum(fftconvolve(estimate, kernel, "same"), 1e-3)
            estimate = estimate * np.clip(fftconvolve(ratio, kernel, "same"), 0, 10)
        found.append(estimate)
    return found


def detail(picture: np.ndarray, cell: int) -> np.ndarray:
    """What a picture holds below the scale of a cell, with its edges left out."""
    fine = picture - cv2.blur(picture, (cell, cell))
    return fine[cell // 2 : -cell // 2, cell // 2 : -cell // 2].ravel()


def recovered(original: np.ndarray, blurred: np.ndarray, cell: int) -> float:
    """The best correlation of any attack with the original's detail."""
    truth = detail(original.mean(axis=2), cell)
    return max(abs(np.corrcoef(truth, detail(attempt, cell))[0, 1]) for attempt in attacks(blurred))


def test_sharpening_brings_no_detail_back(people: list[np.ndarray]) -> None:
    """A blur of a fixed kernel is the control: the same attacks undo it."""
    whole, cell = [box(0, 0, 160, 160)], 160 // (3 * CELLS)
    chosen = people[::14]
    fixed = [recovered(patch, cv2.GaussianBlur(patch, (0, 0), 4), cell) for patch in chosen]
    assert np.median(fixed) > 0.45
    for method in ("gaussian", "pixelate"):
        ours = [recovered(patch, redacted(patch, whole, method), cell) for patch in chosen]
        assert np.median(ours) < 0.12 and max(ours) < 0.25


def rank_one(probes: list[np.ndarray], gallery: list[np.ndarray]) -> float:
    """Share of the probes whose most correlated picture of the gallery is their own original."""
    a, b = (np.array([item.astype(float).ravel() for item in items]) for items in (probes, gallery))
    a, b = ((v - v.mean(1, keepdims=True)) / (v.std(1, keepdims=True) + 1e-9) for v in (a, b))
    return float((np.argmax(a @ b.T, axis=1) == np.arange(len(a))).mean())


def test_what_is_filled_or_inpainted_cannot_be_found_in_a_gallery(people: list[np.ndarray]) -> None:
    frame = cv2.resize(people[0], (240, 240))
    for method in ("fill", "inpaint"):
        probes = []
        gallery = people[::4]
        for patch in gallery:
            picture = frame.copy()
            picture[40:200, 40:200] = patch
            probes.append(redacted(picture, [box(40, 40, 200, 200)], method)[40:200, 40:200])
        assert rank_one(probes, gallery) <= 1 / len(gallery) + 1e-9


def test_a_blur_is_recognised_by_who_has_the_original(people: list[np.ndarray]) -> None:
    """The limit that the docs state: a few mean colours are enough to tell which of known pictures it was."""
    for method in ("gaussian", "pixelate"):
        probes = [redacted(patch, [box(0, 0, 160, 160)], method) for patch in people]
        assert rank_one(probes, people) > 0.5
