"""Garments drawn from outlines: what stands in, publicly, for the product photos of Fashion-MNIST.

A garment is a (28, 28) float array in [0, 1], 0 where there is none. That is the format of Fashion-MNIST, whose paper
(Xiao, Rasul and Vollgraf 2017, section 2) says how it was made: the picture is cut to the garment, its longest edge
is brought to 28 pixels, it is put in the middle of a square, negated and made grey. Drawings go the same way here. The
outlines were drawn from what such garments look like to anyone; no photo was opened to choose or to check them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NAMES = {
    0: "T-shirt", 1: "Trouser", 2: "Pullover", 3: "Dress", 4: "Coat",
    5: "Sandal", 6: "Shirt", 7: "Sneaker", 8: "Bag", 9: "Ankle boot",
}  # fmt: skip
CELLS = 28
FINE = 128  # pixels of the sheet that a garment is drawn on
Points = Sequence[tuple[float, float]]


class Sheet:
    """A grey drawing and where it is covered; places are shares of the sheet, (x, y) from its upper left corner."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.value = np.zeros((FINE, FINE))
        self.cover = np.zeros((FINE, FINE))

    def near(self, value: float, spread: float = 0.06) -> float:
        """The value, moved a little."""
        return value + float(self.rng.normal(0, spread / 2))

    def fill(self, points: Points, value: float, cover: bool = True) -> None:
        """Paint a polygon; with ``cover=False`` only where something is already."""
        mask = np.zeros((FINE, FINE), np.uint8)
        cv2.fillPoly(mask, [np.rint(np.array(points) * FINE).astype(np.int32)], 1)
        self._paint(mask > 0, value, cover)

    def line(self, points: Points, width: float, value: float, cover: bool = True) -> None:
        """Paint a line through the points."""
        mask = np.zeros((FINE, FINE), np.uint8)
        path = np.rint(np.array(points) * FINE).astype(np.int32)
        cv2.polylines(mask, [path], False, 1, max(1, round(width * FINE)), cv2.LINE_8)
        self._paint(mask > 0, value, cover)

    def both(self, half: Points, value: float) -> None:
        """Paint the polygon whose right half is given, from the top of the middle line to its bottom."""
        self.fill([*half, *[(1 - x, y) for x, y in reversed(half)]], value)

    def _paint(self, mask: NDArray[np.bool_], value: float, cover: bool) -> None:
        if not cover:
            mask = mask & (self.cover > 0)
        self.value[mask] = value
        self.cover[mask] = 1


def _neck(s: Sheet, deep: float) -> Points:
    """From the middle of the neck line to the shoulder's inner end."""
    width = s.rng.uniform(0.07, 0.17)
    return [(0.5, 0.05 + deep), (0.5 + width * 0.7, 0.05 + deep * 0.7), (0.5 + width, 0.04)]


def _top(s: Sheet, sleeve: str, length: float, width: float, deep: float, value: float) -> None:
    """The outline of everything that is worn above the waist."""
    body, shoulder = s.near(width), s.near(0.30)
    pit, hem = (0.5 + body, s.near(0.36)), (0.5 + s.near(body + 0.01), length)
    if sleeve == "short":
        arm = [(0.5 + shoulder, 0.10), (s.near(0.96), s.near(0.30)), (s.near(0.85), s.near(0.40))]
    elif sleeve == "long":
        out, down = s.near(0.93, 0.08), s.near(length - 0.08, 0.12)
        arm = [(0.5 + shoulder, 0.10), (out, down), (out - s.near(0.11, 0.03), down + 0.03)]
    else:
        arm = [(0.5 + shoulder * 0.75, 0.06), (0.5 + body * 0.85, 0.2)]
    s.both([*_neck(s, deep), *arm, pit, hem, (0.5, s.near(length, 0.03))], value)
    if sleeve == "long":  # the folds between sleeve and body
        for side in (1, -1):
            x = 0.5 + side * (body + 0.01)
            s.line([(x, pit[1] - 0.1), (x + side * 0.02, s.near(0.7))], 0.015, value * s.rng.uniform(0.3, 0.8), False)


