"""People, faces, plates and fixed regions are taken out of pictures before storage. Not differential privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import Box, RedactionSettings, Region

if TYPE_CHECKING:
    from .report import FileReport, RedactionReport
    from .run import redact

__all__ = ["Box", "FileReport", "RedactionReport", "RedactionSettings", "Region", "redact"]

# Settings are checked without torch; the rest is loaded on first use.
_HOME = {"FileReport": "report", "RedactionReport": "report", "redact": "run"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'dptrain.toolbox.redaction' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
