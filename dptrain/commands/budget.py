"""``dptrain budget``: what every dataset may spend, has spent, and by which runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.groups import GroupsConfig
from ..errors import BudgetError, ConfigError
from ..support.environment import ledger_address
from ..support.files import to_json, write_text
from ..support.words import counted
from ..training.journal import JOURNAL
from .options import Commands, number

if TYPE_CHECKING:
    from rich.table import Table
    from sqlalchemy import Row

    from ..ledger import BudgetLedger
    from ..ledger.reading import DatasetReading, Movement

EXIT_UNSOUND = 3  # a ledger that was changed by other ways


def register(commands: Commands) -> None:
    """Add the command and its own commands."""
    budget = commands.add_parser("budget", help="the privacy budget of datasets: limits, spending, history")
    actions = budget.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=type(budget))

    create = actions.add_parser("create", help="set the limit of a dataset")
    create.add_argument("name", nargs="?", help="what to call the dataset; default that of the data.yaml")
    create.add_argument("--data", required=True, help="an Ultralytics data.yaml; its train split is protected")
    number(create, "epsilon", "what all runs together may spend (RDP)")
    number(create, "delta", "chance of failure allowed, well below 1/n")
    create.add_argument("--unit", default="image", help="what one unit is, as in the runs: image, group or person")
    for name in GroupsConfig.__dataclass_fields__:
        kind = int if name == "folder" else str
        create.add_argument(f"--groups-{name}", type=kind, help=f"as privacy.groups.{name} of the runs")
    _common(create)
    create.set_defaults(command=_create)

    show = actions.add_parser("show", help="what datasets have spent")
    show.add_argument("name", nargs="?", help="one dataset; default all")
    show.add_argument("--html", metavar="FILE", help="write a page with pictures for the data's owner instead")
    show.add_argument("--pld", action="store_true", help="compute the tighter reading where it is missing (seconds)")
    _common(show)
    show.set_defaults(command=_show)

    history = actions.add_parser("history", help="the runs that spent it, and how it grew")
    history.add_argument("name", nargs="?", help="one dataset; default all")
    history.add_argument("--last", type=int, help="only that many runs")
    history.add_argument("--plot", metavar="FILE.png", help="also draw the spending over the runs of one dataset")
    _common(history)
    history.set_defaults(command=_history)

    verify = actions.add_parser("verify", help="find an edited, deleted or inserted entry")
    verify.add_argument("--expect", metavar="HEAD", help="a head noted earlier, which the chain must still contain")
    _common(verify)
    verify.set_defaults(command=_verify)

    export = actions.add_parser("export", help="the whole chain as JSON, with its head")
    export.add_argument("--output", metavar="FILE", help="write it there instead of printing it")
    _common(export)
    export.set_defaults(command=_export)

    roles = actions.add_parser("roles", help="on a PostgreSQL server: who may read, who may spend, who may set limits")
    roles.add_argument("--apply", action="store_true", help="make them; without it the SQL is printed")
    _common(roles)
    roles.set_defaults(command=_roles)

    settle = actions.add_parser("settle", help="charge a run that died with what it started")
    settle.add_argument("folder", nargs="?", metavar="RUN_DIR", help="its folder: charges the steps in its journal")
    settle.add_argument(
        "--run", metavar="ID", help="its id, or 8 digits of it, if the folder is lost: charges all that was planned"
    )
    _common(settle)
    settle.set_defaults(command=_settle)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the ledger (default $DPTRAIN_BUDGET_URL or sqlite:///budget.db)")
    parser.add_argument("--key", metavar="FILE", help="its key (default $DPTRAIN_BUDGET_KEY or beside an SQLite file)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _open(options: argparse.Namespace, create: bool = False) -> BudgetLedger:
    from ..ledger import BudgetLedger

    return BudgetLedger(ledger_address(options.url), options.key, create=create)


def _create(options: argparse.Namespace) -> int:
    from ..privacy.accounting import check_delta, check_epsilon

    check_epsilon(options.epsilon)
    check_delta(options.delta)
    from ..datasets.data_yaml import data_name
    from ..datasets.grouping import grouped
    from ..datasets.groups import check_groups
    from ..datasets.sources import load_data
    from ..ledger.hashing import hash_images
    from ..privacy.units import UNITS

    if options.unit not in UNITS:
        raise ConfigError(f"--unit={options.unit} is not one of {', '.join(UNITS)}")
    given = GroupsConfig(**{name: getattr(options, f"groups_{name}") for name in GroupsConfig.__dataclass_fields__})
    if options.unit != "image":
        check_groups(given, "--groups-")
        if options.unit == "person" and given.csv is None:
            raise ConfigError("--unit person needs a table with a row for each person in each picture: --groups-csv")
    elif given != GroupsConfig():
        raise ConfigError("--groups-csv, --groups-column, --groups-folder and --groups-regex are not for --unit image")
    data = load_data(options.data)
    found = grouped(given, options.unit, data, evaluates=False)
    data, groups = found.data, found.train
    ledger = _open(options, create=True)
    boxes = data.boxes_in("train")
    manifest = hash_images(ledger, data.train, groups, copies_are_one=True, boxes=boxes)  # a limit counts pictures
    name = options.name or data_name(Path(options.data))
    reading = ledger.create(name, epsilon=options.epsilon, delta=options.delta, unit=options.unit, manifest=manifest)
    return _print_readings([reading], ledger, options.json)


def _show(options: argparse.Namespace) -> int:
    ledger = _open(options)
    readings = ledger.show(options.name)
    if options.pld:
        for reading in readings:
            ledger.refresh_pld(reading.name)
        readings = ledger.show(options.name)
    if options.html is not None:
        from ..ledger.dashboard import to_html

        page = to_html(ledger.name, [(reading, ledger.history(reading.name)) for reading in readings])
        write_text(Path(options.html), page)
        print(f"written: {options.html} (for the data's owner; do not publish it)")
        return 0
    return _print_readings(readings, ledger, options.json)


def _print_readings(readings: Sequence[DatasetReading], ledger: BudgetLedger, as_json: bool) -> int:
    from ..support.words import shown

    if as_json:
        print(to_json({"ledger": ledger.address, "datasets": [asdict(reading) for reading in readings]}))
        return 0
    columns = ("dataset", "spent", "charged", "limit", "used", "delta", "PLD", "runs", "open", "unit")
    table = _table(f"privacy budget: {ledger.name}", columns)
    for reading in readings:
        table.add_row(
            reading.name,
            shown(reading.epsilon),
            shown(reading.epsilon_charged) if reading.stopped_runs else "",
            "none" if reading.limit is None else f"{reading.limit:g}",
            "" if reading.used is None else f"{reading.used:.1%}",
            "" if reading.delta is None else f"{reading.delta:.3g}",
            "" if reading.epsilon_pld is None else shown(reading.epsilon_pld),
            str(reading.runs),
            str(reading.open_runs),
            reading.unit,
        )
    _print(table)
    if readings:
        print("spent: epsilon by RDP, reservations included; used: part of the budget that its filter has admitted")
        if any(reading.stopped_runs for reading in readings):
            print(
                "spent counts all that runs which ended early had planned; charged counts the steps they took, "
                "and holds if it was decided beforehand when each run ends"
            )
    else:
        print("no dataset yet: dptrain budget create, or the first dptrain train, makes one")
    return 0


def _history(options: argparse.Namespace) -> int:
    from ..support.words import shown

    if options.last is not None and options.last < 1:
        raise ConfigError(f"--last={options.last} must be 1 or more")
    ledger = _open(options)
    movements = ledger.history(options.name, options.last)
    if options.plot:
        _plot(ledger, movements, options)
    if options.json:
        print(to_json({"ledger": ledger.address, "runs": [asdict(movement) for movement in movements]}))
        return 0
    table = _table("", ("reserved (UTC)", "dataset", "run", "steps", "noise", "rate", "status", "epsilon so far", "id"))
    for movement in movements:
        table.add_row(
            movement.at.replace("T", " ").rstrip("Z"),
            movement.dataset,
            movement.name,
            str(movement.charged) if movement.charged == movement.planned else f"{movement.charged}/{movement.planned}",
            movement.kind if movement.noise_multiplier is None else f"{movement.noise_multiplier:g}",
            "" if movement.sample_rate is None else f"{movement.sample_rate:.4g}",
            movement.status,
            shown(movement.epsilon),
            movement.run[:12],
        )
    _print(table)
    return 0


def _plot(ledger: BudgetLedger, movements: Sequence[Movement], options: argparse.Namespace) -> None:
    from ..ledger.picture import draw_spending

    names = {movement.dataset for movement in movements}
    if len(names) != 1:
        raise ConfigError(f"--plot draws one dataset with runs, and there are {len(names)}: give its name")
    file = Path(options.plot)
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot={file} is not a .png, .svg or .pdf file")
    draw_spending(movements, ledger.show(names.pop())[0], file)


def _verify(options: argparse.Namespace) -> int:
    found = _open(options).verify(options.expect)
    if options.json:
        print(to_json(asdict(found) | {"sound": found.sound}))
    else:
        for finding in found.findings:
            print(f"NOT SOUND: {finding}")
        verdict = "sound" if found.sound else counted(len(found.findings), "finding")
        print(f"{found.entries} entries, {verdict}; head {found.head}")
    return 0 if found.sound else EXIT_UNSOUND


def _export(options: argparse.Namespace) -> int:
    text = to_json(_open(options).export(), indent=1)
    if options.output is None:
        print(text)
        return 0
    write_text(Path(options.output), text + "\n")
    return 0


def _roles(options: argparse.Namespace) -> int:
    from ..ledger import roles

    commands = _open(options).grant_roles() if options.apply else roles.statements()
    if options.json:
        print(to_json({"applied": options.apply, "statements": commands}))
    elif options.apply:
        print(f"the server now has {', '.join(roles.ROLES)}; give one to a user: GRANT {roles.SPENDER} TO anna")
    else:
        print("\n".join(f"{command};" for command in commands))
    return 0


def _settle(options: argparse.Namespace) -> int:
    if (options.folder is None) == (options.run is None):
        raise ConfigError("give the run's folder, or --run ID where the folder is lost")
    settled = [_settle_lost(options)] if options.run is not None else _settle_folder(options, Path(options.folder))
    if options.json:
        first, *others = [
            {"run": one.row.id, "planned": one.row.planned, "charged": one.row.charged} for one in settled
        ]
        print(to_json({**first, **({"val": others[0]} if others else {})}))
    else:
        print("\n".join(map(_settled_words, settled)))
    return 0


@dataclass(frozen=True)
class _Settled:
    """A settled charge: its row, what it counts, and what may have been taken that the folder does not show."""

    row: Row
    what: str
    bands: int = 1
    unseen: int = 0


def _settle_lost(options: argparse.Namespace) -> _Settled:
    ledger = _open(options)
    found = ledger.find_run(options.run)
    if found is None:
        raise BudgetError(f"--run={options.run} matches no run of {ledger.address}, or several: see budget history")
    ledger.settle(str(found.id), None, "lost")
    return _Settled(_row(ledger, str(found.id)), "steps")


def _settle_folder(options: argparse.Namespace, folder: Path) -> list[_Settled]:
    """Settle the charge of a run, and that of its private val split where it has one."""
    from ..run.charge import note_of
    from ..run.folder import RELEASES
    from ..run.private_validation import PART

    settled = [_settle_part(options, folder, JOURNAL, "", "steps")]
    if note_of(folder, PART).exists():
        settled.append(_settle_part(options, folder, RELEASES, PART, "evaluations on its private val split"))
    return settled


def _settle_part(options: argparse.Namespace, folder: Path, name: str, part: str, what: str) -> _Settled:
    from ..run.charge import read_note, rounds_of, steps_of
    from ..training.journal import StepJournal

    note = read_note(folder, part)
    try:
        journal = StepJournal(folder / name, new=False)  # locked, so that no process goes on meanwhile
    except OSError as error:
        raise BudgetError(f"{folder / name} cannot be read ({error.strerror}): settle by --run ID") from error
    try:
        options.url, options.key = options.url or note["ledger"], options.key or note["key"]
        ledger, run = _open(options), str(note["run"])
        bands = int(note["bands"])
        ledger.settle(run, rounds_of(journal.steps, bands), "killed", attempts=note["attempts"])
        spent = steps_of(_row(ledger, run).charged, bands, note["steps"])
        unseen = max(0, spent - journal.steps)
        journal.record(journal.steps + unseen)  # whoever resumes or states the run goes by it
    finally:
        journal.close()
    return _Settled(_row(ledger, run), what, bands, unseen)


def _settled_words(settled: _Settled) -> str:
    row, bands, unseen = settled.row, settled.bands, settled.unseen
    of = settled.what if bands == 1 else f"rounds of {bands} steps"
    what = "of them" if bands == 1 else "more steps"
    more = f"; {unseen} {what} may have been taken, and the folder cannot show that they were not"
    return f"run {row.id}: {row.charged} of {row.planned} {of} are charged{more if unseen else ''}"


def _row(ledger: BudgetLedger, run: str) -> Row:
    row = ledger.find_run(run)
    assert row is not None
    return row


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    right = (
        "spent",
        "charged",
        "limit",
        "used",
        "PLD",
        "runs",
        "open",
        "steps",
        "epsilon so far",
        "noise",
        "rate",
        "delta",
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    terminal = Console(markup=False)
    # Into a pipe or a file nothing is folded to fit.
    (terminal if terminal.is_terminal else Console(markup=False, width=200)).print(table)
