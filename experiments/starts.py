"""Make the public starts of the benchmark with `dptrain pretrain`: garments and cells.

    python -m experiments.starts fashion        # writes experiments/fashion/public_start.pt and pretraining.json
    python -m experiments.starts cells          # writes experiments/cells/public_start.pt and pretraining.json

No private image has a part in them: the generators open no photo, and their settings were fixed before any run on one.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from dptrain.pretraining.record import RECORD
from dptrain.pretraining.run import pretrain

HERE = Path(__file__).resolve().parent
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
}  # fmt: skip


def start_of(name: str) -> Path:
    """Where a start lies."""
    return HERE / name / "public_start.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description="train the public starts of the benchmark")
    parser.add_argument("name", choices=sorted(SETTINGS))
    parser.add_argument("--root", type=Path, default=Path("runs/starts"))
    parser.add_argument("--epochs", type=int, help="default: as the committed start was made")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    settings = {**SETTINGS[args.name], **({"epochs": args.epochs} if args.epochs else {})}
    result = pretrain(
        model="yolo26n.yaml", output_dir=str(args.root / args.name), resume=args.resume,
        **{"batch_size": 64, **settings},
    )  # fmt: skip
    shutil.copy(result.weights, start_of(args.name))
    shutil.copy(result.weights.parent / RECORD, start_of(args.name).parent / RECORD)
    print(start_of(args.name))


if __name__ == "__main__":
    main()
