"""Addresses that a team sets once, in the environment. Every command and ``dptrain.train`` take them in one order.

What is given on the command line, in a configuration or as an argument comes first, then the variable, then the
default.
A variable that is set and empty counts as not set, as it does for MLflow.
"""

from __future__ import annotations

import os

LEDGER = "sqlite:///budget.db"
STORE = "sqlite:///mlflow.db"
EXPERIMENT = "dptrain"


def ledger_address(given: str | None = None) -> str:
    """The ledger: what was given, else ``DPTRAIN_BUDGET_URL``, else ``budget.db`` in the working directory."""
    return given if given is not None else os.environ.get("DPTRAIN_BUDGET_URL") or LEDGER


def tracking_address(given: str | None = None) -> str:
    """The MLflow store: what was given, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working directory."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or STORE


def experiment_name(given: str | None = None, default: str = EXPERIMENT) -> str:
    """The MLflow experiment: what was given, else ``MLFLOW_EXPERIMENT_NAME``, else ``default``."""
    return given or os.environ.get("MLFLOW_EXPERIMENT_NAME") or default