def t_shirt(s: Sheet, value: float) -> None:
    _top(s, "short" if s.rng.random() < 0.85 else "none", s.near(0.94), s.near(0.25), s.rng.uniform(0.02, 0.16), value)
    if s.rng.random() < 0.4:  # a print
        x, y, r = s.near(0.5), s.near(0.45), s.rng.uniform(0.06, 0.16)
        s.fill([(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)], s.rng.uniform(0.1, 1), False)


def trouser(s: Sheet, value: float) -> None:
    waist, hip, ankle = s.rng.uniform(0.13, 0.2), s.rng.uniform(0.17, 0.25), s.rng.uniform(0.08, 0.15)
    fork, spread = s.rng.uniform(0.28, 0.42), s.rng.uniform(0.03, 0.12)
    s.both(
        [(0.5, 0.03), (0.5 + waist, 0.03), (0.5 + hip, 0.25), (0.5 + spread + ankle, 0.97), (0.5 + spread, 0.97),
         (0.5, fork)], value,
    )  # fmt: skip
    s.line([(0.5 - waist, 0.07), (0.5 + waist, 0.07)], 0.015, value * 0.7, False)


def pullover(s: Sheet, value: float) -> None:
    _top(s, "long", s.near(0.93), s.near(0.24), s.rng.uniform(0.0, 0.08), value)
    if s.rng.random() < 0.7:  # ribs at hem and neck
        rib = value * s.rng.uniform(0.6, 1.2)
        s.line([(0.2, 0.91), (0.8, 0.91)], 0.05, min(rib, 1), False)
        s.line([(0.38, 0.06), (0.5, 0.1), (0.62, 0.06)], 0.03, min(rib, 1), False)


def dress(s: Sheet, value: float) -> None:
    chest, waist, hem = s.rng.uniform(0.12, 0.2), s.rng.uniform(0.09, 0.16), s.rng.uniform(0.13, 0.36)
    top, belt = s.rng.uniform(0.03, 0.15), s.rng.uniform(0.3, 0.48)
    half = [(0.5, 0.06 + top), (0.5 + chest * 0.6, 0.03), (0.5 + chest * 0.85, 0.04), (0.5 + chest, 0.25)]
    s.both([*half, (0.5 + waist, belt), (0.5 + hem, 0.97), (0.5, s.near(0.97, 0.02))], value)
    if s.rng.random() < 0.45:
        down, out = s.rng.uniform(0.2, 0.6), s.rng.uniform(0.06, 0.16)
        for side in (1, -1):
            arm = [(0.05, chest), (down, chest + out), (down + 0.03, chest + out - 0.07), (0.25, chest * 0.8)]
            s.fill([(0.5 + side * x, y) for y, x in arm], value)
    if s.rng.random() < 0.5:
        s.line([(0.5 - waist, belt), (0.5 + waist, belt)], 0.03, s.rng.uniform(0.1, 1), False)


def coat(s: Sheet, value: float) -> None:
    _top(s, "long", 0.97, s.near(0.25), s.rng.uniform(0.02, 0.1), value)
    dark = value * s.rng.uniform(0.1, 0.7)
    x = s.near(0.5, 0.04)
    s.line([(x, 0.1), (s.near(x, 0.02), 0.97)], s.rng.uniform(0.012, 0.04), dark, False)  # open or zipped at the front
    if s.rng.random() < 0.7:  # lapels, or a hood
        for side in (1, -1):
            s.fill(
                [(x, 0.35), (x + side * 0.15, 0.12), (x + side * 0.06, 0.04)], value * s.rng.uniform(0.5, 1.2), False
            )
    for side in (1, -1):
        if s.rng.random() < 0.6:  # pockets
            s.line([(0.5 + side * 0.08, 0.66), (0.5 + side * 0.18, 0.64)], 0.02, dark, False)


def shirt(s: Sheet, value: float) -> None:
    sleeve = "long" if s.rng.random() < 0.6 else "short"
    _top(s, sleeve, s.near(0.95), s.near(0.23), s.rng.uniform(0.02, 0.14), value)
    other = float(np.clip(value * s.rng.uniform(0.4, 1.5), 0.1, 1))
    if s.rng.random() < 0.7:  # a collar and buttons
        for side in (1, -1):
            s.fill([(0.5, 0.16), (0.5 + side * 0.13, 0.07), (0.5 + side * 0.07, 0.03)], other, False)
        s.line([(0.5, 0.15), (0.5, 0.95)], 0.01, other, False)
        for y in np.arange(0.22, 0.9, s.rng.uniform(0.1, 0.16)):
            s.line([(0.5, y), (0.5, y + 0.012)], 0.025, other, False)


