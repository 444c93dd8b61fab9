"""Make the public starts of the benchmark with `dptrain pretrain`: garments, cells, and three that go on from garments.

    python -m experiments.starts fashion            # writes experiments/fashion/public_start.pt and pretraining.json
    python -m experiments.starts cells              # the same under experiments/cells/
    python -m experiments.starts fashion_kinds      # goes on from garments, of which five kinds are told apart
    python -m experiments.starts fashion_400        # goes on from garments, with 400 public photos
    python -m experiments.starts fashion_1600       # the same with 1,600

No private image has a part in them: the generators open no photo, and the photos of the last two are public by
declaration, and in no private scene. How long and at which rate garments are trained was settled after runs on photos
(README).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from dptrain.run.pretraining.run import pretrain
from dptrain.run.public_start import RECORD
from experiments.fashion import photos

HERE = Path(__file__).resolve().parent
# Of a start that goes on from garments.
_FURTHER = {
    "model": "experiments/fashion/public_start.pt",  # as it is seen from the root, and kept in the record
    "imgsz": 96, "epochs": 8, "optimizer": {"name": "adamw", "lr": 1e-3},
    "augment": {"mosaic": 0.0, "scale": 0.2},
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "fashion": {
        "scenes": {"generator": "experiments.fashion.scenes", "train": 12000, "val": 300},
        "imgsz": 96, "epochs": 18, "optimizer": {"name": "adamw", "lr": 2e-3},
        "public_data": "garments drawn from outlines; no photo",
        "augment": {"mosaic": 0.0, "scale": 0.2},  # the painter varies place, size and company already
    },
    "cells": {
        "scenes": {"generator": "experiments.cells.scenes", "train": 6000, "val": 150},
        "imgsz": 192, "epochs": 8, "batch_size": 32, "optimizer": {"name": "adamw", "lr": 2e-3},
        "public_data": "blood smears drawn from a textbook's words; no photo",
        "augment": {"mosaic": 0.0, "flipud": 0.5, "scale": 0.3},
    },
    "fashion_kinds": {
        **_FURTHER,
        "scenes": {"generator": "experiments.fashion.kinds", "train": 8000, "val": 300, "seed": 1},
        "public_data": "garments drawn from outlines, of five kinds; no photo",
    },
}  # fmt: skip
PHOTOS = {"fashion_400": 400, "fashion_1600": 1600}


def with_photos(name: str, scenes: Path) -> dict[str, Any]:
    """Settings of a start that goes on from drawn garments with scenes of public photos, which are written."""
    folder = photos.find_photos()
    if folder is None:
        sys.exit(photos.MISSING)
    if not (scenes / "data.yaml").is_file():  # written last
        photos.write_published(scenes, folder, PHOTOS[name], 8000, 500)
    return {
        **_FURTHER,
        "data": str(scenes / "data.yaml"),
        "public_data": f"{PHOTOS[name]} product photos that are in no private scene, each in many scenes",
    }


def start_of(name: str) -> Path:
    """Where a start lies."""
    return HERE / name / "public_start.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description="train the public starts of the benchmark")
    parser.add_argument("name", choices=[*SETTINGS, *PHOTOS])
    parser.add_argument("--root", type=Path, default=Path("runs/starts"))
    parser.add_argument("--epochs", type=int, help="default: as the committed start was made")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    output = args.root / args.name
    made = with_photos(args.name, args.root / f"{args.name}_scenes") if args.name in PHOTOS else SETTINGS[args.name]
    settings = {**made, **({"epochs": args.epochs} if args.epochs else {})}
    result = pretrain(
        output_dir=str(output), resume=args.resume, **{"model": "yolo26n.yaml", "batch_size": 64, **settings}
    )
    start_of(args.name).parent.mkdir(exist_ok=True)
    shutil.copy(result.weights, start_of(args.name))
    shutil.copy(result.weights.parent / RECORD, start_of(args.name).parent / RECORD)
    print(start_of(args.name))


if __name__ == "__main__":
    main()
