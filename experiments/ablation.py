"""One option at a time from the demo's recipe with both branches: what helps at the same noise, on public digit scenes.

    python -m experiments.ablation --resume                      # every option, three seeds; resumes where it was cut
    python -m experiments.ablation --resume --only lr_half,ema_off   # some of them
    python -m experiments.ablation --resume --minutes 20         # starts no run after that many minutes
    python -m experiments.ablation --table                       # only prints what is in the results file

The scenes are public data that play the part of private ones, so no budget is counted; on private data the price of
this table would be that of all its runs together. Runs are seeded: an option has the draws and, where its parameters
are as many, the noise of the recipe's run with the same seed, so that differences are paired. A seed voids the
guarantee of a run, which is why none of these weights is worth anything but its score.

By default a run is smaller than the demo's: BATCH instead of 256 expected scenes a step, with the noise multiplier
lowered in the same proportion. The noise on the mean gradient is then that of the demo at epsilon 8; what differs is
that fewer scenes are averaged. ``--full`` takes the demo's own batch and noise.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import dptrain
from benchmarks.machine import commit, processor
from dptrain.privacy.calibration import calibrate_noise
from dptrain.statement.results import MAP, MAP50
from dptrain.support.files import write_json
from experiments import recipe
from experiments.ablation_starts import KNOWN, STARTS
from experiments.digits.scenes import TRAIN_SCENES, write_private, write_public

RESULTS = Path(__file__).resolve().parent / "results" / "ablation.json"
STEPS, BATCH, SEEDS = 20, 64, (0, 1, 2)
BASE = "recipe"


@dataclass(frozen=True)
class Option:
    """One thing that is done otherwise than in the recipe.

    Attributes:
        what: In words.
        changes: Keywords of ``dptrain.train``, sections as dicts, laid over the recipe's.
        against: The option that it is compared with.
        start: Of :data:`STARTS`; training begins from it.
    """

    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: str = BASE
    start: str = "digits"


def _lr(factor: float, **more: Any) -> dict[str, Any]:
    return {"lr": recipe.LEARNING_RATE * factor, **more}


def _sgd(rate: float) -> Option:
    return Option(f"sgd with momentum 0.9, rate {rate:g}", {"optimizer": {"name": "sgd", "lr": rate, "momentum": 0.9}})


def _lora(rate: float) -> Option:
    changes = {"trainable": "lora", "lora": {"rank": 4}, "optimizer": {"lr": rate}}
    return Option(f"rank-4 adapters train, rate {rate:g}", changes)


def _new_rows(what: str, begin: str) -> Option:
    changes = {"new_classes": begin, "similar_classes": KNOWN}
    return Option(what, changes, against="new_random", start="five_classes")


# Names are what results are kept under. Options of settings that a version does not have are reported, and left out.
OPTIONS: dict[str, Option] = {
    BASE: Option(f"adam, flat clipping to {recipe.CLIP_NORM:g}, EMA {recipe.EMA:g}, both branches"),
    # how the clip rules compare, with everything else left alone
    "scaled": Option("layers scaled by their gradients on drawn digits", {"privacy": {"clipping": "scaled"}}),
    "scaled_lr_half": Option(
        "the same at half the learning rate", {"privacy": {"clipping": "scaled"}, "optimizer": _lr(0.5)}, "scaled"
    ),
    "automatic": Option("automatic clipping (AUTO-S)", {"privacy": {"clipping": "automatic"}}),
    "head_and_rest": Option(
        "clipped in two groups, head and rest", {"privacy": {"clipping": "groups", "clip_groups": ["model.23.*"]}}
    ),
    "clip_tenth": Option("clip norm 0.1", {"privacy": {"clip_norm": 0.1}}),
    "clip_ten": Option("clip norm 10", {"privacy": {"clip_norm": 10.0}}),
    # optimizers; a rate that suits one does not suit another, so each has two or three
    "lr_half": Option("half the learning rate", {"optimizer": _lr(0.5)}),
    "lr_double": Option("twice the learning rate", {"optimizer": _lr(2.0)}),
    "sgd": _sgd(0.5),
    "sgd_5": _sgd(5.0),
    "sgd_fifth": _sgd(0.1),
    "sgd_tenth": _sgd(0.05),
    "sgd_twentieth": _sgd(0.025),
    "sgd_hundredth": _sgd(0.005),
    "adam_beta": Option("adam, second decay 0.9", {"optimizer": _lr(1.0, betas=[0.9, 0.9])}),
    "cosine": Option("cosine schedule", {"schedule": {"name": "cosine"}}),
    "warmup": Option("a warm-up of 5 steps", {"schedule": {"warmup_steps": 5}}),
    "warmup_lr_double": Option(
        "the same at twice the learning rate", {"schedule": {"warmup_steps": 5}, "optimizer": _lr(2.0)}, "warmup"
    ),
    "scaled_warmup": Option(
        "layers scaled, and a warm-up of 5 steps",
        {"privacy": {"clipping": "scaled"}, "schedule": {"warmup_steps": 5}},
        "scaled",
    ),
    "scaled_warmup_lr_double": Option(
        "the same at twice the learning rate",
        {"privacy": {"clipping": "scaled"}, "schedule": {"warmup_steps": 5}, "optimizer": _lr(2.0)},
        "scaled_warmup",
    ),
    # the moving average
    "ema_off": Option("no moving average", {"ema": {"decay": 0.0}}),
    "ema_05": Option("EMA 0.5", {"ema": {"decay": 0.5}}),
    "ema_099": Option("EMA 0.99 (nothing but the warm-up in 20 steps)", {"ema": {"decay": 0.99}}),
    # what trains, and what is asked of it
    "head": Option("only the head trains, rate 3e-3", {"trainable": "head", "optimizer": {"lr": 3e-3}}),
    "neck_and_head": Option("neck and head train", {"trainable": "neck_and_head"}),
    "head_and_norms": Option(
        "head, norms and biases train, rate 3e-3", {"trainable": "head_and_norms", "optimizer": {"lr": 3e-3}}
    ),
    "norms": Option("norms and biases train, rate 1.5e-2", {"trainable": "norm_and_bias", "optimizer": {"lr": 1.5e-2}}),
    "lora": _lora(5e-3),
    "lora_slow": _lora(1.5e-3),
    "lora_fast": _lora(1.5e-2),
    "one_to_many": Option("only the one-to-many branch of the head", {"head": "one_to_many"}),
    "neck_and_head_many": Option(
        "neck and head train, one-to-many branch only",
        {"trainable": "neck_and_head", "head": "one_to_many"},
        "one_to_many",
    ),
    "one_to_one": Option("only the one-to-one branch of the head", {"head": "one_to_one"}),
    "constant_loss": Option("loss over a constant", {"loss": {"normaliser": "constant"}}),
    "focal": Option("quality focal loss, gamma 1.5", {"loss": {"focal_gamma": 1.5}}),
    "cls_double": Option("twice the gain of the class loss", {"loss": {"cls": 1.0}}),
    "box_double": Option("twice the gain of the box loss", {"loss": {"box": 15.0}}),
    "shift": Option("shifts and zoom", {"augment": {"translate": 0.1, "scale": 0.1}}),
    "multiplicity": Option(
        "four augmentations a scene", {"augment": {"multiplicity": 4, "translate": 0.1, "scale": 0.1}}, "shift"
    ),
    # norms, each from a start of its own that was trained on the same drawn scenes
    "frozen_bn": Option("from a start of batch norm, frozen", start="batch", against="group"),
    "group": Option("from a start of group norm", start="group", against="group"),
    # how classes begin that the start does not know
    "new_random": _new_rows("a start of five classes; random rows for the others", "random"),
    "new_zero": _new_rows("the same; rows of zeros", "zero"),
    "new_mean": _new_rows("the same; rows that are the mean of the start's", "mean"),
}


def arguments(
    option: Option, start: Path, data: Path, output: Path, seed: int, steps: int, batch: int
) -> dict[str, Any]:
    """Keywords of ``dptrain.train`` for an option; the noise on the mean gradient is the recipe's at any batch."""
    made = recipe.train_arguments(start, data, output, steps=steps, seed=seed)
    privacy = made["privacy"]
    noise = calibrate_noise(privacy.pop("epsilon"), recipe.DELTA, recipe.BATCH / TRAIN_SCENES, steps)
    privacy |= {"expected_batch_size": batch, "noise_multiplier": noise * batch / recipe.BATCH}
    made |= {"head": "both", "validation": "off", "evaluate_every": steps, "checkpoint_every": steps}
    made |= {"tracking": {"enabled": False}, "budget": {"url": None}}
    for key, value in option.changes.items():
        made[key] = {**made.get(key, {}), **value} if isinstance(value, Mapping) else value
    return recipe.scaled_by(made, data.parent.parent / "public" / "data.yaml")