def _sole(s: Sheet, low: float, thick: float, heel: float, value: float) -> None:
    """A sole from the heel (right) to the toe (left), its bottom at ``low``."""
    s.fill(
        [(0.04, low - thick - 0.02), (0.4, low - thick), (0.7, low - thick - heel * 0.7), (0.96, low - thick - heel),
         (0.97, low), (0.97 - 0.22 * (heel > 0.05), low), (0.68, low - heel * 0.6), (0.4, low), (0.05, low)], value,
    )  # fmt: skip


def sandal(s: Sheet, value: float) -> None:
    heel = s.rng.uniform(0.0, 0.4) if s.rng.random() < 0.55 else 0.0
    low, thick = 0.75, s.rng.uniform(0.03, 0.12)
    _sole(s, low, thick, heel, value)
    strap = float(np.clip(value * s.rng.uniform(0.5, 1.4), 0.15, 1))
    for _ in range(s.rng.integers(1, 4)):  # over the toes
        x = s.rng.uniform(0.1, 0.5)
        path = [(x - 0.06, low - thick), (x, low - thick - s.rng.uniform(0.1, 0.2)), (x + 0.14, low - thick - 0.02)]
        s.line(path, s.rng.uniform(0.02, 0.06), strap)
    if s.rng.random() < 0.75:  # around the ankle
        up = low - thick - heel - s.rng.uniform(0.12, 0.25)
        s.line([(0.93, low - thick - heel), (0.95, up), (0.66, up + 0.06), (0.72, low - thick - heel * 0.7)],
               s.rng.uniform(0.02, 0.05), strap)  # fmt: skip


def sneaker(s: Sheet, value: float) -> None:
    low, thick, high = 0.72, s.rng.uniform(0.04, 0.09), s.rng.uniform(0.24, 0.36)
    top = low - thick
    s.fill(
        [(0.04, top), (0.05, top - 0.08), (0.22, top - 0.14), (0.5, top - high * 0.8), (0.62, top - high),
         (0.78, top - high * 0.75), (0.95, top - high * s.rng.uniform(0.8, 1.05)), (0.96, top)], value,
    )  # fmt: skip
    _sole(s, low, thick, 0.0, s.rng.uniform(0.1, 1))
    other = s.rng.uniform(0.1, 1)
    for i in range(s.rng.integers(2, 5)):  # laces, or stripes on the side
        x = 0.3 + 0.08 * i
        s.line([(x, top - 0.12 - 0.05 * i), (x + 0.08, top - 0.06 - 0.05 * i)], 0.02, other, False)


def bag(s: Sheet, value: float) -> None:
    width, top, low = s.rng.uniform(0.3, 0.47), s.rng.uniform(0.3, 0.5), s.rng.uniform(0.75, 0.95)
    slope = s.rng.uniform(-0.08, 0.08)
    s.both([(0.5, top), (0.5 + width - slope, top), (0.5 + width, low - 0.05), (0.5 + width * 0.95, low), (0.5, low)],
           value)  # fmt: skip
    if s.rng.random() < 0.85:  # a handle
        reach, rise = width * s.rng.uniform(0.4, 0.95), s.rng.uniform(0.1, top - 0.03)
        angle = np.linspace(0, np.pi, 24)
        path = np.stack([0.5 + reach * np.cos(angle), top - rise * np.sin(angle)], 1)
        s.line([(x, y) for x, y in path], s.rng.uniform(0.02, 0.05), value * s.rng.uniform(0.6, 1.0))
    if s.rng.random() < 0.6:  # a flap, or a zip
        y = top + (low - top) * s.rng.uniform(0.15, 0.6)
        s.line([(0, y), (1, y)], 0.02, value * s.rng.uniform(0.3, 0.8), False)


