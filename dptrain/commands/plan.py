"""``dptrain plan``: what a budget can buy, by batch size and steps, before any data is touched."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..support.environment import ledger_address
from ..support.files import to_json
from ..support.words import round_up
from .options import Commands, check_imgsz, number

if TYPE_CHECKING:
    from rich.table import Table

    from ..privacy.planning import PlanGrid, Remaining

_PICTURES = (".png", ".svg", ".pdf")
_SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def register(commands: Commands) -> None:
    """Add the command."""
    plan = commands.add_parser("plan", help="batch sizes, steps and noise that meet a budget; touches no data")
    number(plan, "dataset-size", "declared, public number of training images", int)
    plan.add_argument("--epsilon", type=float, help="target epsilon of the run (RDP)")
    plan.add_argument("--delta", type=float, help="chance of failure allowed; default dataset-size**-1.1")
    plan.add_argument("--batch-sizes", type=_whole_numbers, metavar="N,N", help="expected batch sizes")
    plan.add_argument("--steps", type=_whole_numbers, metavar="N,N", help="numbers of steps")
    plan.add_argument("--budget", metavar="NAME", help="plan for what is left of this budget in the ledger")
    plan.add_argument("--url", help="the ledger (default $DPTRAIN_BUDGET_URL or sqlite:///budget.db)")
    plan.add_argument("--key", metavar="FILE", help="its key (default $DPTRAIN_BUDGET_KEY or beside an SQLite file)")
    plan.add_argument("--seconds-per-image", type=float, metavar="S", help="for the expected time")
    plan.add_argument("--measure", action="store_true", help="measure it here: --model, on random images")
    plan.add_argument("--model", help="model to measure, such as yolo26n.yaml")
    plan.add_argument("--imgsz", type=int, default=640, help="image size to measure in pixels")
    plan.add_argument("--physical-batch-size", type=int, default=8, help="images in memory at once when measuring")
    plan.add_argument("--device", default="cpu", help="where to measure: cpu, cuda, cuda:1")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument("-o", "--output", type=Path, metavar="PICTURE", help=f"draw it: {', '.join(_PICTURES)}")
    plan.set_defaults(command=_plan)


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of whole numbers such as 64,256") from error


def _plan(options: argparse.Namespace) -> int:
    if options.output is not None and options.output.suffix.lower() not in _PICTURES:
        raise ConfigError(f"-o {options.output} is not a picture: end it with {', '.join(_PICTURES)}")
    from ..privacy.planning import plan_grid

    grid = plan_grid(
        options.dataset_size,
        options.epsilon,
        options.delta,
        batch_sizes=options.batch_sizes,
        steps=options.steps,
        seconds_per_image=_speed(options),
        budget=_budget(options),
    )
    if options.output is not None:
        _draw(grid, options.output)
    if options.json:
        print(to_json(grid.as_dict()))
        return 0
    from rich.console import Console

    console = Console()
    console.print(_title(grid), soft_wrap=True, markup=False)
    if grid.runs:
        console.print(_table(grid))
        console.print("signal: q*sqrt(T/2)/sigma, more is better; epochs: how often one image is expected to be used")
        console.print(
            "banded: the best privacy.bands with privacy.noise=banded, and the noise then left on sums of gradients"
        )
    for batch, steps, reason in grid.impossible:
        console.print(f"batch {batch}, {steps} steps: {reason}", soft_wrap=True, markup=False)
    if options.output is not None:
        console.print(str(options.output), soft_wrap=True, markup=False)
    return 0


def _speed(options: argparse.Namespace) -> float | None:
    if not options.measure:
        if options.model is not None:
            raise ConfigError("--model is there to be measured: add --measure, or leave it out")
        return options.seconds_per_image
    if options.seconds_per_image is not None:
        raise ConfigError("--seconds-per-image and --measure cannot be combined")
    if options.model is None:
        raise ConfigError("--measure needs --model, such as --model yolo26n.yaml")
    check_imgsz(options.imgsz)
    if options.physical_batch_size < 1:
        raise ConfigError(f"--physical-batch-size={options.physical_batch_size} must be 1 or more")
    from ..support.devices import parse_device, usable_device

    device = usable_device(parse_device(options.device, "--device"), "--device")
    from ..detection.speed import measure_seconds_per_image

    return measure_seconds_per_image(
        options.model, options.imgsz, physical_batch_size=options.physical_batch_size, device=device
    )


def _budget(options: argparse.Namespace) -> Remaining | None:
    if options.budget is None:
        return None
    from ..ledger import BudgetLedger
    from ..ledger.remaining import remaining

    return remaining(BudgetLedger(ledger_address(options.url), options.key, create=False).show(options.budget)[0])


def _title(grid: PlanGrid) -> str:
    target = [] if grid.epsilon is None else [f"epsilon {grid.epsilon:g} (RDP)"]
    if grid.budget is not None:
        whole = f"epsilon {grid.budget.epsilon:g}, delta {grid.budget.delta:.3g}"
        target.append(f"what is left of the budget {grid.budget.name} ({whole})")
    text = f"{grid.dataset_size} images, {' and '.join(target)}, delta {grid.delta:.3g}"
    return text if grid.seconds_per_image is None else f"{text}, {grid.seconds_per_image:.3g} s an image and step"


def _table(grid: PlanGrid) -> Table:
    from rich.table import Table

    table = Table()
    for name in ("batch", "steps", "noise multiplier", "epsilon", "epochs", "signal", "banded"):
        table.add_column(name, justify="right")
    if grid.seconds_per_image is not None:
        table.add_column("time", justify="right")
    before = None
    for run in grid.runs:
        if before not in (None, run.expected_batch_size):
            table.add_section()
        before = run.expected_batch_size
        cells = [f"{run.expected_batch_size}", f"{run.steps}", round_up(run.noise_multiplier)]
        cells += [round_up(run.epsilon), f"{run.epochs:.3g}", f"{run.signal:.3f}"]
        cells.append(f"{run.bands}: {100 * run.banded_noise:.0f}%" if run.bands > 1 else "-")
        if run.seconds is not None:
            cells.append(duration(run.seconds))
        table.add_row(*cells, style="bold" if run is grid.best else None)
    return table


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which there is one: ``2.5 h``."""
    size, unit = next(((size, unit) for size, unit in _SPANS if seconds >= size), _SPANS[-1])
    return f"{seconds / size:.3g} {unit}"


def _draw(grid: PlanGrid, file: Path) -> None:
    if not grid.runs:
        raise ConfigError("no run meets this budget, so there is nothing to draw: raise it, or plan larger batches")
    from .planning_picture import draw_plan

    try:
        draw_plan(grid, file, duration)
    except OSError as error:
        raise ConfigError(f"-o {file} cannot be written ({error.strerror}): choose another") from error
