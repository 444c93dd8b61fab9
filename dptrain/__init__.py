"""Train Ultralytics YOLO detectors with differential privacy, and prove what is promised."""

from __future__ import annotations

import os
from ast import ImportFrom, parse
from importlib import import_module
from pathlib import Path
from typing import Any

# Asked of Intel's library before it is first used: else what it makes of a matrix depends on where in memory it lies.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__version__ = "0.1.0"

# The public names are said once, in the stub. A name is imported at its first use: `import dptrain` and the command's
# --help need neither torch nor Ultralytics.
_STUB = parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOME = {name.name: line.module for line in _STUB.body if isinstance(line, ImportFrom) for name in line.names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dptrain' has no attribute {name!r}")
    home = _HOME[name]
    return getattr(import_module(f".{home}", __name__), name) if home else import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return __all__
