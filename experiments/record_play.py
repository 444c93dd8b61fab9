"""Re:cord-play on whole runs: does anything of one image pass the door beside the noised sum?

    python -m experiments.record_play              # 40 pairs of neighbours, some minutes of one core
    python -m experiments.record_play 400          # more of them; 0: only those with tied labels, the others stay

The method of Re:cord-play (Cebere et al. 2026, arXiv 2602.17454), by a script of our own. A detector is trained by
``dptrain.train``, from image files to released weights, on a dataset and on the same with one image more. Everything
that goes into ``noise.privatize``, the one door, is recorded, and what comes out is fixed. Then

- no input of the door may be further from its neighbour's than the sensitivity that was stated with it;
- nothing else may differ: the files of the run's folder but the owner's, to the byte, the weights among them, every
  word on the screen, and how many random numbers each stream was asked for.

The pairs differ in the kind of newcomer, the other images, detector, engine, clip rule, sample rate, physical batch
size and augmentation. In some more the label of the other image was tied to the last digit by bisection: a newcomer
would move it to another anchor if it changed the shape of a forward pass. Writes experiments/results/record_play.json,
and ends with status 1 if anything was found. The images are made up.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dptrain import Clipping, PrivacyPlan
from dptrain.detection.data import DetectionDataset, collate, load_data, to_device
from dptrain.detection.model import load_model, save_weights
from dptrain.gradients import ENGINES
from dptrain.gradients.autotune import by_rule
from experiments.sweep import machine
from tests.privacy.datasets import DETECTORS, IMAGES, Neighbours, detector, write_neighbours
from tests.privacy.recording import difference, length
from tests.privacy.ties import Step, tied_boxes
from tests.privacy.whole_runs import Door, published, run_on

RESULTS = Path(__file__).resolve().parent / "results" / "record_play.json"
ROUNDING = 1e-4  # of the sensitivity: sums in single precision
TIED = [  # model, head, newcomer
    (model, head, newcomer)
    for model, head in (("yolo26n.yaml", "one_to_one"), ("yolov8n.yaml", "auto"))
    for newcomer in ("one box", "300 boxes", "no boxes")
]
_TIED_SIDE = 64
# By name; ``scaled`` is left out, since its scales come from a public dataset of one's own.
_CLIPPINGS = {
    "flat": Clipping(),
    "automatic": Clipping("automatic"),
    "groups": Clipping("groups", groups=("model.0*|model.1*", "model.2*")),
}


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in one image, as drawn."""

    newcomer: str
    others: tuple[str, ...]
    detector: str
    engine: str
    clipping: str
    rate: float
    physical_batch_size: int
    augmented: bool
    seed: int


