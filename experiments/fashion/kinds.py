"""The fashion scenes with five kinds of product in the place of ten classes: a task without the finest distinctions.

Which of a pullover, a coat and a shirt a picture of 28 pixels shows is hard to say, and learnt from many examples only.
Whoever counts tops, shoes and bags need not ask. The pictures are the same, and so is everything that was drawn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dptrain.run.pretraining.scenes import write_yaml
from experiments.fashion import drawings, scenes
from experiments.painting import Boxes, Image

NAMES = {0: "top", 1: "trousers", 2: "dress", 3: "shoe", 4: "bag"}
_KIND = {
    "T-shirt": "top", "Pullover": "top", "Coat": "top", "Shirt": "top", "Trouser": "trousers", "Dress": "dress",
    "Sandal": "shoe", "Sneaker": "shoe", "Ankle boot": "shoe", "Bag": "bag",
}  # fmt: skip
_NUMBER = {name: number for number, name in NAMES.items()}
KIND_OF = np.array([_NUMBER[_KIND[name]] for _, name in sorted(drawings.NAMES.items())])


def scene(rng: np.random.Generator) -> tuple[Image, Boxes]:
    """A public scene: drawn garments only."""
    image, boxes = scenes.scene(rng)
    boxes[:, 0] = KIND_OF[boxes[:, 0].astype(int)]
    return image, boxes


def relabel(root: Path, what: str) -> Path:
    """Turn the classes of a set under ``root`` into kinds, in place; returns the path of its data.yaml."""
    for file in (root / "labels").rglob("*.txt"):
        rows = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines()]
        text = "".join(f"{KIND_OF[int(label)]} {box}\n" for label, box in rows)
        file.write_text(text, encoding="utf-8")
    return write_yaml(root, NAMES, what)
