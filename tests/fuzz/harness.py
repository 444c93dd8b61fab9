"""What every fuzz test shares: how many cases, what counts as a clear refusal, and a limit on the time of one case.

``DPTRAIN_FUZZ=10000`` asks for that many new cases in all, split over the inputs; without it the same few every time.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from dptrain import DptrainError
from dptrain.errors import is_control

T = TypeVar("T")
FULL = int(os.environ.get("DPTRAIN_FUZZ", "0"))
_SECONDS = 30  # for one case; the slowest right answers take a few


class Hang(BaseException):
    """No handler of an ordinary exception may swallow it."""


def cases(share: float, ci: int) -> settings:
    """Settings of a test that gets ``share`` of all the cases in full mode, and always the same ``ci`` ones without."""
    return settings(
        max_examples=max(1, round(FULL * share)) if FULL else ci,
        derandomize=not FULL,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if FULL else [])],
    )


@contextmanager
def limited(seconds: float = _SECONDS) -> Iterator[None]:
    """Turn a case that does not end into a failure that names it."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Hang(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer(call: Callable[[], T], *names: object) -> tuple[T | None, str | None]:
    """Return what a call gives, or the message with which it was clearly refused; whatever else it raises goes up.

    Args:
        call: What is tested.
        names: One of these must be in the message: the file, or the value.
    """
    with limited():
        try:
            return call(), None
        except DptrainError as error:
            check_message(str(error), *names)
            return None, str(error)


def check_message(message: str, *names: object) -> None:
    """One printable line of a bearable length, in words, that names the value or the file."""
    assert not any(map(is_control, message)), message
    assert 10 < len(message) < 2100, message
    for leak in (
        r"<class ",
        r"<\w+ object",
        r" at 0x[0-9a-f]+",
        r"Traceback",
        r"<function",
        r"NoneType",
        r"ListConfig",
    ):
        assert not re.search(leak, message), message
    assert not names or any(str(name) in message for name in names), (names, message)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@st.composite
def damaged(draw: st.DrawFn, data: bytes, most: int = 4) -> bytes:
    """A file's bytes with some of them changed, taken out, doubled, or cut off."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["bit", "byte", "cut", "delete", "double", "insert", "zero"]))
        length = draw(st.integers(1, 64))
        if kind == "bit" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at:]
        elif kind == "delete":
            del content[at : at + length]
        elif kind == "double":
            content[at:at] = content[at : at + length]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "zero":
            content[at : at + length] = bytes(len(content[at : at + length]))
    return bytes(content)


def hostile_json(leaves: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    """JSON values that a careless reader trips over: other types, huge and special numbers, odd texts."""
    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 12),
        st.sampled_from([10**18, 10**30, 10**400, -(10**30), 0.5, -1.5, 1e-320, 1e308, float("nan"), float("inf")]),
        st.floats(0, 2),
        st.text(max_size=8),
        st.sampled_from(["", "\n", "\ud800", "a\x00b", "../x", "x" * 300, "1e5", "NaN", "${a}", "\x1b[31m"]),
    )
    base = plain if leaves is None else st.one_of(plain, leaves)
    return st.recursive(
        base,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
        max_leaves=4,
    )


@st.composite
def edited(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """A JSON value with some of its parts replaced, removed, renamed or added, at any depth."""
    import copy

    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        inside, places = value, 0
        while isinstance(inside, dict | list) and inside and places < 6:
            key = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
            child = inside[key]
            if isinstance(child, dict | list) and child and draw(st.integers(0, 3)):
                inside, places = child, places + 1
                continue
            action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename"]))
            if action == "replace":
                inside[key] = draw(hostile_json())
            elif action == "remove":
                del inside[key]
            elif action == "add" and isinstance(inside, dict):
                inside[draw(st.text(max_size=5))] = draw(hostile_json())
            elif action == "rename" and isinstance(inside, dict):
                inside[draw(st.text(max_size=5))] = inside.pop(key)
            break
    return value
