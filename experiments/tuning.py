"""Choose a private recipe on public scenes, so that the private result hides no epsilon.

    python -m experiments.tuning fashion --lr 3e-3 1e-2 3e-2 --trainable norm_and_bias all

A candidate is tried on a public stand-in of the private set, with the noise of each step that the private run would
have: noise multiplier and batch are both divided by ``--scale``, and the number of steps stays, which leaves the noise
of the mean gradient as it is and costs that many times less (Sander, Stock and Sablayrolles 2023, "TAN without a
burn"). The stand-ins:

- fashion: scenes of scikit-learn's handwritten digits, each glyph in many scenes, as ten classes of garments: small
  grey photos on the same sheets, from the start of drawn garments. Further from the start than the photos are, so that
  a recipe has much to learn. ``--start digits`` is from font-drawn digits, which is nearer. ``--spare-photos`` is of
  the garments' own photos, of the 20,000 that are in no private scene: what an owner can do who has some images that
  need no protection.
- cells: drawn smears in made-up colours (``cells/shifted.py``), as many as there are photos, from the start of drawn
  smears.

Writes experiments/results/tuning_SET.json, a row for each candidate, also the bad ones; none is tried twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import dptrain
from dptrain.run.pretraining.scenes import load_generator, write_scenes, write_split, write_yaml
from dptrain.settings import resolve as settings
from dptrain.statement.results import MAP, MAP50
from dptrain.support.files import write_json
from experiments.benchmark.painted import PAINTED, fashion_photos
from experiments.digits import scenes as digits
from experiments.digits.glyphs import handwritten_glyphs
from experiments.fashion import photos as garments
from experiments.photos import Missing
from experiments.recipe import scaled_by
from experiments.sweep import machine

RESULTS = Path(__file__).resolve().parent / "results"
STAND_INS = ("fashion", "cells")
SCENES = 4000
_FOUND = ("mAP50", "mAP50-95", "failed", "seconds", "machine")  # of a row; all else is what was tried


def stand_in(name: str, start: str, root: Path, spare: bool = False) -> tuple[Path, Path, int]:
    """The public start, the data.yaml and the number of scenes that stand in for a set."""
    place = root / "tuning" / (f"{name}_spare" if spare else f"{name}_{start}")
    if spare:
        if not (place / "data.yaml").is_file():
            garments.write_spare(place, fashion_photos(), SCENES, 1000)
        return PAINTED[start].start(), place / "data.yaml", SCENES
    if name == "cells":
        units = PAINTED["cells"].units
        if not (place / "data.yaml").is_file():
            write_scenes(load_generator("experiments.cells.shifted"), place, {"train": units, "val": 100}, seed=7)
        return PAINTED[start].start(), place / "data.yaml", units
    if not (place / "data.yaml").is_file():
        _write_handwriting(place, digits.NAMES if start == "digits" else garments.NAMES)
    return PAINTED[start].start(), place / "data.yaml", SCENES


def _write_handwriting(root: Path, names: Mapping[int, str]) -> None:
    """Scenes of handwritten digits; a glyph is in several scenes of its split, for here it is public."""
    glyphs = handwritten_glyphs()
    order = np.random.default_rng(0).permutation(len(glyphs))
    halves = {"train": order[: len(order) * 3 // 4], "val": order[len(order) * 3 // 4 :]}
    for number, (split, count) in enumerate((("train", SCENES), ("val", 300))):

        def scenes(of: Any = halves[split], number: int = number, count: int = count) -> Any:
            for i in range(count):
                rng = np.random.default_rng([40, number, i])
                yield digits.paint([glyphs[j] for j in rng.choice(of, rng.integers(1, 4), replace=False)], rng)

        write_split(root, split, scenes())
    write_yaml(root, names, "handwritten digits, repeated; public here")


def simulated(
    name: str, epsilon: float, scale: float, units: int, changes: Mapping[str, Any], public: Path
) -> dict[str, Any]:
    """Keywords of ``dptrain.train`` that try a candidate with the private run's noise at a part of its cost.

    Args:
        name: The set whose recipe is tried.
        epsilon: Of the private run that is simulated.
        scale: By which noise multiplier and batch are divided.
        units: Scenes of the stand-in.
        changes: Dotted keys of ``dptrain train`` and their values.
        public: What scaled clipping measures the layers on.
    """
    options = PAINTED[name].private_options(epsilon)
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        (options.setdefault(section, {}) if section else options)[leaf] = value
    scaled_by(options, public)
    plan = settings.make_plan(settings.resolve(settings.from_kwargs(model="x.pt", data="x.yaml", **options)))
    batch = max(1, round(plan.expected_batch_size / scale))
    small = replace(
        plan,
        noise_multiplier=plan.noise_multiplier * batch / plan.expected_batch_size,
        expected_batch_size=batch,
        sample_rate=min(1.0, batch / units),
    )
    options.pop("steps")
    left = {key: value for key, value in options["privacy"].items() if key == "clip_scales"}  # the plan has the rest
    return {**options, "privacy": left, "plan": small}


def candidates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every combination of what was given."""
    axes: dict[str, Sequence[Any]] = {
        "optimizer.lr": options.lr, "trainable": options.trainable, "steps": options.steps, "ema.decay": options.ema,
        "privacy.expected_batch_size": options.batch, "privacy.clip_norm": options.clip_norm,
        "schedule.name": options.schedule, "schedule.warmup_steps": options.warmup,
        "loss.cls": options.cls, "head": options.head,
        "optimizer.name": options.optimizer, "optimizer.momentum": options.momentum,
        "privacy.clipping": options.clipping,
    }  # fmt: skip
    given = {key: values for key, values in axes.items() if values}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def _rows(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["rows"] if file.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description="try private recipes on public scenes with the private run's noise")
    parser.add_argument("set", choices=STAND_INS)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--scale", type=float, default=8.0, help="by which noise multiplier and batch are divided")
    parser.add_argument("--lr", type=float, nargs="+")
    parser.add_argument("--trainable", nargs="+", help="groups; several patterns of one candidate joined by +")
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--ema", type=float, nargs="+")
    parser.add_argument("--batch", type=int, nargs="+", help="expected batch size of the private run")
    parser.add_argument("--clip-norm", type=float, nargs="+")
    parser.add_argument("--schedule", nargs="+")
    parser.add_argument("--warmup", type=int, nargs="+", help="steps over which the rate rises")
    parser.add_argument("--clipping", nargs="+")
    parser.add_argument("--cls", type=float, nargs="+", help="gain of the class loss")
    parser.add_argument("--head", nargs="+")
    parser.add_argument("--optimizer", nargs="+")
    parser.add_argument("--momentum", type=float, nargs="+", help="of sgd")
    parser.add_argument("--start", choices=list(PAINTED), help="whose public start; default the set's own")
    parser.add_argument("--spare-photos", action="store_true", help="fashion: photos that are in no private scene")
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark"))
    options = parser.parse_args()
    if options.spare_photos and (options.set != "fashion" or options.start not in (None, "fashion_400")):
        parser.error("--spare-photos are of the set fashion, from its own start or that of fashion_400")
    start_name = options.start or options.set
    options.trainable = [t.split("+") if "+" in t else t for t in options.trainable or ()]

    file = RESULTS / f"tuning_{options.set}.json"
    try:
        start, data, units = stand_in(options.set, start_name, options.root, options.spare_photos)
    except Missing as missing:
        sys.exit(str(missing))
    output = options.root / "tuning" / f"run_{os.getpid()}"  # others may try candidates beside this one
    public = PAINTED[start_name].public(options.root / "public" / start_name)
    usual = {"privacy.clipping": PAINTED[options.set].private["privacy"]["clipping"]}
    for changes in ({**usual, **given} for given in candidates(options)):
        asked = {"start": start_name, "epsilon": options.epsilon, "scale": options.scale}
        asked |= {"on": "spare photos"} if options.spare_photos else {}
        tried = {**asked, "imgsz": PAINTED[options.set].imgsz, **changes}
        if any({k: v for k, v in row.items() if k not in _FOUND} == tried for row in _rows(file)):
            continue
        shutil.rmtree(output, ignore_errors=True)
        began = time.perf_counter()
        keywords = simulated(options.set, options.epsilon, options.scale, units, changes, public)
        try:
            result = dptrain.train(
                model=str(start), data=str(data), output_dir=str(output), tracking={"enabled": False},
                budget={"url": None}, evaluate_every=keywords["plan"].steps, **keywords,
            )  # fmt: skip
            found = {"mAP50": round(result.metrics[MAP50], 4), "mAP50-95": round(result.metrics[MAP], 4)}
        except dptrain.PrivacyError as error:  # it diverged
            found = {"mAP50": 0.0, "mAP50-95": 0.0, "failed": str(error)}
        row = {**tried, **found, "seconds": round(time.perf_counter() - began), "machine": machine()}
        print(row, flush=True)
        rows = [*_rows(file), row]  # read again: another process may try others
        write_json(file, {"what": __doc__.splitlines()[0], "rows": rows})
    shutil.rmtree(output, ignore_errors=True)


if __name__ == "__main__":
    main()
