"""Training runs in processes of their own that can be killed anywhere, also in the middle of a write.

They are forked from one process that has imported everything, so that a run costs what it computes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import sqlalchemy

import dptrain.run.job
import dptrain.run.train
from dptrain import PrivacyPlan
from dptrain.commands.console import described
from dptrain.commands.main import main
from dptrain.privacy import noise

from ..conftest import run_options

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([f"{__package__}.warm"])

HOW = "resume with the same command and output_dir={out} resume=true"
PLAN = PrivacyPlan(0.5, 6, 1.0, 1.0, 1e-3, 3)


def options(folder: Path, out: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """Keywords of ``dptrain.train``: six steps in ``out``, or what is left of them, with a ledger in ``folder``."""
    usual = {
        "plan": PLAN,
        "data": data,
        "imgsz": 32,
        "evaluate_every": 3,
        "checkpoint_every": 2,
        "tracking": {"enabled": False},
        "budget": {"url": f"sqlite:///{folder / 'budget.db'}"},
        "output_dir": str(out),
        "resume": (out / "steps.journal").exists(),
    }
    return run_options(folder, **{**usual, **changes})


Before = Callable[[], None]


def start(
    options: dict[str, Any], report: Path, at: tuple[str, int] | None = None, before: Before | None = None
) -> BaseProcess:
    """Start ``dptrain.train(**options)``; a process of its own.

    Args:
        options: Of the run.
        report: Folder of what the process tells: ``released`` (a byte for every noise drawn), ``points`` (what it
            did to its files, a line each), ``error`` (the line that the command would have printed).
        at: Kills itself the n-th time that it comes to a point.
        before: Called in the process before the run.
    """
    report.mkdir(exist_ok=True)
    process = FORKS.Process(target=_train, args=(options, report, at, before))
    process.start()
    return process


def run(options: dict[str, Any], report: Path, at: tuple[str, int] | None = None, before: Before | None = None) -> int:
    """:func:`start`, wait for the end, and return the exit status: 0, 1, or minus the signal."""
    process = start(options, report, at, before)
    process.join(240)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def start_command(arguments: list[str], told: Path) -> BaseProcess:
    """Start ``dptrain`` with its arguments, in the folder of ``told``, the file of all that it says."""
    process = FORKS.Process(target=_command, args=(arguments, told))
    process.start()
    return process


def _command(arguments: list[str], told: Path) -> None:
    handle = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.chdir(told.parent)
    sys.exit(main(arguments))


def _train(options: dict[str, Any], report: Path, at: tuple[str, int] | None, before: Before | None) -> None:
    (report / "error").unlink(missing_ok=True)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    if before is not None:
        before()
    _count_released(report)
    _watch(Points(report, at))
    try:
        dptrain.run.train.train(**options)
    except SystemExit as stopped:
        (report / "error").write_text(str(stopped))
        raise SystemExit(1) from None
    except Exception as error:
        (report / "error").write_text(described(error))
        raise SystemExit(1) from error


def _count_released(report: Path) -> None:
    real, handle = noise.privatize, os.open(report / "released", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def counted(*args: Any, **kwargs: Any) -> Any:
        os.write(handle, b".")
        return real(*args, **kwargs)

    noise.privatize = counted


class Points:
    """What the process comes by: calls that change a file, and statements of the ledger."""

    def __init__(self, report: Path, at: tuple[str, int] | None) -> None:
        self.seen: Counter[str] = Counter()
        self.at = at
        self.list = None if at else (report / "points").open("w", buffering=1)

    def __call__(self, name: str) -> bool:
        """Note a point; return whether it is the last."""
        self.seen[name] += 1
        if self.list is not None:
            self.list.write(f"{name}\n")
        return self.at == (name, self.seen[name])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _watch(point: Points) -> None:
    """Let every system call by which dptrain changes a file, and every statement of its ledger, be a point."""
    names: dict[int, str] = {}
    real_open, real_write, real_fsync, real_replace, real_fdopen = os.open, os.write, os.fsync, os.replace, os.fdopen

    def open_(path: Any, *args: Any, **kwargs: Any) -> int:
        handle = real_open(path, *args, **kwargs)
        names[handle] = _plain(path)
        return handle

    def write(handle: int, data: bytes) -> int:
        name = names.get(handle, "")
        if name == "steps.journal" and point("before write steps.journal"):
            die()
        written = real_write(handle, data)
        if name == "steps.journal" and point("after write steps.journal"):
            die()
        return written

    def fsync(handle: int) -> None:
        if point(f"before fsync {names.get(handle, '')}"):
            die()
        real_fsync(handle)

    def replace(source: Any, target: Any) -> None:
        for when in ("before", "after"):
            if point(f"{when} replace {Path(target).name}"):
                die()
            if when == "before":
                real_replace(source, target)

    class HalfWritten:
        """A file that is being written; its process may die after half of a write."""

        def __init__(self, handle: int, stream: Any) -> None:
            self.name, self.stream = names.get(handle, ""), stream

        def write(self, data: Any) -> int:
            if point(f"half of a write to {self.name}"):
                self.stream.write(bytes(data)[: len(data) // 2])
                self.stream.flush()
                die()
            return self.stream.write(data)

        def __enter__(self) -> HalfWritten:
            return self

        def __exit__(self, *error: object) -> None:
            self.stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    def fdopen(handle: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = real_fdopen(handle, mode, *args, **kwargs)
        return HalfWritten(handle, stream) if mode == "wb" and names.get(handle) else stream

    os.open, os.write, os.fsync, os.replace, os.fdopen = open_, write, fsync, replace, fdopen

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
    def statement(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        words = " ".join(text.split()[:3])
        if words.startswith(("INSERT", "UPDATE", "DELETE")) and point(f"ledger {words}"):
            die()

    for event in ("commit", "begin"):

        @sqlalchemy.event.listens_for(sqlalchemy.Engine, event)
        def transaction(connection: Any, event: str = event) -> None:
            if connection.get_execution_options().get("write") and point(f"ledger {event}"):
                die()


def _plain(path: Any) -> str:
    """``checkpoint.pt`` for ``.checkpoint.pt.k3w9.part``: the same name every time."""
    name = Path(os.fsdecode(path)).name
    return name.removeprefix(".").rsplit(".", 2)[0] if name.endswith(".part") else name
