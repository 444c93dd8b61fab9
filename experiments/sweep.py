"""mAP by epsilon with the demo's recipe: one `dptrain train -m` over noise multipliers, every one of them twice.

    python -m experiments.sweep                    # 10 runs, about 20 minutes on two cores
    python -m experiments.sweep --resume           # resumes where it was cut

Writes experiments/results/digits_sweep.json and docs/images/digits_sweep.png. Every run draws its own noise from the
operating system, so a repeat is a run of its own and not a seed. On private data the price of showing this curve would
be the epsilon of all its runs together, which is written beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import ultralytics

import dptrain
from benchmarks.machine import commit, processor
from dptrain.statement.results import MAP, MAP50
from dptrain.support.words import round_up
from experiments import recipe
from experiments.digits.public_start import WEIGHTS
from experiments.digits.scenes import SIZE, TRAIN_SCENES, write_private

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "digits_sweep.json"
PICTURE = HERE.parent / "docs" / "images" / "digits_sweep.png"
NOISE = (0.86, 1.35, 2.2, 3.8, 7.0)  # epsilon 16, 8, 4, 2 and 1
REPEATS = 2
STEPS = 20


def command(data: Path, root: Path, noise: Sequence[float], repeats: int, steps: int, resume: bool) -> list[str]:
    """The sweep as one would type it."""
    values = ",".join(f"{value:g}" for value in noise for _ in range(repeats))
    return [
        sys.executable, "-m", "dptrain.commands.main", "train", "-m",
        f"model={WEIGHTS}", f"data={data}", f"output_dir={root / 'sweep'}", f"resume={str(resume).lower()}",
        f"privacy.noise_multiplier={values}", f"steps={steps}", f"evaluate_every={steps}",
        f"imgsz={SIZE}", "physical_batch_size=32", "workers=0", f"trainable={recipe.TRAINABLE}", f"head={recipe.HEAD}",
        f"privacy.delta={recipe.DELTA}", f"privacy.clip_norm={recipe.CLIP_NORM}", "privacy.clipping=flat",
        f"privacy.expected_batch_size={recipe.BATCH}", f"privacy.dataset_size={TRAIN_SCENES}",
        "optimizer=adam", f"optimizer.lr={recipe.LEARNING_RATE}", f"ema.decay={recipe.EMA}",
        f"tracking.uri=sqlite:///{(root / 'mlflow.db').as_posix()}", "tracking.experiment=digits",
        f"budget.url=sqlite:///{(root / 'budget.db').as_posix()}",
    ]  # fmt: skip


def machine() -> dict[str, Any]:
    """What the numbers were made on."""
    return {
        "cpu": processor(), "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__,
        "ultralytics": ultralytics.__version__, "dptrain": dptrain.__version__, "commit": commit(),
        "date": date.today().isoformat(),
    }  # fmt: skip


def draw(results: dict[str, Any], path: Path) -> None:
    """mAP50 and mAP50-95 by epsilon: every run a point, a line through the means; the start and no privacy as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    runs = results["runs"]
    epsilons = sorted({run["epsilon"] for run in runs})
    for key, colour in (("mAP50", "tab:blue"), ("mAP50-95", "tab:orange")):
        means = [statistics.mean(run[key] for run in runs if run["epsilon"] == e) for e in epsilons]
        axes.plot(epsilons, means, "-", color=colour, label=f"private, {key}")
        axes.plot([run["epsilon"] for run in runs], [run[key] for run in runs], "o", color=colour, markersize=4)
        free, start = results["no_privacy"][key], results["public_start"][key]
        axes.axhline(free, color=colour, linestyle="--", alpha=0.7, label=f"without privacy, {key}")
        axes.axhline(start, color=colour, linestyle=":", alpha=0.7, label=f"public start, {key}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(epsilons, [round_up(e, 3) for e in epsilons])
    axes.set(xlabel=f"epsilon of one run (delta {recipe.DELTA:g}, RDP)", ylabel="on val scenes", ylim=(0.5, 0.9))
    together = f"epsilon {round_up(results['epsilon_of_all_runs_together'], 3)}"
    axes.set_title(
        f"{TRAIN_SCENES} scenes of handwritten digits, yolo26n; all {len(runs)} runs together cost {together}",
        fontsize=9,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="mAP by epsilon: a sweep over noise multipliers")
    parser.add_argument("--noise", type=float, nargs="+", default=list(NOISE))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--root", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--resume", action="store_true", help="resume the sweep in --root")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()

    data = write_private(args.root / "private")
    typed = command(data, args.root, args.noise, args.repeats, args.steps, args.resume)
    subprocess.run(typed, check=True)
    with (args.root / "sweep" / "sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    summary = json.loads((args.root / "sweep" / "summary.json").read_text())
    start = recipe.evaluate_weights(WEIGHTS, data).values
    plain = {lr: recipe.train_without_privacy(WEIGHTS, data, args.steps, lr=lr)[0].values for lr in recipe.PLAIN_RATES}
    tried = {f"{lr:g}": round(values[MAP50], 4) for lr, values in plain.items()}
    best = max(plain.values(), key=lambda values: values[MAP50])
    results = {
        "what": "yolo26n from the public start of font-drawn digits, fine-tuned on scenes of handwritten digits",
        "command": "python -m experiments.sweep",
        "recipe": {
            "steps": args.steps, "expected_batch_size": recipe.BATCH, "scenes": TRAIN_SCENES,
            "clip_norm": recipe.CLIP_NORM, "optimizer": "adam", "trainable": recipe.TRAINABLE, "head": recipe.HEAD,
            "lr": recipe.LEARNING_RATE, "ema": recipe.EMA, "delta": recipe.DELTA,
        },
        "tuned": recipe.TUNED,
        "machine": machine(),
        "public_start": {"mAP50": round(start[MAP50], 4), "mAP50-95": round(start[MAP], 4)},
        "no_privacy": {"mAP50": round(best[MAP50], 4), "mAP50-95": round(best[MAP], 4), "mAP50_by_rate": tried},
        "runs": [
            {
                "noise_multiplier": float(row["privacy.noise_multiplier"]), "epsilon": float(row["epsilon"]),
                "epsilon_pld": float(row["epsilon_pld"]), "mAP50": round(float(row["mAP50"]), 4),
                "mAP50-95": round(float(row["mAP50-95"]), 4), "steps": int(row["steps"]),
            }
            for row in rows if row["state"] == "finished"
        ],
        "epsilon_of_all_runs_together": summary["epsilon_composed"],
    }  # fmt: skip
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, args.picture)
    print(f"{args.results}\n{args.picture}")


if __name__ == "__main__":
    main()
