"""What the environment says: addresses that a team sets once, where Ultralytics keeps its files, and whether it is
offline. Every command and ``dptrain.train`` take the addresses in one order.

What is given on the command line, in a configuration or as an argument comes first, then the variable, then the
default.
A variable that is set and empty counts as not set, as it does for MLflow.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

LEDGER = "sqlite:///budget.db"
STORE = "sqlite:///mlflow.db"
EXPERIMENT = "dptrain"
_OFFLINE, _BY_DPTRAIN = "YOLO_OFFLINE", "DPTRAIN_SET_YOLO_OFFLINE"


def ledger_address(given: str | None = None) -> str:
    """The ledger: what was given, else ``DPTRAIN_BUDGET_URL``, else ``budget.db`` in the working directory."""
    return given if given is not None else os.environ.get("DPTRAIN_BUDGET_URL") or LEDGER


def tracking_address(given: str | None = None) -> str:
    """The MLflow store: what was given, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working directory."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or STORE


def experiment_name(given: str | None = None, default: str = EXPERIMENT) -> str:
    """The MLflow experiment: what was given, else ``MLFLOW_EXPERIMENT_NAME``, else ``default``."""
    return given or os.environ.get("MLFLOW_EXPERIMENT_NAME") or default


def ultralytics_folder(kind: str) -> Path:
    """Return the ``datasets`` or ``weights`` folder of Ultralytics' settings; before there are any, what they will say.

    Its settings file is read, not written, and Ultralytics is not imported.
    """
    base = os.environ.get("YOLO_CONFIG_DIR")
    if base is None and sys.platform == "darwin":
        base = "~/Library/Application Support"
    settings = Path(base or os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "Ultralytics/settings.json"
    try:
        return Path(json.loads(settings.read_text(encoding="utf-8"))[f"{kind}_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return Path(kind).absolute()


def keep_ultralytics_offline() -> None:
    """Forbid Ultralytics the network, here and in processes that this one starts, unless the variable is set."""
    if _OFFLINE not in os.environ:
        os.environ[_OFFLINE] = os.environ[_BY_DPTRAIN] = "true"


def is_offline() -> bool:
    """Whether ``YOLO_OFFLINE`` was set by somebody else than :func:`keep_ultralytics_offline`, and to true."""
    value = os.environ.get(_OFFLINE, "").strip().lower()
    return value in ("1", "true", "yes", "on", "y", "t") and _BY_DPTRAIN not in os.environ
