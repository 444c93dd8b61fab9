"""``dptrain check``: what should be fixed in a dataset before training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError
from ..support.files import refuse_unwritable, to_json
from ..support.words import counted
from ..training.journal import JOURNAL
from .options import Commands, check_imgsz

if TYPE_CHECKING:
    from ..toolbox.checking import CheckReport

EXIT_FOUND = 3
_SHOWN = 5


def register(commands: Commands) -> None:
    """Add the command."""
    check = commands.add_parser(
        "check",
        help="broken images, duplicates, label errors, metadata, planted patterns, before training",
        epilog=f"Exit status {EXIT_FOUND}: something was found. The output is as private as the images.",
    )
    check.add_argument("data", metavar="DATA", help="an Ultralytics data.yaml, a sealed dataset, or a folder of images")
    check.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="also write a page with pictures")
    check.add_argument("--weights", type=Path, help="a detector of what must not be there, such as people")
    check.add_argument("--forbid", default="person,face", help="its classes, by name; default %(default)s")
    check.add_argument("--conf", type=float, default=0.25, help="confidence from which it counts; default %(default)s")
    check.add_argument("--imgsz", type=int, default=640, help="image size for the detector; default %(default)s")
    check.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    check.add_argument("--allow", default="", metavar="KIND[,KIND]", help="findings that do not count for the status")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    if not 0 < options.conf < 1:
        raise ConfigError(f"--conf={options.conf} must be between 0 and 1")
    check_imgsz(options.imgsz)
    if options.output is not None:
        _refuse_place(options.output)
    from ..support.devices import parse_device

    device = parse_device(options.device, "--device")
    from ..toolbox.checking.findings import KINDS

    allowed = {kind.strip() for kind in options.allow.split(",") if kind.strip()}
    if allowed - KINDS.keys():
        raise ConfigError(
            f"--allow {options.allow}: {', '.join(allowed - KINDS.keys())} is not one of {', '.join(KINDS)}"
        )
    from ..toolbox.checking import check

    forbid = [name.strip() for name in options.forbid.split(",") if name.strip()]
    report = check(
        options.data, weights=options.weights, forbid=forbid, conf=options.conf, imgsz=options.imgsz, device=device
    )
    if options.output is not None:
        _write(options.output, report)
    if options.json:
        print(to_json(report.as_dict()))
    else:
        _print(report, options.output)
    return EXIT_FOUND if any(count and kind not in allowed for kind, count in report.counts().items()) else 0


def _refuse_place(file: Path) -> None:
    """A run's folder goes to MLflow, and its weights to other people."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"-o {file} is not an .html file")
    refuse_unwritable(file, "-o")
    folder = file.expanduser().resolve().parent
    if any((place / JOURNAL).exists() for place in (folder, *folder.parents)):
        raise ConfigError(f"-o {file} is in the folder of a run, which may be published: choose another place")


def _write(file: Path, report: CheckReport) -> None:
    from ..support.files import write_text
    from ..toolbox.checking.page import to_html

    try:
        write_text(file.expanduser(), to_html(report))
        file.expanduser().chmod(0o600)
    except OSError as error:
        raise DataError(f"-o {file} cannot be written ({error.strerror}): choose another") from None


def _print(report: CheckReport, page: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..toolbox.checking.findings import FOLDER, KINDS, PRIVATE

    table = Table(box=box.SIMPLE_HEAD)
    for column, justify in (("looked for", "left"), ("found", "right"), ("why it matters", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    counts = report.counts()
    for kind, why in KINDS.items():
        table.add_row(kind, "-" if kind in report.skipped else str(counts[kind]), why)
    terminal = Console(markup=False, highlight=False)
    console = terminal if terminal.is_terminal else Console(markup=False, highlight=False, width=200)
    for split, count in report.images.items():
        bare = report.unlabelled.get(split)
        background = f", {bare} of them background: no label file" if bare else ""
        console.print(counted(count, "image" if split == FOLDER else f"{split} image") + background)
    console.print(table)
    for kind in KINDS:
        found = [finding for finding in report.findings if finding.kind == kind]
        for finding in found[:_SHOWN]:
            console.print(f"{kind}: {finding.text}", soft_wrap=True)
        if len(found) > _SHOWN:
            console.print(f"{kind}: and {len(found) - _SHOWN} more", soft_wrap=True)
    for text in dict.fromkeys(report.skipped.values()):
        console.print(f"not looked for: {text}", soft_wrap=True)
    if page is not None:
        console.print(f"page: {page}", soft_wrap=True)
    console.print(PRIVATE, soft_wrap=True)
