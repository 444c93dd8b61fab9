"""mAP by epsilon with the demo's recipe: one whole run for every epsilon and seed.

    python -m experiments.curve --epsilons 1 2 4 8 16 --seeds 1

Writes experiments/results/digits_curve.json and docs/images/digits_curve.png. Every run draws its own noise from the
operating system; a "seed" here only counts repetitions. On private data the price of showing this whole curve would be
the epsilon of all its runs together, which is written beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import dp_accounting
import ultralytics

import dptrain
from dptrain.results import MAP, MAP50
from experiments import recipe
from experiments.digits.public_start import WEIGHTS
from experiments.digits.scenes import TRAIN_SCENES, write_private

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "digits_curve.json"
PICTURE = HERE.parent / "docs" / "images" / "digits_curve.png"


def composed_epsilon(plans: list[dptrain.PrivacyPlan]) -> float:
    """RDP epsilon of all the runs together, at the recipe's delta."""
    accountant = dp_accounting.rdp.RdpAccountant()
    for plan in plans:
        accountant.compose(plan.event())
    return float(accountant.get_epsilon(recipe.DELTA))


def run_one(
    data: Path, weights: Path, root: Path, epsilon: float, repeat: int
) -> tuple[dict[str, Any], dptrain.PrivacyPlan]:
    """One whole private run: its row of the results, and the plan it followed."""
    began = time.perf_counter()
    result = dptrain.train(
        **recipe.train_arguments(
            weights, data, root / f"epsilon{epsilon:g}-{repeat}", epsilon,
            tracking={"uri": f"sqlite:///{(root / 'mlflow.db').as_posix()}", "experiment": "curve"},
            evaluate_every=recipe.STEPS,
        )
    )  # fmt: skip
    row = {
        "target_epsilon": epsilon,
        "epsilon": round(result.epsilon, 4),
        "noise_multiplier": round(result.plan.noise_multiplier, 4),
        "repeat": repeat,
        "mAP50": round(result.metrics[MAP50], 4),
        "mAP50-95": round(result.metrics[MAP], 4),
        "seconds": round(time.perf_counter() - began),
    }
    return row, result.plan


def draw(results: dict[str, Any], path: Path) -> None:
    """mAP50 and mAP50-95 by epsilon, with the start and the run without privacy as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for key, colour in (("mAP50", "tab:blue"), ("mAP50-95", "tab:orange")):
        runs = results["runs"]
        epsilons = sorted({run["target_epsilon"] for run in runs})
        means = [statistics.mean(r[key] for r in runs if r["target_epsilon"] == e) for e in epsilons]
        axes.plot(epsilons, means, "-", color=colour, label=f"private, {key}")
        axes.plot([r["target_epsilon"] for r in runs], [r[key] for r in runs], "o", color=colour)
        free = results["no_privacy_all_layers"][key]
        axes.axhline(free, color=colour, linestyle="--", alpha=0.7, label=f"no privacy, all layers, {key}")
        axes.axhline(results["public_start"][key], color=colour, linestyle=":", alpha=0.7, label=f"public start, {key}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(epsilons, [f"{e:g}" for e in epsilons])
    axes.set(xlabel=f"epsilon (delta {recipe.DELTA:g}, RDP)", ylabel="on val scenes", ylim=(0, 1))
    axes.set_title(f"{TRAIN_SCENES} private scenes of handwritten digits, yolo26n", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="mAP by epsilon, one run for every point")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=1, help="runs for every epsilon")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--root", type=Path, default=Path("runs/curve"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()

    data = write_private(args.root / "private")
    start = recipe.evaluate_weights(args.weights, data).values
    plain, plain_seconds = recipe.train_without_privacy(args.weights, data, **recipe.ALL_LAYERS)
    results: dict[str, Any] = {
        "what": "yolo26n from the public start of font-drawn digits, fine-tuned on scenes of handwritten digits",
        "recipe": {
            "steps": recipe.STEPS, "expected_batch_size": recipe.BATCH, "scenes": TRAIN_SCENES,
            "clip_norm": recipe.CLIP_NORM, "optimizer": "adam",
            "trainable": recipe.TRAINABLE, "lr": recipe.LEARNING_RATE, "ema": recipe.EMA, "delta": recipe.DELTA,
        },
        "tuned": recipe.TUNED,
        "versions": {
            "python": platform.python_version(), "dptrain": dptrain.__version__, "ultralytics": ultralytics.__version__,
        },
        "public_start": {"mAP50": round(start[MAP50], 4), "mAP50-95": round(start[MAP], 4)},
        "no_privacy_all_layers": {
            "mAP50": round(plain.values[MAP50], 4), "mAP50-95": round(plain.values[MAP], 4),
            "seconds": round(plain_seconds),
        },
        "runs": [],
    }  # fmt: skip
    args.results.parent.mkdir(parents=True, exist_ok=True)
    plans = []
    for repeat in range(args.seeds):
        for epsilon in args.epsilons:
            row, plan = run_one(data, args.weights, args.root, epsilon, repeat)
            plans.append(plan)
            results["runs"].append(row)
            results["epsilon_of_all_runs_together"] = round(composed_epsilon(plans), 3)
            print(row, flush=True)
            args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, args.picture)
    print(f"{args.results}\n{args.picture}")


if __name__ == "__main__":
    main()
