"""Hydra's own flags. It has no public name for them, so this module alone uses one of its private names.

Tried with Hydra 1.3.2 to 1.3.x, which ``pyproject.toml`` asks for; a test fails beside any other version.
"""

from __future__ import annotations

from argparse import Action, ArgumentParser

from hydra._internal.utils import get_args_parser


def hydra_flags() -> tuple[ArgumentParser, dict[str, Action]]:
    """Return the parser of Hydra's command line, and its flags by every name that they go by."""
    parser = get_args_parser()
    return parser, dict(parser._option_string_actions)
