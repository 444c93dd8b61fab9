"""``dptrain redact``: people, faces, plates and fixed regions out of images, folders, videos and camera streams."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError
from ..support.files import to_json
from ..support.words import counted
from .options import Commands

if TYPE_CHECKING:
    from ..toolbox.redaction import FileReport, RedactionReport

_SETTINGS = (
    "classes",
    "method",
    "conf",
    "margin",
    "hold",
    "on_miss",
    "audio",
    "cells",
    "imgsz",
    "batch_size",
    "device",
)


def register(commands: Commands) -> None:
    """Add the command."""
    redact = commands.add_parser(
        "redact",
        help="hide people, faces, plates or fixed regions in images, videos and streams",
        epilog="What is written holds no EXIF, no thumbnail, no place. Redaction is not differential privacy.",
    )
    redact.add_argument(
        "source", metavar="SOURCE", help="image, video, folder, data.yaml, camera number, or rtsp://, http://, ..."
    )
    redact.add_argument("-o", "--output", type=Path, help="file, or for a folder the folder, to write to")
    redact.add_argument("--in-place", action="store_true", help="write over the originals instead")
    redact.add_argument("--overwrite", action="store_true", help="write over other files that are there")
    redact.add_argument("--weights", help="a YOLO .pt file that finds what is redacted")
    redact.add_argument("--classes", help="names, such as person,face; default every class of the weights")
    redact.add_argument(
        "--region", action="append", default=[], metavar="X1,Y1,X2,Y2", help="a fixed rectangle in pixels, or all in "
        "percent such as 0%%,80%%,100%%,100%%; as many as you like, with or without --weights"
    )  # fmt: skip
    redact.add_argument("--method", default="fill", help="fill, inpaint (both leave nothing), gaussian, pixelate (both "
                        "leave a few mean colours); default %(default)s")  # fmt: skip
    redact.add_argument(
        "--conf", type=float, default=0.05, help="least confidence; low, to miss less; default %(default)s"
    )
    redact.add_argument("--margin", type=float, default=0.15, help="growth of a box on each side; default %(default)s")
    redact.add_argument(
        "--cells", type=int, default=4, help="mean colours along a box's longer side; default %(default)s"
    )
    redact.add_argument("--hold", type=int, default=10, help="frames that a box is kept; default %(default)s")
    redact.add_argument(
        "--on-miss", default="previous", help="of a frame in which a followed object is not found: previous (its held "
        "box) or blur-all (the whole frame); default %(default)s"
    )  # fmt: skip
    redact.add_argument("--audio", default="drop", help="drop or keep the sound of videos; default %(default)s")
    redact.add_argument("--imgsz", type=int, default=640, help="pixels the model sees; default %(default)s")
    redact.add_argument("--batch-size", type=int, default=8)
    redact.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    redact.add_argument("--frames", type=int, help="end a stream after so many frames")
    redact.add_argument("--seconds", type=float, help="end a stream after so many seconds")
    redact.add_argument("--report", type=Path, metavar="FOLDER", help="default OUTPUT.redaction")
    redact.add_argument("--json", action="store_true", help="print the summary as JSON")
    redact.set_defaults(command=_redact)


def _redact(options: argparse.Namespace) -> int:
    from ..toolbox.redaction import RedactionSettings, redact

    settings: dict[str, Any] = {name: getattr(options, name) for name in _SETTINGS}
    try:  # a wrong value is told before anything is loaded
        RedactionSettings(**settings, regions=tuple(options.region))
    except ConfigError as error:
        name, _, rest = str(error).partition("=")
        if name not in _SETTINGS:
            raise
        raise ConfigError(f"--{name.replace('_', '-')}={rest}") from None
    with _progress() as on_file:
        report = redact(
            options.source,
            options.output,
            weights=options.weights,
            in_place=options.in_place,
            overwrite=options.overwrite,
            report=options.report,
            frames=options.frames,
            seconds=options.seconds,
            on_file=on_file,
            regions=tuple(options.region),
            **settings,
        )
    if options.json:
        print(to_json({**report.summary(), "conf": report.settings["conf"], "report": str(report.folder)}))
    else:
        for line in _lines(report):
            print(line)
    if report.failed:
        first = report.failed[0]
        raise DataError(
            f"{len(report.failed)} of {len(report.files)} files could not be redacted and were not written, the first: "
            f"{first.reason}; {report.folder}/report.json names all of them"
        )
    for entry in report.files:
        if entry.reason:
            raise DataError(f"{entry.reason}; the {counted(entry.frames, 'frame')} before it are in {entry.output}")
    return 0


def _lines(report: RedactionReport) -> Iterator[str]:
    summary = report.summary()
    words = [counted(summary["redacted"], "file") + " redacted"]
    words += [f"{summary['untouched']} in which nothing was found"] * bool(summary["untouched"])
    words += [f"{summary['skipped']} skipped (no pictures)"] * bool(summary["skipped"])
    yield f"{', '.join(words)}: {counted(summary['boxes'], 'box')} in {counted(summary['frames'], 'frame')}"
    if summary["label files"] or report.data:
        carried = [counted(summary["label files"], "label file"), *([report.data] if report.data else [])]
        yield f"carried    {', '.join(carried)}"
    for entry in report.files:
        if entry.dropped:
            yield f"{entry.source}: left out {counted(entry.dropped, 'frame')}, which came faster than the model works"
        if entry.unreadable:
            yield f"{entry.source}: left out {counted(entry.unreadable, 'packet')} that could not be decoded"
    yield f"report     {report.folder}"


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar over files on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("files"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("redact", total=None)

        def on_file(entry: FileReport, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield on_file