def measure(option: Option, start: Path, data: Path, seed: int, steps: int, batch: int) -> dict[str, Any]:
    """Train once and score the averaged weights on the val scenes.

    Raises:
        DptrainError: This version has no such setting, or the run diverged.
    """
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="ablation") as folder, redirect_stdout(quiet), redirect_stderr(quiet):
        began = time.perf_counter()
        result = dptrain.train(**arguments(option, start, data, Path(folder) / "run", seed, steps, batch))
        seconds = time.perf_counter() - began
        scores = recipe.evaluate_weights(result.weights, data).values
    return {"mAP50": round(scores[MAP50], 4), "mAP50-95": round(scores[MAP], 4), "seconds": round(seconds, 1)}


def machine() -> dict[str, Any]:
    return {
        "cpu": processor(), "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "dptrain": dptrain.__version__, "commit": commit(),
    }  # fmt: skip


def compare(runs: Iterable[Mapping[str, Any]], key: str = "mAP50") -> list[dict[str, Any]]:
    """Mean and spread of every option, and of its differences from what it is compared with, paired by seed."""
    scores: dict[str, dict[int, float]] = {}
    for run in runs:
        if key in run:
            scores.setdefault(run["option"], {})[run["seed"]] = run[key]
    rows = []
    for name in (name for name in OPTIONS if name in scores):
        own, against = scores[name], OPTIONS[name].against
        base = scores.get(against, {}) if against != name else {}
        paired = [own[seed] - base[seed] for seed in own if seed in base]
        rows.append(
            {
                "option": name,
                "seeds": len(own),
                "mean": statistics.mean(own.values()),
                "least": min(own.values()),
                "most": max(own.values()),
                "against": against,
                "gain": statistics.mean(paired) if paired else None,
                "deviation": statistics.stdev(paired) if len(paired) > 1 else None,
            }
        )
    return rows


