"""How a bug is planted: a function of dptrain gets the code that somebody might have written, in memory only."""

from __future__ import annotations
import __future__

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any


class Stale(Exception):
    """A bug no longer fits the code that it changes."""


@dataclass(frozen=True)
class Edit:
    """Texts of one function, and what stands there instead.

    Attributes:
        where: ``package.module:function`` or ``package.module:Class.method``.
        changes: Pairs of old text, found exactly once in the function, and new text.
    """

    where: str
    changes: tuple[tuple[str, str], ...]

    def function(self) -> FunctionType:
        """Return the function itself, without its decorators.

        Raises:
            Stale: There is none of this name.
        """
        module, _, path = self.where.partition(":")
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            try:
                found = inspect.getattr_static(found, name)
            except AttributeError:
                raise Stale(f"{self.where} is not there any more") from None
        found = getattr(found, "fget", None) or getattr(found, "__func__", found)
        found = inspect.unwrap(found)
        if not isinstance(found, FunctionType):
            raise Stale(f"{self.where} is no function")
        return found

    def code(self) -> CodeType:
        """Return the changed code.

        Raises:
            Stale: An old text is not there exactly once, or the change does not compile.
        """
        function = self.function()
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in self.changes:
            if source.count(old) != 1:
                raise Stale(f"{self.where} has {source.count(old)} times {old!r}, which should be there once")
            source = source.replace(old, new)
        tree = ast.parse(source)
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        definition.decorator_list = []
        # The code object alone: whoever holds the function, under whatever name, has the bug.
        module = compile(tree, f"<bug in {self.where}>", "exec", __future__.annotations.compiler_flag)
        code = next(c for c in module.co_consts if isinstance(c, CodeType) and c.co_name == function.__name__)
        if code.co_freevars != function.__code__.co_freevars:
            raise Stale(f"{self.where} is a closure, which cannot be changed in place")
        return code


@dataclass(frozen=True)
class Bug:
    """One thing that could be wrong with the guarantee.

    Attributes:
        name: What it is called, also on the command line.
        story: What somebody wrote, and what it does.
        edits: What is changed.
        caught_by: The tests that must fail, all of them; ``file::name`` without parameters.
        harmless: It is no bug at all, and the tests must stay green.
    """

    name: str
    story: str
    edits: tuple[Edit, ...]
    caught_by: tuple[str, ...]
    harmless: bool = False

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant the bug inside the block, and take it out after it."""
        changed = [(edit.function(), edit.code()) for edit in self.edits]
        before = [(function, function.__code__) for function, _ in changed]
        try:
            for function, code in changed:
                function.__code__ = code
            yield
        finally:
            for function, code in before:
                function.__code__ = code


def bug(name: str, story: str, where: str, old: str, new: str, *caught_by: str) -> Bug:
    """Return a bug of one change."""
    return bugs(name, story, [(where, old, new)], *caught_by)


def bugs(
    name: str, story: str, changes: Sequence[tuple[str, str, str]], *caught_by: str, harmless: bool = False
) -> Bug:
    """Return a bug of several changes, each (where, old, new)."""
    by_place: dict[str, list[tuple[str, str]]] = {}
    for where, old, new in changes:
        by_place.setdefault(where, []).append((old, new))
    edits = tuple(Edit(where, tuple(texts)) for where, texts in by_place.items())
    return Bug(name, story, edits, caught_by, harmless)
