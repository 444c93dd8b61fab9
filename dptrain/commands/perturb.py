"""``dptrain perturb``: how a detector stands noise, blur, compression, darkness; perturbed copies of a dataset."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..support.devices import usable_device
from ..support.environment import experiment_name, tracking_address
from ..support.files import to_json
from .evaluate import add_evaluation, checked_evaluation
from .options import Commands

if TYPE_CHECKING:
    from ..toolbox.perturbation import PerturbationResult
    from ..toolbox.perturbation.epsilon import InputNoise
    from ..toolbox.perturbation.result import Row

_KINDS = ("noise", "blur", "jpeg", "dark")


def register(commands: Commands) -> None:
    """Add the command and its two parts."""
    perturb = commands.add_parser("perturb", help="robustness to noise, blur, JPEG and darkness; noisy copies")
    parts = perturb.add_subparsers(title="parts", metavar="PART", required=True, parser_class=type(perturb))
    evaluate = parts.add_parser("evaluate", help="mAP and detections over levels of each perturbation")
    add_evaluation(evaluate)
    evaluate.add_argument("--noise", type=_levels, metavar="S,...", help="standard deviations in grey levels of 255")
    evaluate.add_argument("--blur", type=_levels, metavar="S,...", help="standard deviations in pixels")
    evaluate.add_argument("--jpeg", type=_levels, metavar="Q,...", help="qualities, 1 to 100")
    evaluate.add_argument("--dark", type=_levels, metavar="F,...", help="shares of the light that are left")
    evaluate.add_argument("--seed", type=int, default=0, help="decides the noise; default %(default)s")
    evaluate.add_argument("--delta", type=float, default=1e-5, help="for the epsilon of the noise; default %(default)s")
    evaluate.add_argument("-o", "--output", type=Path, help="folder; default perturb/<date>_<time>")
    evaluate.add_argument("--tracking-uri", help="MLflow store; default $MLFLOW_TRACKING_URI or sqlite:///mlflow.db")
    evaluate.add_argument("--experiment", help="of MLflow; default $MLFLOW_EXPERIMENT_NAME or dptrain-perturb")
    evaluate.add_argument("--no-tracking", action="store_true", help="log nothing to MLflow")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(command=_evaluate)

    export = parts.add_parser("export", help="perturbed copies of a dataset, with its labels")
    export.add_argument("--data", required=True, help="an Ultralytics data.yaml")
    export.add_argument("--kind", required=True, choices=_KINDS)
    export.add_argument("--level", required=True, type=float, help="as in perturb evaluate")
    export.add_argument(
        "--seed",
        type=int,
        help="determines the noise, and whoever knows it can subtract it; default: drawn and forgotten",
    )
    export.add_argument("--delta", type=float, default=1e-5, help="for the epsilon of the noise; default %(default)s")
    export.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    export.add_argument("--json", action="store_true", help="print JSON")
    export.set_defaults(command=_export)


def _levels(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of numbers such as 10,20") from error


def _check_delta(options: argparse.Namespace) -> None:
    if not 0 < options.delta < 1:
        raise ConfigError(f"--delta={options.delta} is not between 0 and 1")


def _evaluate(options: argparse.Namespace) -> int:
    imgsz, device = checked_evaluation(options)
    _check_delta(options)
    from ..toolbox.perturbation import evaluate_perturbed

    given = {name: getattr(options, name) for name in _KINDS if getattr(options, name) is not None}
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        result = evaluate_perturbed(
            options.weights,
            options.data,
            levels=given or None,
            split=options.split,
            imgsz=imgsz,
            batch_size=options.batch_size,
            device=usable_device(device, "--device"),
            workers=options.workers,
            seed=options.seed,
            delta=options.delta,
            output=options.output or Path(datetime.now().strftime("perturb/%Y-%m-%d_%H-%M-%S")),
            tracking_uri=None if options.no_tracking else tracking_address(options.tracking_uri),
            experiment=experiment_name(options.experiment, "dptrain-perturb"),
            on_row=_say,
        )
    if options.json:
        print(to_json({**result.as_dict(), "output_dir": str(result.folder)}))
        return 0
    for line in (*_table(result), f"written    {result.folder}"):
        print(line)
    return 0


def _say(row: Row) -> None:
    """One line a level as it is done: many levels on a large split take hours."""
    level = "" if row.kind == "clean" else f" {row.level:g}"
    logging.getLogger(__name__).info("%s%s: mAP50 %.4f", row.kind, level, row.metrics["metrics/mAP50B"])


def _table(result: PerturbationResult) -> Iterator[str]:
    worth: dict[float, float] = {}
    for entry in result.input_noise:
        worth.setdefault(entry["level"], entry["epsilon"])  # of the whole picture, which comes first
    yield f"{'kind':<6} {'level':>8} {'mAP50':>8} {'mAP50-95':>9} {'detections':>11}   local epsilon of a picture"
    for row in result.rows:
        epsilon = "none"
        if row.kind == "noise":
            epsilon = f"{worth[row.level]:.3g} (delta {result.settings['delta']:.2g})"
        level = "" if row.kind == "clean" else f"{row.level:g}"
        metrics = row.metrics["metrics/mAP50B"], row.metrics["metrics/mAP50-95B"]
        yield f"{row.kind:<6} {level:>8} {metrics[0]:8.4f} {metrics[1]:9.4f} {row.detections:11.2f}   {epsilon}"
    if worth:
        yield "An epsilon of this size promises nothing: noise on pictures tests robustness, and does not protect them."


def _export(options: argparse.Namespace) -> int:
    _check_delta(options)
    from ..toolbox.perturbation import export_perturbed, input_noise

    done = export_perturbed(options.data, options.output, kind=options.kind, level=options.level, seed=options.seed)
    worth = list(input_noise(options.level, *done.size, options.delta)) if options.kind == "noise" else []
    if options.json:
        epsilon = worth[0].epsilon if worth else None
        report = {"data": str(done.data), "images": done.images, "labels": done.labels, "local_epsilon": epsilon}
        print(to_json({**report, "delta": options.delta}))
        return 0
    print(f"{done.images} images, {done.labels} label files: {done.data}")
    for line in _worth(worth, options):
        print(line)
    return 0


def _worth(worth: list[InputNoise], options: argparse.Namespace) -> Iterator[str]:
    from ..toolbox.perturbation.epsilon import TARGET

    if not worth:
        yield f"{options.kind} is not differential privacy: it has no randomness"
        return
    yield f"as local differential privacy, delta {options.delta:.2g}:"
    for entry in worth:
        yield (
            f"  {entry.what}: epsilon {entry.epsilon:.3g}; epsilon {TARGET:g} would need noise of {entry.needed:,.0f} "
            "grey levels, of 255"
        )
    if options.seed is not None:
        yield f"and whoever knows --seed {options.seed} can subtract the noise: epsilon infinite"
