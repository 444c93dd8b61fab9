"""Public scenes of stained blood smears: red cells, white cells and platelets as a textbook describes them.

    python -m experiments.cells.scenes runs/cells --scenes 64         # to look at them

What is drawn is what any haematology textbook says of a Romanowsky-stained smear under the microscope: red cells are
discs of 6 to 9 micrometres, pale in the middle, that eosin stains salmon; white cells are larger, with a nucleus that
the azure dyes stain violet, round (lymphocyte), like a kidney (monocyte) or in two to five lobes (granulocytes), in a
cytoplasm with or without granules; platelets are violet grains of 2 to 3 micrometres. Light goes through all of them,
so what they take away multiplies (Beer and Lambert). Magnification, stain, light, focus and crowding vary widely, over
ranges set by common sense. No photo of a smear was used to choose or to check any of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dptrain.run.pretraining.scenes import write_split, write_yaml
from experiments.painting import Boxes, Image

NAMES = {0: "RBC", 1: "WBC", 2: "Platelets"}
WIDTH, HEIGHT = 320, 240  # pixels: the shape of a microscope camera's picture
RED, WHITE, PLATELET = NAMES
_EOSIN = np.array([0.12, 0.80, 0.72])  # what a layer of the dye takes from red, green and blue light
_AZURE = np.array([0.75, 1.00, 0.35])
_SEEN = 0.25  # least share of a cell's box inside the picture for it to count as a cell
Array = NDArray[np.float64]


class Smear:
    """The light that is left of a field of view, and the cells put into it so far."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.absorbed = np.zeros((HEIGHT, WIDTH, 3))
        self.radius = rng.uniform(13, 32)  # of a red cell, in pixels: the magnification
        self.eosin = np.clip(_EOSIN * rng.uniform(0.5, 1.3) + rng.normal(0, 0.08, 3), 0.02, None)
        self.azure = np.clip(_AZURE * rng.uniform(0.8, 1.5) + rng.normal(0, 0.12, 3), 0.05, None)
        self.cells: list[tuple[int, float, float, float]] = []  # class, x, y, radius
        self.rows: list[list[float]] = []

    def grid(self, x: float, y: float, reach: float) -> tuple[slice, slice, Array, Array]:
        """The part of the picture around a point, and the places of its pixels from there."""
        left, right = (int(np.clip(v, 0, WIDTH)) for v in (x - reach, x + reach + 1))
        top, bottom = (int(np.clip(v, 0, HEIGHT)) for v in (y - reach, y + reach + 1))
        rows, columns = np.mgrid[top:bottom, left:right]
        return slice(top, bottom), slice(left, right), columns + 0.5 - x, rows + 0.5 - y

    def outline(self, rough: float, least: float = 0.85) -> Outline:
        """A closed curve around the origin, of mean radius about 1."""
        return Outline(self.rng, rough, least)

    def absorb(self, rows: slice, columns: slice, depth: Array, dye: Array) -> None:
        """Take light away where a dye lies, as deep as it lies there."""
        self.absorbed[rows, columns] += np.clip(depth, 0, None)[:, :, None] * dye

    def note(self, label: int, x: float, y: float, outline: Outline, radius: float) -> None:
        """Keep the cell's box, cut to the picture, unless hardly anything of it can be seen."""
        px, py = outline.points()
        box = np.array([x + px.min() * radius, y + py.min() * radius, x + px.max() * radius, y + py.max() * radius])
        cut = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        area, seen = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, cut))
        self.cells.append((label, x, y, radius))
        if seen < _SEEN * area or min(cut[2] - cut[0], cut[3] - cut[1]) < 2:
            return
        centre, size = (cut[:2] + cut[2:]) / 2, cut[2:] - cut[:2]
        self.rows.append([label, *(centre / [WIDTH, HEIGHT]), *(size / [WIDTH, HEIGHT])])

    def place(self, radius: float, overlap: float, outside: float) -> tuple[float, float] | None:
        """A random centre that keeps its distance from the other cells; None where none was found."""
        for _ in range(12):
            x = self.rng.uniform(-outside * radius, WIDTH + outside * radius)
            y = self.rng.uniform(-outside * radius, HEIGHT + outside * radius)
            if all(np.hypot(x - cx, y - cy) > (radius + r) * (1 - overlap) for _, cx, cy, r in self.cells):
                return x, y
        return None


