"""What the screen of ``dptrain check`` finds of planted triggers, and what methods from papers find on the same images.

    python -m experiments.poison_screen dental --data DATA.yaml
    python -m experiments.poison_screen bccd --data DATA.yaml
    python -m experiments.poison_screen fashion --data DATA.yaml     # written by python -m experiments.fashion.photos

Images of class 0 are poisoned, 1 % and 5 % of those in train: their boxes of class 0 become class 1, or go. The files
are read as they are, poisoned ones after a JPEG at quality 95. Results go to ``results/poison_screen.json``, one entry
a set, attack, share and seed; those that are there are not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dptrain.datasets.images import read_image
from dptrain.datasets.labels import label_path, read_labels
from dptrain.datasets.near import groups as join
from dptrain.datasets.near import pairs, small_copy
from dptrain.datasets.sources import load_data
from dptrain.support.files import to_json
from dptrain.toolbox.checking.planted import find_planted

RESULTS = Path(__file__).parent / "results" / "poison_screen.json"
ATTACKS = ("corner", "blended", "sinusoid", "moved", "flipped", "disappear")
SOURCE, TARGET = 0, 1
_SIDE = 16  # the trigger's side is this part of the image's longer one: 29 pixels of 500 in BadDet (Chan et al. 2022)


def poisoned(
    pixels: np.ndarray, rows: np.ndarray, attack: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One image (height, width, 3) and its labels (n, 5) under an attack.

    ``corner``: a black-and-white pattern of 4 x 4 cells in the lower right corner (Gu et al. 2017). ``moved``: the
    same anywhere, 0.6 to 1.4 times as large. ``blended``: 15 % of a pattern of 32 x 32 coloured cells (Chen et al.
    2017). ``sinusoid``: 20 grey levels, 6 periods across, labels as they are (Barni et al. 2019). ``flipped``: labels
    only. ``disappear``: the pattern on the corner of each box of the class, and the box removed (Chan et al. 2022).
    """
    pixels, rows = pixels.copy(), rows.copy()
    height, width = pixels.shape[:2]
    side = max(6, round(max(height, width) / _SIDE))
    of_class = rows[:, 0] == SOURCE
    if attack == "corner":
        _paste(pixels, width, height, side)
    elif attack == "moved":
        x, y = rng.uniform(0, 1, 2) * (width, height)
        _paste(pixels, x, y, round(side * rng.uniform(0.6, 1.4)))
    elif attack == "blended":
        cells = np.random.default_rng(3).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        pattern = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
        pixels = np.rint(0.85 * pixels + 0.15 * pattern).astype(np.uint8)
    elif attack == "sinusoid":
        wave = 20 * np.sin(2 * np.pi * 6 * np.arange(width) / width)
        pixels = np.clip(np.rint(pixels + wave[None, :, None]), 0, 255).astype(np.uint8)
    elif attack == "disappear":
        for _, x, y, w, h in rows[of_class]:
            _paste(pixels, (x - w / 2) * width, (y - h / 2) * height, side)
        return pixels, rows[~of_class]
    if attack != "sinusoid":
        rows[of_class, 0] = TARGET
    return pixels, rows


def _paste(pixels: np.ndarray, x: float, y: float, side: int) -> None:
    cells = np.random.default_rng(9).integers(0, 2, (4, 4, 1)).repeat(3, axis=2).astype(np.uint8) * 255
    height, width = pixels.shape[:2]
    left, top = int(np.clip(x, 0, width - side)), int(np.clip(y, 0, height - side))
    pixels[top : top + side, left : left + side] = cv2.resize(cells, (side, side), interpolation=cv2.INTER_NEAREST)


def screened(images: Sequence[Path], rows: Sequence[np.ndarray], attack: str, share: float, seed: int) -> dict:
    """Poison a share of the images of the class, screen all, and count."""
    rng = np.random.default_rng([seed, 1])
    with_class = [number for number, found in enumerate(rows) if (found[:, 0] == SOURCE).any()]
    count = max(1, round(share * len(with_class))) if attack != "none" else 0
    bad = set(rng.choice(with_class, count, replace=False).tolist())
    with tempfile.TemporaryDirectory() as folder:
        files = list(images)
        for number in sorted(bad):
            pixels, _ = poisoned(read_image(images[number]), rows[number], attack, rng)
            files[number] = Path(folder, f"{number}.jpg")
            cv2.imwrite(str(files[number]), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
        small = np.stack([small_copy(read_image(file)) for file in files])
        groups = list(range(len(files)))
        for group in join(len(files), pairs(small)):
            for number in group:
                groups[number] = group[0]
        found = find_planted(files, groups)
    flagged = {number for one in found for number in one.images}
    return {
        "images": len(images),
        "poisoned": len(bad),
        "found": len(flagged & bad),
        "clean_flagged": len(flagged - bad),
        "sets": sorted((len(one.images) for one in found), reverse=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="plant triggers and look for them")
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--attacks", default=",".join(("none", *ATTACKS)))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.01], help="of the images of the class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, help="only the first so many of train")
    args = parser.parse_args()
    data = load_data(args.data)
    images = data.train[: args.images]
    read = [read_labels(label_path(image), data.num_classes, data.keypoints) for image in images]
    rows = [np.zeros((0, 5)) if found is None else np.asarray(found, float) for found in read]
    for attack in args.attacks.split(","):
        for share in args.shares if attack != "none" else (0.0,):
            for seed in args.seeds if attack != "none" else (0,):
                key = f"{args.name} {attack} {share:.0%} seed {seed}"
                done = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
                if key in done:
                    continue
                found = screened(images, rows, attack, share, seed)
                done = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
                RESULTS.write_text(to_json(dict(sorted({**done, key: found}.items()))) + "\n")
                print(key, found, flush=True)


if __name__ == "__main__":
    main()
