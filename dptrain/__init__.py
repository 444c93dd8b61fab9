"""Train Ultralytics YOLO detectors with differential privacy, and prove what is promised."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Asked of Intel's library before it is first used: else what it makes of a matrix depends on where in memory it lies.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from . import detection
    from .audit import AuditResult, audit_training
    from .checking import CheckReport, check
    from .clip_settings import Clipping
    from .clipping import FlatClip
    from .errors import (
        BudgetError,
        ConfigError,
        DataError,
        DptrainError,
        ModelError,
        PrivacyError,
        SealError,
        TrackingError,
    )
    from .gradients import UnitBatch, check_independence, clipped_gradient_sum, per_sample_gradients
    from .ledger import BudgetLedger
    from .perturbation import evaluate_perturbed, export_perturbed
    from .plan import PrivacyPlan
    from .planning import plan_grid
    from .pretraining.run import PretrainResult, pretrain
    from .redaction import redact
    from .run import TrainResult, train
    from .scrubbing import ScrubReport, scrub
    from .sealing import seal, unseal

__version__ = "0.1.0"

# Resolved on first use: `import dptrain` and the command's --help need neither torch nor Ultralytics.
_HOME = {
    "AuditResult": "audit",
    "BudgetError": "errors",
    "BudgetLedger": "ledger",
    "CheckReport": "checking",
    "Clipping": "clip_settings",
    "ConfigError": "errors",
    "DataError": "errors",
    "DptrainError": "errors",
    "FlatClip": "clipping",
    "ModelError": "errors",
    "PretrainResult": "pretraining.run",
    "PrivacyError": "errors",
    "PrivacyPlan": "plan",
    "ScrubReport": "scrubbing",
    "SealError": "errors",
    "TrackingError": "errors",
    "TrainResult": "run",
    "UnitBatch": "gradients",
    "audit_training": "audit",
    "check": "checking",
    "check_independence": "gradients",
    "clipped_gradient_sum": "gradients",
    "detection": "",
    "evaluate_perturbed": "perturbation",
    "export_perturbed": "perturbation",
    "per_sample_gradients": "gradients",
    "plan_grid": "planning",
    "pretrain": "pretraining.run",
    "redact": "redaction",
    "scrub": "scrubbing",
    "seal": "sealing",
    "train": "run",
    "unseal": "sealing",
}

__all__ = [
    "AuditResult",
    "BudgetError",
    "BudgetLedger",
    "CheckReport",
    "Clipping",
    "ConfigError",
    "DataError",
    "DptrainError",
    "FlatClip",
    "ModelError",
    "PretrainResult",
    "PrivacyError",
    "PrivacyPlan",
    "ScrubReport",
    "SealError",
    "TrackingError",
    "TrainResult",
    "UnitBatch",
    "audit_training",
    "check",
    "check_independence",
    "clipped_gradient_sum",
    "detection",
    "evaluate_perturbed",
    "export_perturbed",
    "per_sample_gradients",
    "plan_grid",
    "pretrain",
    "redact",
    "scrub",
    "seal",
    "train",
    "unseal",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'dptrain' has no attribute {name!r}")
    home = _HOME[name]
    return getattr(import_module(f".{home}", __name__), name) if home else import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted(__all__)