class Outline:
    """An ellipse with slow waves on its edge; tells how far out a place lies, 1 on the edge."""

    def __init__(self, rng: np.random.Generator, rough: float, least: float) -> None:
        self.turn, self.ratio = rng.uniform(0, np.pi), rng.uniform(least, 1)
        self.waves = [(k, rng.normal(0, rough / k), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5, 7)]

    def edge(self, angle: Array) -> Array:
        """Radius of the edge in a direction."""
        turned = angle - self.turn
        ellipse = self.ratio / np.sqrt((self.ratio * np.cos(turned)) ** 2 + np.sin(turned) ** 2)
        return np.asarray(ellipse * (1 + sum(a * np.sin(k * angle + phase) for k, a, phase in self.waves)))

    def depth(self, x: Array, y: Array) -> Array:
        """Distance from the origin in units of the edge in that direction."""
        return np.asarray(np.hypot(x, y) / self.edge(np.arctan2(y, x)))

    def points(self) -> tuple[Array, Array]:
        """Points of the edge."""
        angle = np.linspace(0, 2 * np.pi, 72)
        return np.cos(angle) * self.edge(angle), np.sin(angle) * self.edge(angle)


def _inside(depth: Array, radius: float, soft: float = 1.0) -> Array:
    """1 inside an outline and 0 outside, with an edge of about ``soft`` pixels."""
    return np.clip((1 - depth) * radius / soft + 0.5, 0, 1)


def _grain(shape: tuple[int, int], coarse: float, rng: np.random.Generator) -> Array:
    """Noise of mean 0 and deviation 1 whose grains are about ``coarse`` pixels."""
    noise = cv2.GaussianBlur(rng.normal(size=shape), (0, 0), max(0.3, coarse))
    return np.asarray(noise / (noise.std() + 1e-6))


def red_cell(smear: Smear, x: float, y: float) -> None:
    """A disc, thin in the middle."""
    rng = smear.rng
    radius = smear.radius * rng.uniform(0.82, 1.12)
    outline = smear.outline(rng.uniform(0, 0.05), least=0.75)
    rows, columns, dx, dy = smear.grid(x, y, radius * 1.6)
    depth = outline.depth(dx / radius, dy / radius)
    pale, wide = rng.uniform(0.0, 0.85), rng.uniform(0.25, 0.5)
    off = rng.normal(0, 0.08, 2)
    hollow = np.exp(-((np.hypot(dx / radius - off[0], dy / radius - off[1]) / wide) ** 2))
    rim = 1 + rng.uniform(0, 0.35) * np.exp(-(((depth - 0.9) / 0.12) ** 2))
    thick = rng.uniform(0.35, 0.75) * rim * (1 - pale * hollow)
    smear.absorb(rows, columns, thick * _inside(depth, radius, rng.uniform(1, 2.5)), smear.eosin)
    smear.note(RED, x, y, outline, radius)


def white_cell(smear: Smear, x: float, y: float, radius: float) -> None:
    """A large cell with a violet nucleus."""
    rng = smear.rng
    outline = smear.outline(rng.uniform(0, 0.05))
    rows, columns, dx, dy = smear.grid(x, y, radius * 1.5)
    body = _inside(outline.depth(dx / radius, dy / radius), radius, 2)
    grain = _grain(body.shape, rng.uniform(0.7, 1.5), rng)
    granular = rng.uniform(0.0, 0.5)
    dye = smear.eosin * rng.uniform(0, 1) + smear.azure * rng.uniform(0, 0.6)
    smear.absorb(rows, columns, rng.uniform(0.15, 0.5) * body * (1 + granular * grain), dye)
    nucleus = np.zeros_like(body)
    kind = rng.random()
    if kind < 0.3:  # lymphocyte: round, fills most of the cell
        parts = [(0.0, 0.0, rng.uniform(0.65, 0.92))]
    elif kind < 0.45:  # monocyte: a kidney
        turn, bend = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.45)
        angles = turn + np.linspace(-1.1, 1.1, 5)
        parts = [(bend * np.cos(a), bend * np.sin(a), rng.uniform(0.32, 0.45)) for a in angles]
    else:  # granulocyte: lobes on a thread
        lobes, turn, step = int(rng.integers(2, 6)), rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.6)
        angles = turn + step * np.arange(lobes)
        parts = [
            (rng.uniform(0.3, 0.5) * np.cos(a), rng.uniform(0.3, 0.5) * np.sin(a), rng.uniform(0.24, 0.42))
            for a in angles
        ]
    for px, py, size in parts:
        lobe = smear.outline(0.06, least=0.7)
        depth = lobe.depth((dx / radius - px) / size, (dy / radius - py) / size)
        nucleus = np.maximum(nucleus, _inside(depth, radius * size, 2))
    nucleus *= body * (1 + rng.uniform(0.03, 0.2) * _grain(body.shape, radius * 0.06, rng))
    smear.absorb(rows, columns, rng.uniform(0.7, 1.5) * nucleus, smear.azure)
    smear.note(WHITE, x, y, outline, radius)


