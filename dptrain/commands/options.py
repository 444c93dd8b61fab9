"""What the commands' parsers share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import ConfigError

Commands = Any  # argparse's sub-parsers action, which has no public type
# Options that earlier versions had, and what to use now.
REMOVED = dict.fromkeys(("--recall", "--recall-data"), "lower --conf, and look at the contact sheet for what is missed")


class Parser(argparse.ArgumentParser):
    """Refuses abbreviations, and says what is wrong in one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        for option, instead in REMOVED.items():
            if option in message.split():
                raise ConfigError(f"{option} was removed: {instead}")
        raise ConfigError(f"{message} ({self.prog} --help)")


def flag_hint(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """Return what to add to an error where ``weights=x`` was typed for a command that takes ``--weights x``."""
    for word in arguments:
        commands = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = next(commands, {}).get(word, parser)
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or re.fullmatch(r"[a-z][\w.]*", key) is None:
            continue
        name = key.rpartition(".")[2].replace("_", "-")
        for action in parser._actions:
            if f"--{name}" in action.option_strings:
                written = f"--{name}" if action.nargs == 0 else f"--{name} {value}"
            elif not action.option_strings and action.dest == name:
                written = value
            else:
                continue
            return f"; {parser.prog} takes flags: write {written} in place of {word}"
        return f"; {parser.prog} takes flags, not {key}=... ({parser.prog} --help)"
    return ""


def check_imgsz(imgsz: int) -> None:
    """Refuse an image size that a detector cannot take."""
    if imgsz < 32 or imgsz % 32:
        raise ConfigError(f"--imgsz={imgsz} is not a multiple of 32")


def number(parser: argparse.ArgumentParser, name: str, help: str, kind: type = float) -> None:
    """Add a required numeric option."""
    parser.add_argument(f"--{name}", type=kind, required=True, help=help)