def table(results: Mapping[str, Any]) -> Table:
    made = Table(title=f"mAP50 on val scenes, {results['steps']} steps of {results['batch']} scenes")
    for heading in ("option", "what", "seeds", "mean", "least to most", "paired gain", "over"):
        made.add_column(heading, overflow="fold")
    for row in compare(results["runs"]):
        gain = "" if row["gain"] is None else f"{row['gain']:+.3f}"
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.3f}"
        made.add_row(
            row["option"], OPTIONS[row["option"]].what, str(row["seeds"]), f"{row['mean']:.3f}",
            f"{row['least']:.3f} to {row['most']:.3f}", gain + spread, row["against"] if gain else "",
        )  # fmt: skip
    return made


def _fresh(steps: int, batch: int) -> dict[str, Any]:
    return {
        "what": "one change at a time to the demo's recipe; public data, no budget counted; seeds pair the runs",
        "command": "python -m experiments.ablation --resume",
        "steps": steps,
        "batch": batch,
        "runs": [],
    }


def _waiting(names: Sequence[str], seeds: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """What is left to measure, every option once before any twice."""
    done = {(run["option"], run["seed"]) for run in runs if "refused" not in run}
    return [(name, seed) for seed in seeds for name in names if (name, seed) not in done]


def main() -> None:
    parser = argparse.ArgumentParser(description="what each option does to the demo's recipe")
    parser.add_argument("--resume", action="store_true", help="measure what the results file lacks")
    parser.add_argument("--table", action="store_true", help="print the results file and measure nothing")
    parser.add_argument("--only", default=",".join(OPTIONS), help="options, separated by commas")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after that many")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--full", action="store_true", help=f"the demo's batch of {recipe.BATCH}, at its own noise")
    parser.add_argument("--root", type=Path, default=Path("runs/ablation"), help="where the scenes are painted")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    names = args.only.split(",")
    unknown = [name for name in names if name not in OPTIONS]
    if unknown:
        parser.error(f"no option is called {unknown[0]!r}; known are: {', '.join(OPTIONS)}")
    batch = recipe.BATCH if args.full else BATCH
    if args.results.exists() and not (args.resume or args.table):
        parser.error(f"{args.results} is there: add --resume to continue it, or give another --results")
    results = json.loads(args.results.read_text()) if args.results.exists() else _fresh(args.steps, batch)
    console = Console()
    if args.table:
        console.print(table(results))
        return
    if (results["steps"], results["batch"]) != (args.steps, batch):
        parser.error(f"{args.results} is of {results['steps']} steps of {results['batch']}: give another --results")
    shutil.rmtree(args.root / "private", ignore_errors=True)
    shutil.rmtree(args.root / "public", ignore_errors=True)
    data = write_private(args.root / "private")
    write_public(args.root / "public")
    began, refused = time.monotonic(), set[str]()
    for name, seed in _waiting(names, args.seeds, results["runs"]):
        if time.monotonic() - began > 60 * args.minutes:
            break
        if name in refused:
            continue
        found: dict[str, Any] = {"option": name, "seed": seed}
        start = STARTS[OPTIONS[name].start](args.root / "starts" / OPTIONS[name].start)
        try:
            found |= measure(OPTIONS[name], start, data, seed, args.steps, batch)
        except dptrain.DptrainError as error:
            found["refused"] = str(error)
            refused.add(name)
        kept = [run for run in results["runs"] if (run["option"], run["seed"]) != (name, seed)]
        results["runs"] = [*kept, {**found, "machine": machine()}]
        args.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.results, results)
        console.print(f"{name} {seed}: {found.get('mAP50', found.get('refused'))}", markup=False, soft_wrap=True)
    console.print(table(results))


if __name__ == "__main__":
    main()