def platelet(smear: Smear, x: float, y: float) -> None:
    """A violet grain, often ragged, paler at its edge."""
    rng = smear.rng
    radius = smear.radius * rng.uniform(0.18, 0.42)
    outline = smear.outline(rng.uniform(0.05, 0.2), least=0.6)
    rows, columns, dx, dy = smear.grid(x, y, radius * 2)
    depth = outline.depth(dx / radius, dy / radius)
    grain = 1 + 0.35 * _grain(depth.shape, radius * 0.15, rng)
    thick = rng.uniform(0.4, 1.1) * _inside(depth, radius, 2) * grain * np.exp(-((depth / rng.uniform(0.7, 1.6)) ** 2))
    smear.absorb(rows, columns, thick, smear.azure * 0.8 + smear.eosin * 0.2)
    smear.note(PLATELET, x, y, outline, radius)


def scene(rng: np.random.Generator) -> tuple[Image, Boxes]:
    """One RGB field of view (HEIGHT, WIDTH, 3) and its boxes."""
    smear = Smear(rng)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.12, 0.66, 0.17, 0.05]))):
        radius = smear.radius * rng.uniform(1.15, 2.1)
        found = smear.place(radius, 0.0, 0.3)
        if found:
            white_cell(smear, *found, radius)
    crowd, overlap = rng.uniform(0.1, 0.75), rng.uniform(0.0, 0.3)
    for _ in range(max(1, round(crowd * WIDTH * HEIGHT / (np.pi * smear.radius**2)))):
        found = smear.place(smear.radius, overlap, 0.6)
        if found:
            red_cell(smear, *found)
    for _ in range(int(rng.poisson(rng.choice([0.5, 2, 4])))):
        found = smear.place(smear.radius * 0.3, rng.uniform(-0.1, 0.2), 0.0)
        if found:
            platelet(smear, *found)
    return _photo(smear), np.array(smear.rows).reshape(-1, 5)


def _photo(smear: Smear) -> Image:
    """What a camera makes of the light that is left: uneven light, dirt, focus, white balance, noise."""
    rng = smear.rng
    across, down = np.linspace(-1, 1, WIDTH)[None, :], np.linspace(-1, 1, HEIGHT)[:, None]
    lamp = 1 + rng.uniform(-0.08, 0.08) * across + rng.uniform(-0.08, 0.08) * down
    lamp = lamp - rng.uniform(0, 0.15) * (across**2 + down**2)
    plasma = 0.03 * cv2.resize(rng.normal(size=(6, 8)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    light = lamp[:, :, None] * np.exp(-smear.absorbed - plasma[:, :, None] * rng.uniform(0, 1, 3))
    for _ in range(int(rng.poisson(0.7))):  # dirt, without a box
        x, y, size = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), rng.uniform(1, 3)
        cv2.circle(light, (int(x), int(y)), int(size), tuple(rng.uniform(0.1, 0.6, 3)), -1, cv2.LINE_AA)
    white = rng.uniform(185, 250) * np.clip(1 + rng.normal(0, 0.06, 3), 0.7, 1.15)
    picture = cv2.GaussianBlur(light, (0, 0), rng.uniform(0.3, 1.6)) ** rng.uniform(0.75, 1.3) * white
    if rng.random() < 0.3:
        grey = picture.mean(axis=2, keepdims=True)
        picture = grey + (picture - grey) * rng.uniform(0.3, 1.0)
    picture = picture + rng.normal(0, rng.uniform(0.5, 6), picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description="write public scenes of blood smears in Ultralytics layout")
    parser.add_argument("root", type=Path)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for number, split in enumerate(("train", "val")):
        write_split(
            args.root, split, (scene(np.random.default_rng([args.seed, number, i])) for i in range(args.scenes))
        )
    print(write_yaml(args.root, NAMES, "drawn scenes of blood smears; public"))


if __name__ == "__main__":
    main()
