"""Where a statement lies: in the run's folder and, to travel with them, beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import ConfigError
from ..support import files
from ..support.files import file_hash, write_text
from .facts import STATEMENT_FORMAT, sealed
from .page import to_html
from .render import to_json, to_markdown

STATEMENT_FILES = JSON, MARKDOWN, HTML = "statement.json", "statement.md", "statement.html"
WEIGHTS = "weights"
WEIGHT_FILES = ("last.pt", "last_raw.pt")
SEALED = ".age"  # after the name of a file that the run wrote sealed


def write_statement(
    folder: Path, statement: Mapping[str, Any], contents: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Write a run's statement, with the hashes of its weights, and return it; ``contents`` are those of what is sealed.

    The facts and the page that a person opens also go beside the weights, to travel with them. The page is written when
    the run ends or stops; one of an earlier state is removed, since the weights beside it have gone on.
    """
    names = [name + suffix for name in WEIGHT_FILES for suffix in ("", SEALED)]
    weights = {name: file_hash(folder / WEIGHTS / name) for name in names if (folder / WEIGHTS / name).exists()}
    weights |= {name: contents[name] for name in WEIGHT_FILES if name + SEALED in weights and name in contents}
    complete = sealed({**statement, "weights": weights})
    pages = {f"{WEIGHTS}/{JSON}": to_json(complete), MARKDOWN: to_markdown(complete)}
    if statement["status"] == "running":
        for name in (HTML, f"{WEIGHTS}/{HTML}"):
            (folder / name).unlink(missing_ok=True)
    else:
        pages[HTML] = pages[f"{WEIGHTS}/{HTML}"] = to_html(complete, folder / "results.csv")
    pages[JSON] = to_json(complete)  # last: once it says "finished", the run is over and nothing is written again
    for name, text in pages.items():
        write_text(folder / name, text)
    return complete


def read_statement(file: Path) -> dict[str, Any]:
    """Return the statement in a file.

    Raises:
        ConfigError: It is missing, damaged, or of another format.
    """
    statement = read_json(file, "the statement that the run wrote")
    found = statement.get("format")
    if found != STATEMENT_FORMAT:
        reason = "it was written by an earlier dptrain" if found in (1, 2, 3) else "this dptrain cannot read it"
        raise ConfigError(
            f"{file}: format={found!r}, and {STATEMENT_FORMAT} is expected: {reason}; use the dptrain that wrote it, "
            "or `dptrain epsilon` on its mechanism section"
        )
    return statement


def read_json(file: Path, what: str) -> dict[str, Any]:
    """Return a JSON object; ``what`` says in an error what the file should hold."""
    if not file.is_file():
        raise ConfigError(f"{file} is missing: it is {what}")
    try:
        return files.read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): it is {what}") from error
