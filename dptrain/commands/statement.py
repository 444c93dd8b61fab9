"""``dptrain statement``: the privacy statement of a run, worked out again and held against the run's own files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..support.environment import tracking_address
from .options import Commands

if TYPE_CHECKING:
    from ..statement import CheckedStatement

_SUFFIXES = {".json": "json", ".md": "markdown", ".html": "html", ".htm": "html"}
_NAMES = {"json": "statement.json", "markdown": "statement.md", "html": "statement.html"}


def register(commands: Commands) -> None:
    """Add the command."""
    statement = commands.add_parser("statement", help="the privacy statement of a run, checked against the run")
    statement.add_argument("run", metavar="RUN", help="a run's folder, one of its weights files, or its MLflow run id")
    statement.add_argument("--format", choices=(*_NAMES, "all"), help="default: by the suffix of -o, else markdown")
    statement.add_argument(
        "-o", "--output", type=Path, help="file, or the folder for --format all; default: print (all: RUN/statement)"
    )
    statement.add_argument(
        "--tracking-uri", help="MLflow store of a run id; default $MLFLOW_TRACKING_URI or sqlite:///mlflow.db"
    )
    statement.set_defaults(command=_statement)


def _statement(options: argparse.Namespace) -> int:
    from ..statement import check_statement
    from ..statement.tracked import fetched, is_run_id

    try:
        kind, output = _kind(options.format, options.output)
    except OSError as error:
        raise ConfigError(f"-o {options.output} cannot be looked up ({error.strerror}): choose another") from error
    if not is_run_id(options.run):
        return _write(check_statement(options.run), kind, output)
    if kind == "all" and output is None:
        raise ConfigError("--format all of an MLflow run needs a folder to write to: give -o FOLDER")
    with fetched(options.run, tracking_address(options.tracking_uri)) as folder:
        return _write(check_statement(folder), kind, output)


def _write(found: CheckedStatement, kind: str, output: Path | None) -> int:
    if kind == "all":
        output = output or found.folder / "statement"
    kinds = list(_NAMES) if kind == "all" else [kind]
    pages = {name: _page(name, found.statement, found.results) for name in kinds}
    if output is None or str(output) == "-":
        print(pages[kind], end="")
        return 0
    files = {name: output / _NAMES[name] if kind == "all" else output for name in kinds}
    _refuse_own_files(files.values(), found.folder)
    try:
        for name, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(pages[name], encoding="utf-8")
            print(file)
    except OSError as error:
        raise ConfigError(f"-o {output} cannot be written ({error.strerror}): choose another") from error
    return 0


def _kind(asked: str | None, output: Path | None) -> tuple[str, Path | None]:
    """Which page, and where to; a suffix that says something else than --format is refused."""
    if asked == "all" and output is not None and (output.is_file() or str(output) == "-"):
        raise ConfigError(f"-o {output} is not a folder: --format all writes three files")
    if asked != "all" and output is not None and output.is_dir():
        raise ConfigError(f"-o {output} is a folder: give a file, or --format all")
    by_suffix = None if output is None else _SUFFIXES.get(output.suffix.lower())
    if asked in _NAMES and by_suffix not in (None, asked):
        raise ConfigError(f"-o {output} does not fit --format {asked}: leave one of them out")
    return asked or by_suffix or "markdown", output


def _page(kind: str, statement: dict[str, object], results: Path | None) -> str:
    from ..statement import to_html, to_json, to_markdown

    if kind == "html":
        return to_html(statement, results)
    return to_json(statement) if kind == "json" else to_markdown(statement)


def _refuse_own_files(files: Iterable[Path], folder: Path) -> None:
    """What the run wrote stays as it wrote it: whoever asks later holds it against them."""
    for file in files:
        if file.resolve().parent in (folder.resolve(), (folder / "weights").resolve()) and file.exists():
            raise ConfigError(f"-o {file} is the run's own file, which is never overwritten: choose another place")
