"""The ``dptrain`` command. Heavy packages are imported by the command that needs them, so the others answer at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import ConfigError, DptrainError
from . import (
    audit,
    budget,
    calibrate,
    check,
    evaluate,
    federate,
    perturb,
    plan,
    pretrain,
    redact,
    register,
    rehearse,
    scrub,
    seal,
    statement,
    train,
    ui,
)
from .console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    described,
    fail,
    messages,
    nobody_reads,
    reader_gone,
)
from .options import Parser, flag_hint

# In the order of --help.
_COMMANDS = (
    pretrain, rehearse, train, federate, plan, calibrate, evaluate, budget, statement, ui, register, audit, check,
    scrub, redact, perturb, seal,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 with one line on stderr for what the user can fix."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        try:
            with messages():
                return _run(arguments, debug)
        finally:
            sys.stdout.flush()  # here, where it can still be caught that nobody reads it
    except BrokenPipeError as error:
        return reader_gone(error)


def _run(arguments: list[str], debug: bool) -> int:
    parser = None
    try:
        if arguments[:1] == ["train"]:
            return train.train(arguments[1:], debug)
        if arguments[:1] == ["pretrain"]:
            return pretrain.pretrain(arguments[1:])
        if arguments[:1] == ["rehearse"]:
            return rehearse.rehearse(arguments[1:])
        if arguments[:1] == ["report"]:
            raise ConfigError("dptrain report is now dptrain statement")
        parser = _parser()
        options = parser.parse_args(arguments)
        return int(options.command(options))
    except KeyboardInterrupt as error:
        return fail("; ".join(("interrupted", *getattr(error, "__notes__", ()))), EXIT_INTERRUPTED, debug)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            raise
        hint = flag_hint(parser, arguments) if parser is not None and isinstance(error, DptrainError) else ""
        return fail(described(error) + hint, EXIT_REFUSED if isinstance(error, DptrainError) else EXIT_FAILED, debug)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dptrain",
        description="Train a YOLO detector on sensitive images with a differential privacy guarantee you can state.",
        epilog="--debug, anywhere, shows the traceback of an error. Each command has its own --help.",
    )
    parser.add_argument("--version", action="version", version=f"dptrain {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for command in _COMMANDS:
        command.register(commands)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dptrain")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    raise SystemExit(main())
