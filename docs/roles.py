"""Docstrings on the site: a Sphinx role such as ``:class:`~dptrain.PrivacyPlan``` becomes the name in code style."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")


def _name(match: re.Match[str]) -> str:
    short, name = match.groups()
    return f"`{name.rpartition('.')[2] if short else name}`"


class Roles(griffe.Extension):
    """Rewrites the docstring of everything that the site shows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Take the roles out of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_name, obj.docstring.value)
