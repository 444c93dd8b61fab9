"""Imported by the process that runs are forked from: one run, so that everything is imported and computed before."""

from __future__ import annotations

import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import torch

import dptrain
from dptrain.ledger import BudgetLedger
from dptrain.statement.facts import claim_of

from ..conftest import dataset_maker
from .process import PLAN, options

torch.set_num_threads(1)  # a pool of threads does not survive a fork
BudgetLedger.refresh_pld = lambda self, name: None  # type: ignore[method-assign]  # takes seconds, and decides nothing
for steps in range(PLAN.steps + 1):
    claim_of(PLAN, steps)
with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
    dptrain.train(**options(Path(name), Path(name) / "out", dataset_maker(Path(name))()))