def draw_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Draw pairs in which every newcomer, detector, engine and clip rule comes equally often."""
    rng = np.random.default_rng(seed)
    dealt = {
        name: [kinds[i % len(kinds)] for i in rng.permutation(count)]
        for name, kinds in (
            ("newcomer", list(IMAGES)), ("detector", DETECTORS), ("engine", list(ENGINES)),
            ("clipping", list(_CLIPPINGS)),
        )
    }  # fmt: skip
    return [
        Pair(
            others=_others(rng, dealt["newcomer"][at]),
            rate=float(rng.choice([0.7, 0.9, 1.0])),
            physical_batch_size=int(rng.integers(1, 6)),
            augmented=bool(rng.integers(2)),
            seed=int(rng.integers(2**16)),
            **{name: kinds[at] for name, kinds in dealt.items()},
        )
        for at in range(count)
    ]


def _others(rng: np.random.Generator, newcomer: str) -> tuple[str, ...]:
    """Up to four kinds of image; those of one colour once, since a picture is in a dataset once."""
    kinds = [kind for kind in IMAGES if kind != newcomer]
    return tuple(map(str, rng.choice(kinds, int(rng.integers(1, 5)), replace=False)))


def play(pair: Pair, folder: Path) -> tuple[float, list[str]]:
    """Train on both datasets; return the largest distance over its sensitivity, and what else differs."""
    start = save_weights(detector(pair.detector, folder), folder / "start.pt")
    neighbours = write_neighbours(folder / "data", pair.others, pair.newcomer, len(pair.others), pair.seed)
    clipping = _CLIPPINGS[pair.clipping]
    plan = PrivacyPlan(pair.rate, 2, 1.0, 1.0 if pair.clipping == "automatic" else 0.3, 1e-3, 4, clipping=clipping)
    return compare(
        neighbours, start, folder, plan=plan, engine=pair.engine, physical_batch_size=pair.physical_batch_size,
        augment={"fliplr": 0.5} if pair.augmented else {},
    )  # fmt: skip


def play_tied(name: str, head: str, newcomer: str, folder: Path) -> tuple[float, list[str], int]:
    """The same with two images, one of them with a box tied to the last digit; and how many boxes were tied, 0 or 1.

    Such a box goes to one anchor where its image is alone in a forward pass, and to another beside the newcomer.
    """
    start = save_weights(load_model(name, 2, norm="group", head=head), folder / "start.pt")
    neighbours = write_neighbours(folder / "data", ["one box"], newcomer, 1)
    plan = PrivacyPlan(1.0, 1, 1.0, 0.1, 1e-3, 2)
    rows = DetectionDataset(load_data(neighbours.larger), "train", _TIED_SIDE)
    batch = to_device(collate([rows.sample(row) for row in range(2)]), "cpu")
    pixels, own = batch["img"], batch["bboxes"][batch["batch_idx"].view(-1) == 1]
    model = load_model(start, 2)
    with by_rule():
        alone = Step(model, plan, pixels[:1], 1, None, own)
        tied, count = tied_boxes(alone, Step(model, plan, pixels, 2, 1, own), 1)
    numbers = " ".join(f"{number:.9f}" for number in tied[0].tolist())
    (folder / "data" / "labels" / "00.txt").write_text(f"0 {numbers}\n")
    again = DetectionDataset(load_data(neighbours.larger), "train", _TIED_SIDE).sample(0)["bboxes"]
    changes = {"imgsz": _TIED_SIDE, "plan": plan, "physical_batch_size": 2, "augment": {}}
    return *compare(neighbours, start, folder, **changes), count * int(torch.equal(again, tied))


def compare(neighbours: Neighbours, start: Path, folder: Path, **changes: Any) -> tuple[float, list[str]]:
    """Train on both datasets; return the largest distance over its sensitivity, and what else differs."""
    doors: list[Door] = []
    files, screens = [], []
    for newcomers, dataset in enumerate((neighbours.smaller, neighbours.larger)):
        where = folder / f"run{newcomers}"
        with pytest.MonkeyPatch.context() as patch, heard(folder / f"screen{newcomers}") as screen:
            _, seen = run_on(dataset, start, where, patch, newcomers, **changes)
        doors.append(seen)
        files.append(published(where))
        screens.append(screen.read_bytes().replace(bytes(where), b""))
    one, other = doors
    found = [name for name in sorted(files[0].keys() | files[1].keys()) if files[0].get(name) != files[1].get(name)]
    for name, (mine, theirs) in {
        "screen": screens,
        "random streams": (one.draws, other.draws),
        "sensitivities": (one.stated, other.stated),
        "steps": (len(one.values), len(other.values)),
    }.items():
        if mine != theirs:
            found.append(name)
    distances = [
        length(difference(mine, theirs)) / sensitivity
        for mine, theirs, (sensitivity, _) in zip(one.values, other.values, one.stated, strict=True)
    ]
    return max(distances), found


@contextmanager
def heard(file: Path) -> Iterator[Path]:
    """Keep what reaches descriptors 1 and 2 inside the block in a file."""
    sys.stdout.flush(), sys.stderr.flush()
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    with file.open("wb") as kept:
        for descriptor in (1, 2):
            os.dup2(kept.fileno(), descriptor)
        try:
            yield file
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            for descriptor, own in zip((1, 2), before, strict=True):
                os.dup2(own, descriptor)
                os.close(own)


def main(count: int = 40) -> int:
    """Play all pairs, write what was found, and return the exit status."""
    logging.basicConfig(format="%(message)s")  # else the first run's warnings look unlike those of later ones
    largest: dict[str, dict[str, float]] = {"newcomer": {}, "detector": {}, "engine": {}, "clipping": {}}
    tied, tight, different, violations = [], 0, Counter[str](), []

    def judge(what: dict[str, Any], distance: float, found: list[str]) -> None:
        different.update(found)
        if distance > 1.0 + ROUNDING or found:
            violations.append({**what, "distance": distance, "different": found})
        print(f"{what}: {distance:.7f} of the sensitivity, {', '.join(found) or 'nothing'} else", flush=True)

    for name, head, newcomer in TIED:
        with tempfile.TemporaryDirectory(prefix="record-play-") as folder:
            distance, found, boxes = play_tied(name, head, newcomer, Path(folder))
        tied.append({"model": name, "head": head, "newcomer": newcomer, "boxes_tied": boxes, "distance": distance})
        judge(tied[-1], distance, found)
    facts: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and not count else {}
    RESULTS.write_text(json.dumps({**facts, "pairs_with_tied_labels": tied}, indent=1) + "\n")
    for number, pair in enumerate(draw_pairs(count), 1):
        with tempfile.TemporaryDirectory(prefix="record-play-") as folder:
            distance, found = play(pair, Path(folder))
        for name, by in largest.items():
            by[getattr(pair, name)] = max(distance, by.get(getattr(pair, name), 0.0))
        tight += distance > 0.99
        judge({"pair": number, **vars(pair)}, distance, found)
        facts = {
            "pairs": number,
            "largest_distance_over_sensitivity": max(largest["newcomer"].values()),
            "pairs_above_99_percent": tight,
            "pairs_with_tied_labels": tied,
            "anything_else_that_differs": dict(different),
            "violations": violations,
            "largest_by": largest,
            "machine": machine(),
        }
        RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