def ankle_boot(s: Sheet, value: float) -> None:
    low, thick, heel = 0.93, s.rng.uniform(0.03, 0.07), s.rng.uniform(0.0, 0.25)
    top, instep = s.rng.uniform(0.05, 0.25), s.rng.uniform(0.42, 0.55)
    s.fill(
        [(0.05, low - thick), (0.07, low - thick - 0.12), (0.3, low - thick - 0.2), (instep, 0.5),
         (instep + 0.02, top), (0.93, top + s.rng.uniform(-0.03, 0.06)), (0.94, low - thick - heel),
         (0.65, low - thick - heel * 0.7)], value,
    )  # fmt: skip
    _sole(s, low, thick, heel, value * s.rng.uniform(0.4, 1.0))
    if s.rng.random() < 0.6:  # a zip, an elastic side, or laces
        x = s.rng.uniform(0.55, 0.8)
        s.line([(x, top), (x, 0.7)], s.rng.uniform(0.015, 0.08), value * s.rng.uniform(0.3, 0.9), False)


_GARMENTS: tuple[Callable[[Sheet, float], None], ...] = (
    t_shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle_boot,
)  # fmt: skip


def drawn_garment(rng: np.random.Generator) -> tuple[Array, int]:
    """A garment of a random class: its grey values, (28, 28) in [0, 1], and the class."""
    label = int(rng.integers(len(_GARMENTS)))
    sheet = Sheet(rng)
    _GARMENTS[label](sheet, rng.uniform(0.25, 1.0))
    value = np.clip(sheet.value * _cloth(rng), 0.05, 1) * sheet.cover
    return _in_frame(_bent(np.stack([value, sheet.cover], -1), rng)), label


def _cloth(rng: np.random.Generator) -> Array:
    """What multiplies the grey value of a cloth: shade, stripes, checks, spots, weave."""
    ramp = np.linspace(-1, 1, FINE)
    cloth = 1 + rng.uniform(-0.2, 0.2) * ramp[:, None] + rng.uniform(-0.2, 0.2) * ramp[None, :]
    kind, strength = rng.random(), rng.uniform(0.15, 0.6)
    wave = 1 + strength * np.sign(np.sin(np.arange(FINE) * 2 * np.pi / rng.uniform(7, 24)))
    if kind < 0.12:
        cloth = cloth * wave[:, None]
    elif kind < 0.2:
        cloth = cloth * wave[None, :]
    elif kind < 0.27:
        cloth = cloth * wave[None, :] * wave[:, None]
    elif kind < 0.37:
        cells = int(rng.integers(8, 24))
        spots = rng.normal(1, strength, (cells, cells))
        cloth = cloth * cv2.resize(spots, (FINE, FINE), interpolation=cv2.INTER_NEAREST)
    folds = cv2.resize(rng.normal(0, 0.12, (7, 7)), (FINE, FINE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cloth * (1 + folds) + rng.normal(0, 0.05, (FINE, FINE)))


def _bent(layers: Array, rng: np.random.Generator) -> Array:
    """Slow waves through the sheet, a slant and a stretch, seen from either side."""
    rows, columns = np.mgrid[0:FINE, 0:FINE].astype(np.float32)
    x, y = columns / FINE - 0.5, rows / FINE - 0.5
    for _ in range(2):
        phase, speed = rng.uniform(0, 2 * np.pi), rng.uniform(2, 7)
        direction, push = rng.normal(size=2), rng.normal(0, 0.012, 2)
        wave = np.sin(speed * (direction[0] * x + direction[1] * y) / np.hypot(*direction) * np.pi + phase)
        x, y = x + push[0] * wave, y + push[1] * wave
    x = x * rng.uniform(0.95, 1.25) + rng.normal(0, 0.03) * y
    if rng.random() < 0.5:
        x = -x
    maps = [((v + 0.5) * FINE).astype(np.float32) for v in (x, y)]
    return np.asarray(cv2.remap(layers, maps[0], maps[1], cv2.INTER_LINEAR))


def _in_frame(layers: Array) -> Array:
    """Cut to the garment, its longest edge brought to 28 pixels, in the middle of a square."""
    value, cover = layers[..., 0], layers[..., 1]
    rows, columns = np.nonzero(cover > 0.5)
    cut = value[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    gain = CELLS / max(cut.shape)
    size = [max(1, round(side * gain)) for side in cut.shape]
    small = cv2.resize(cut, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    frame = np.zeros((CELLS, CELLS))
    top, left = (CELLS - size[0]) // 2, (CELLS - size[1]) // 2
    frame[top : top + size[0], left : left + size[1]] = np.clip(small, 0, 1)
    return frame
