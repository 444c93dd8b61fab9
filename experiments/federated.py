"""Five hospitals of handwritten digits: one detector by Flower, beside each site alone and all images in one place.

    python -m experiments.federated        # minutes on one core; everything it writes is under runs/federated

The 700 private scenes of the demo are dealt to five sites of unequal sizes, each with digits of its own neighbourhood
in the main. Every site trains at epsilon 8, over all rounds together; so does each site alone, and the central run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import dptrain
from dptrain.federated.simulation import simulate
from dptrain.statement.results import MAP, MAP50, read_rows
from experiments import recipe
from experiments.digits.public_start import WEIGHTS
from experiments.digits.scenes import NAMES, write_private

SIZES = {"north": 280, "east": 175, "south": 120, "west": 80, "centre": 45}
STEPS = 20
TOTAL = sum(SIZES.values())


def deal(data: Path, root: Path, seed: int = 0) -> dict[str, Path]:
    """Deal the train scenes to the sites; scenes of like digits go to one site, with exceptions."""
    images = sorted((data.parent / "images" / "train").iterdir())
    rng = np.random.default_rng(seed)
    first = [float(_labels(image)[0]) for image in images]
    order = np.argsort((np.array(first) + rng.normal(0.0, 1.5, len(first))) % 10)
    ends = np.cumsum(list(SIZES.values()))
    found = {}
    for name, numbers in zip(SIZES, np.split(order, ends[:-1]), strict=True):
        place = root / name
        place.mkdir(parents=True)
        (place / "train.txt").write_text("".join(f"{images[i].absolute()}\n" for i in numbers))
        found[name] = place / "data.yaml"
        text = {"path": str(place.absolute()), "train": "train.txt", "names": NAMES}
        text["val"] = str((data.parent / "images" / "val").absolute())
        found[name].write_text(yaml.safe_dump(text))
    return found


def _labels(image: Path) -> list[int]:
    file = image.parents[2] / "labels" / image.parent.name / f"{image.stem}.txt"
    return [int(line.split()[0]) for line in file.read_text().splitlines()]


def classes_of(data: Path) -> str:
    """The three commonest digits of a site, for the table."""
    lines = (data.parent / "train.txt").read_text().splitlines()
    counts = Counter(label for line in lines for label in _labels(Path(line)))
    return ", ".join(str(label) for label, _ in counts.most_common(3))


def keywords(data: Path, output: Path, size: int, ledger: Path, **more: Any) -> dict[str, Any]:
    """The recipe for a dataset of this declared size, at the central run's sample rate."""
    values = recipe.train_arguments(
        WEIGHTS.absolute(), data.absolute(), output.absolute(), steps=STEPS, tracking={"enabled": False}, **more
    )
    values["privacy"] |= {"dataset_size": size, "expected_batch_size": round(recipe.BATCH * size / TOTAL)}
    values["budget"] = {"url": f"sqlite:///{ledger.absolute()}"}
    return values


def federate(root: Path, sites: dict[str, Path], val: Path, rounds: int) -> dict[str, float]:
    """Train by Flower's simulation engine; return the metrics of the last round."""
    files = []
    for name, data in sites.items():
        values = keywords(data, root / name / "run", SIZES[name], root / name / "budget.db", validation="off")
        files.append(root / name / "site.yaml")
        files[-1].write_text(json.dumps({"name": name, "rounds": rounds, **values}))
    server = root / "server.yaml"
    (root / "classes.yaml").write_text(yaml.safe_dump({"val": str(val.absolute()), "names": NAMES}))
    wanted = {"model": str(WEIGHTS.absolute()), "imgsz": recipe.SIZE, "trainable": recipe.TRAINABLE, "device": "cpu"}
    wanted |= {"data": "classes.yaml", "output_dir": "federation", "head": recipe.HEAD, "sites": len(sites)}
    wanted |= {"rounds": rounds, "steps_per_round": STEPS // rounds}
    wanted |= {"tracking": {"uri": f"sqlite:///{(root / 'mlflow.db').absolute()}", "experiment": "federated"}}
    server.write_text(json.dumps(wanted))
    simulate(server, files)
    return read_rows(root / "federation" / "results.csv")[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="five sites of digits: federated, alone, and in one place")
    parser.add_argument("--root", type=Path, default=Path("runs/federated"), help="everything is written under it")
    parser.add_argument("--rounds", type=int, default=10, help=f"into which the {STEPS} steps of a site are divided")
    args = parser.parse_args()
    root: Path = args.root.absolute()
    shutil.rmtree(root, ignore_errors=True)
    data = write_private(root / "private")
    sites = deal(data, root)
    rows: list[dict[str, Any]] = []

    def add(what: str, values: dict[str, float], began: float) -> None:
        rows.append({"what": what, MAP50: values[MAP50], MAP: values[MAP], "seconds": time.perf_counter() - began})
        print(
            f"{what:40} mAP50 {values[MAP50]:.3f}  mAP50-95 {values[MAP]:.3f}  {rows[-1]['seconds']:.0f} s", flush=True
        )
        (root / "table.json").write_text(json.dumps(rows, indent=1))

    began = time.perf_counter()
    add("public start", recipe.evaluate_weights(WEIGHTS, data).values, began)
    began = time.perf_counter()
    add(f"federated, {args.rounds} rounds", federate(root, sites, data.parent / "images" / "val", args.rounds), began)
    for name, place in sites.items():
        began = time.perf_counter()
        alone = keywords(place, root / name / "alone", SIZES[name], root / name / "alone.db", evaluate_every=STEPS)
        add(f"{name} alone: {SIZES[name]}, mostly {classes_of(place)}", dptrain.train(**alone).metrics, began)
    began = time.perf_counter()
    central = keywords(data, root / "central", TOTAL, root / "central.db", evaluate_every=STEPS)
    add("all images in one place", dptrain.train(**central).metrics, began)
    print(f"Honestly: {recipe.TUNED}.")


if __name__ == "__main__":
    main()
