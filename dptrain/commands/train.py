"""``dptrain train``: one run, or one for each value of a sweep, configured by Hydra."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from ..errors import DptrainError
from .console import EXIT_FAILED, EXIT_REFUSED, described, fail
from .options import Commands

if TYPE_CHECKING:
    from ..schema import TrainConfig


def register(commands: Commands) -> None:
    """Add the command's line to ``dptrain --help``; its arguments are Hydra's and go to :func:`train` unparsed."""
    commands.add_parser("train", help="train privately: dptrain train model=start.pt data=pets.yaml privacy.epsilon=8")


def train(arguments: list[str], debug: bool) -> int:
    """Run ``dptrain train ARGUMENTS``; Hydra parses them."""
    if "-h" in arguments or "--help" in arguments:
        print(_train_help())
        return 0
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]

    from ..hydra_app import run_hydra

    def job(config: TrainConfig) -> None:
        from ..config import resolve

        config = resolve(config)  # before torch is imported: a wrong value is told at once
        from ..run import train_from_config

        if not as_json:
            train_from_config(config)
            return
        with redirect_stdout(sys.stderr):
            result = train_from_config(config)
        names = ("output_dir", "weights", "epsilon", "metrics")
        print(json.dumps({name: getattr(result, name) for name in names}, default=str), flush=True)

    def report(run: str, error: Exception) -> None:
        if debug:
            traceback.print_exception(error)
        print(f"dptrain: {run} failed: {described(error)}", file=sys.stderr, flush=True)

    failures, jobs = run_hydra(arguments, job, report)
    if jobs - len(failures) > 1:
        logging.getLogger(__name__).warning(
            "%d runs finished: where they share training images, all of them together cost more than any one epsilon",
            jobs - len(failures),
        )
    if not failures:
        return 0
    status = EXIT_REFUSED if all(isinstance(error, DptrainError) for error in failures) else EXIT_FAILED
    return fail(f"{len(failures)} of {jobs} jobs failed", status, debug=False)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "").strip("'")


def _train_help() -> str:
    from omegaconf import MISSING

    from ..hydra_app import conf_dir
    from ..schema import REFUSED_AUGMENTATIONS, keys

    refused = [f"augment.{name}" for name in REFUSED_AUGMENTATIONS]
    lines = [
        "usage: dptrain train [KEY=VALUE ...] [-m] [--config-dir DIR] [--cfg job] [--json] [--debug]",
        "",
        "  dptrain train model=yolo26n.pt data=pets.yaml privacy.epsilon=8 privacy.dataset_size=10000",
        "  dptrain train -m privacy.noise_multiplier=0.6,0.8,1.0 ...     one run for each value (a sweep)",
        "  dptrain train --cfg job ...                                   show the settings, run nothing",
        "",
        "Give two of privacy.epsilon, privacy.noise_multiplier and steps: they determine the third.",
        "",
        "keys:",
    ]
    section = ""
    for name, item in keys():
        if name in refused:
            continue
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            lines.append("")
        default = item.default_factory() if callable(item.default_factory) else item.default
        shown = "" if default in (None, MISSING, "") else f" ({_yaml(default)})"
        lines.append(f"  {name:<29} {item.metadata['help']}{shown}")
    lines.append(f"  refused, since they would void the guarantee: {', '.join(refused)}")
    lines += ["", "presets (GROUP=NAME; your own from --config-dir DIR, as DIR/GROUP/NAME.yaml):"]
    for group in sorted(folder for folder in conf_dir().iterdir() if folder.is_dir()):
        lines.append(f"  {group.name:<29} {', '.join(sorted(file.stem for file in group.glob('*.yaml')))}")
    lines += ["", "-m, --multirun sweeps; --hydra-help shows the other options of Hydra (https://hydra.cc)."]
    return "\n".join(lines)
