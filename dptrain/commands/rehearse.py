"""``dptrain rehearse``: what a private run would be worth, tried on public images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..settings.ultralytics import as_arguments
from .options import Commands

if TYPE_CHECKING:
    from ..run.rehearsal import Rehearsed
    from ..settings.schema import TrainConfig

_OWN = ("sizes", "epsilons", "rates")
_HELP = """usage: dptrain rehearse [KEY=VALUE ...] [sizes=N,N,...] [epsilons=E,E,...] [rates=R,R,...]

  dptrain rehearse model=yolo26n.pt data=public.yaml privacy.epsilon=8 privacy.dataset_size=4000
  dptrain rehearse ... sizes=1000,4000,16000 epsilons=1,2,4,8 output_dir=runs/rehearsal

Trains on PUBLIC images with the noise that a private run would have, at a fraction of its cost. No budget is spent,
and nothing is promised for these images: those that a ledger knows are refused. How near it comes to the private run
depends on how alike the images are.

data has public images with the classes that are to be learned, and a val split. All other keys are those of dptrain
train. sizes (default privacy.dataset_size) are the declared numbers of private images, epsilons (default
privacy.epsilon) the targets, rates (default 1) what the learning rate is multiplied by.

It leaves rehearsal.json, rehearsal.png and experiment/rehearsed.yaml in output_dir; the same command goes on where it
was stopped. Then: dptrain train --config-dir OUTPUT_DIR experiment=rehearsed model=... data=PRIVATE.yaml"""


def register(commands: Commands) -> None:
    """Add the command's line to ``dptrain --help``; its arguments are KEY=VALUE and go to :func:`rehearse` unparsed."""
    commands.add_parser("rehearse", help="try on public images what a private run would be worth")


def rehearse(arguments: list[str]) -> int:
    """Run ``dptrain rehearse ARGUMENTS``."""
    if "-h" in arguments or "--help" in arguments:
        print(_HELP)
        return 0
    if {"-m", "--multirun"} & set(arguments):
        raise ConfigError("a rehearsal is not swept: give sizes=, epsilons= and rates= several values")
    own = dict(argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in _OWN)
    arguments = as_arguments([argument for argument in arguments if argument.partition("=")[0] not in _OWN])
    from ..run.sweep.hydra_app import run_hydra

    def report(run: str, error: Exception) -> None:
        raise error

    run_hydra(arguments, lambda config: _rehearse(config, own), report)
    return 0


def _rehearse(given: TrainConfig, own: dict[str, str]) -> None:
    from ..settings.resolve import resolve

    config = resolve(given)
    size, epsilon = config.privacy.dataset_size, config.privacy.epsilon
    sizes = [int(number) for number in _numbers("sizes", own, size, "privacy.dataset_size=4000")]
    epsilons = _numbers("epsilons", own, epsilon, "privacy.epsilon=8")
    rates = _numbers("rates", own, 1.0, "")

    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from ..run.rehearsal import cells_of, rehearse
    from ..run.rehearsal_files import EXPERIMENT, best_of, draw, log, table_of, write_experiment

    console = Console()
    rows: list[Rehearsed] = []
    new: list[Rehearsed] = []
    cells = cells_of(sizes, epsilons, rates)
    said = f"dptrain: {len(cells)} rehearsals on {config.data}, whose images you declare public"
    console.print(said, soft_wrap=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None)

        def on_step(step: int, steps: int) -> None:
            what = f"rehearsal {len(rows) + 1} of {len(cells)}, step {step} of {steps}"
            progress.update(bar, description=what, completed=len(rows) * steps + step, total=len(cells) * steps)

        for row, was_there in rehearse(config, cells, on_step):
            rows.append(row)
            new += [] if was_there else [row]
            of = "no noise" if row.cell.epsilon is None else f"epsilon {row.cell.epsilon:g}"
            progress.console.print(
                f"{len(rows)}/{len(cells)}  {row.cell.size:,} images, {of}, rate {row.lr:.2g}: mAP50 {row.mAP50:.3f}"
                f"{' (from before)' if was_there else f', {row.seconds:.0f} s'}",
                highlight=False,
            )
    console.print(table_of(rows))
    folder = Path(config.output_dir)
    draw(rows, folder / "rehearsal.png")
    log(new, config)
    best = best_of(rows, size or max(sizes), epsilon or max(epsilons))
    if best is None:
        console.print(f"written: {folder}", soft_wrap=True, highlight=False)
        return
    write_experiment(best, folder / EXPERIMENT)
    console.print(
        f"train with it: dptrain train --config-dir {folder} experiment=rehearsed model={config.model} data=...",
        soft_wrap=True,
        highlight=False,
    )


def _numbers(name: str, own: dict[str, str], default: float | None, example: str) -> list[float]:
    if name not in own:
        if default is None:
            raise ConfigError(f"{example.partition('=')[0]} is not set: give {example}, or {name}=...")
        return [default]
    try:
        return [float(number) for number in own[name].strip("[]").split(",")]
    except ValueError as error:
        raise ConfigError(f"{name}={own[name]} is not a list of numbers such as {name}=1,2") from error
