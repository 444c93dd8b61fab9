"""What the commands' parsers share."""

from __future__ import annotations

import argparse
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


def check_imgsz(imgsz: int) -> None:
    """Refuse an image size that a detector cannot take."""
    if imgsz < 32 or imgsz % 32:
        raise ConfigError(f"--imgsz={imgsz} is not a multiple of 32")


def number(parser: argparse.ArgumentParser, name: str, help: str, kind: type = float) -> None:
    """Add a required numeric option."""
    parser.add_argument(f"--{name}", type=kind, required=True, help=help)
