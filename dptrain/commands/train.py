"""``dptrain train``: one run, or one for each value of a sweep, configured by Hydra."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..settings.ultralytics import as_arguments
from ..support.files import to_json
from ..support.launched import launched
from .console import EXIT_FAILED, EXIT_REFUSED, described, fail, own_messages
from .options import Commands

if TYPE_CHECKING:
    from ..run.sweep.session import Sweep
    from ..settings.schema import TrainConfig


def register(commands: Commands) -> None:
    """Add the command's line to ``dptrain --help``; its arguments are Hydra's and go to :func:`train` unparsed."""
    commands.add_parser("train", help="train privately: dptrain train model=start.pt data=pets.yaml privacy.epsilon=8")


def train(arguments: list[str], debug: bool) -> int:
    """Run ``dptrain train ARGUMENTS``; Hydra parses them."""
    if "-h" in arguments or "--help" in arguments:
        print(_train_help())
        return 0
    if (launch := launched()) is not None:
        if launch.rank:
            from ..run.processes import follow

            follow(launch)  # the end of this process: the first one has all that it needs
        if {"-m", "--multirun"} & set(arguments):
            raise ConfigError("a sweep under torchrun would be several runs: give device=0,1 instead, or sweep without")
    arguments = as_arguments(arguments)
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]

    from ..run.sweep.breaks import SweepBroken
    from ..run.sweep.hydra_app import run_hydra

    def job(config: TrainConfig) -> None:
        from ..settings.resolve import resolve

        with own_messages():  # in a launcher's own process nobody has set them up
            config = resolve(config)  # before torch is imported: a wrong value is told at once
            from ..run.train import train_from_config

            with _same_generators(), redirect_stdout(sys.stderr if as_json else sys.stdout):
                result = train_from_config(config)
        if as_json:
            places = {"output_dir": str(result.output_dir), "weights": str(result.weights)}
            print(to_json({**places, "epsilon": result.epsilon, "metrics": result.metrics}), flush=True)

    def report(run: str, error: Exception) -> None:
        if debug:
            traceback.print_exception(error)
        print(f"dptrain: {run} failed: {described(error)}", file=sys.stderr, flush=True)

    try:
        sweep = run_hydra(arguments, job, report)
    except SweepBroken as broken:
        _end(broken.sweep, as_json, interrupted=True)
        raise broken.cause from broken
    return 0 if sweep is None else _end(sweep, as_json)


def _end(sweep: Sweep, as_json: bool, interrupted: bool = False) -> int:
    """Show what the sweep came to and what it cost; return the exit status."""
    from rich.console import Console

    from ..run.sweep.table import for_terminal, summary

    table = sweep.end(interrupted)
    for line in sweep.untold():
        print(f"dptrain: {line}", file=sys.stderr, flush=True)
    console = Console(stderr=as_json)
    console.print()
    console.print(for_terminal(table))
    console.print(f"\n{table.price()}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"table, curve and costs: {sweep.record.folder}", soft_wrap=True, markup=False, highlight=False)
    if as_json:
        print(to_json({"output_dir": str(sweep.record.folder), **summary(table)}), flush=True)
    failures = sweep.failures()
    if not failures or interrupted:
        return 0
    status = EXIT_REFUSED if all(failures) else EXIT_FAILED
    return fail(f"{len(failures)} of {len(table.rows)} jobs failed", status, debug=False)


@contextmanager
def _same_generators() -> Iterator[None]:
    """Leave the global random generators as they were, so that a job of a sweep starts as a run of its own does.

    They decide how a model from scratch is initialised; sampling and noise never use them.
    """
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the global one that is kept
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _train_help() -> str:
    from ..run.sweep.hydra_app import conf_dir
    from ..settings.keys import default_of, keys
    from ..settings.schema import REFUSED_AUGMENTATIONS

    refused = [f"augment.{name}" for name in REFUSED_AUGMENTATIONS]
    lines = [
        "usage: dptrain train [KEY=VALUE ...] [-m] [--config-dir DIR] [--cfg job] [--json] [--debug]",
        "",
        "  dptrain train model=yolo26n.pt data=pets.yaml privacy.epsilon=8 privacy.dataset_size=10000",
        "  dptrain train -m privacy.noise_multiplier=0.6,0.8,1.0 ...     one run for each value (a sweep)",
        "  dptrain train --cfg job ...                                   show the settings, run nothing",
        "",
        "Give two of privacy.epsilon, privacy.noise_multiplier and steps: they determine the third.",
        "Ultralytics' words work too, where they can: epochs, batch, lr0, optimizer, freeze, project, name, ...",
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
        default = f" ({text})" if (text := default_of(item)) else ""
        lines.append(f"  {name:<29} {item.metadata['help']}{default}")
    lines.append(f"  refused, since they would void the guarantee: {', '.join(refused)}")
    lines += ["", "presets (GROUP=NAME; your own from --config-dir DIR, as DIR/GROUP/NAME.yaml):"]
    for group in sorted(folder for folder in conf_dir().iterdir() if folder.is_dir()):
        lines.append(f"  {group.name:<29} {', '.join(sorted(file.stem for file in group.glob('*.yaml')))}")
    lines += ["", "-m, --multirun sweeps; --hydra-help shows the other options of Hydra (https://hydra.cc)."]
    return "\n".join(lines)
