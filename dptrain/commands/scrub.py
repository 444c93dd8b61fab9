"""``dptrain scrub``: images without their metadata, or what they would give away."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..support.files import to_json
from ..support.words import counted
from .options import Commands

if TYPE_CHECKING:
    from ..toolbox.scrubbing import ScrubReport

EXIT_FOUND = 3  # a check found something, or an image was withheld
_SHOWN = 20


def register(commands: Commands) -> None:
    """Add the command."""
    scrub = commands.add_parser(
        "scrub",
        help="images without EXIF, GPS, thumbnails, names, times and patients",
        epilog=f"Exit status {EXIT_FOUND}: --check found something, or an image with burned-in writing was withheld.",
    )
    scrub.add_argument("source", metavar="SOURCE", help="an image, a folder or an Ultralytics data.yaml")
    scrub.add_argument("-o", "--output", type=Path, help="a new folder for the copy")
    scrub.add_argument("--check", action="store_true", help="only say what would leak; write nothing")
    scrub.add_argument("--key", type=Path, metavar="FILE", help="key of the new names: the same key makes the same "
                       "names; created if missing; default: a key that is forgotten")  # fmt: skip
    scrub.add_argument("--mapping", type=Path, metavar="FILE", help="write old and new names here; store it elsewhere")
    scrub.add_argument("--keep-names", action="store_true", help="keep file and folder names")
    scrub.add_argument("--keep-icc", action="store_true", help="keep colour profiles")
    scrub.add_argument("--dicom", default="dicom", choices=("dicom", "png", "both"), help="make of DICOM files: "
                       "scrubbed DICOM, 8-bit images to train on, or both; default %(default)s")  # fmt: skip
    scrub.add_argument(
        "--window", metavar="CENTER,WIDTH", type=_window, help="as --window=-600,1500; default the file's own"
    )
    scrub.add_argument("--keep-burned-in", action="store_true", help="do not withhold images with burned-in writing")
    scrub.add_argument("--json", action="store_true", help="print JSON")
    scrub.set_defaults(command=_scrub)


def _window(text: str) -> tuple[float, float]:
    try:
        centre, width = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not CENTER,WIDTH, such as 40,400") from error
    return centre, width


def _scrub(options: argparse.Namespace) -> int:
    if options.check == (options.output is not None):
        raise ConfigError("give either -o FOLDER, or --check to only look (dptrain scrub --help)")
    from ..toolbox.scrubbing import check, scrub

    if options.check:
        report = check(options.source, names=not options.keep_names)
    else:
        report = scrub(
            options.source,
            options.output,
            key=options.key,
            mapping=options.mapping,
            keep_names=options.keep_names,
            keep_icc=options.keep_icc,
            dicom=options.dicom,
            window=options.window,
            keep_burned_in=options.keep_burned_in,
        )
    if options.json:
        print(to_json(report.as_dict()))
    else:
        _print(report)
    return EXIT_FOUND if (options.check and (report.leaking or report.flagged)) or report.withheld else 0


def _print(report: ScrubReport) -> None:
    if report.output is None:
        for file in [file for file in report.files if file.found or file.warnings][:_SHOWN]:
            print(f"{file.file}: {'; '.join((*file.found, *file.warnings))}")
        if report.leaking > _SHOWN:
            print(f"... and {report.leaking - _SHOWN} more (--json lists them all)")
    kinds = report.kinds()
    width = max(map(len, kinds), default=0)
    for word, count in kinds.items():
        print(f"  {word:<{width}}  {count:>7}")
    if report.output is None:
        print(f"{report.leaking} of {counted(len(report.files), 'image')} would leak metadata; nothing was written")
    else:
        written = len(report.files) - report.withheld
        print(f"{counted(written, 'image')} and {counted(report.labels, 'label file')}: {report.output}")
    if report.flagged:
        done = "" if report.output is None else ", withheld" if report.withheld else ", written all the same"
        print(f"{counted(report.flagged, 'image')} may have writing burned into their pixels{done}")
        for file in [file for file in report.files if file.warnings][: _SHOWN * (report.output is not None)]:
            print(f"  {file.file}: {'; '.join(file.warnings)}")
    if report.left_out:
        shown = ", ".join(report.left_out[:5]) + (", ..." if len(report.left_out) > 5 else "")
        print(f"not copied, since they are not images: {shown}")
