"""Train Ultralytics YOLO detectors with differential privacy, and prove what is promised."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Asked of Intel's library before it is first used: else what it makes of a matrix depends on where in memory it lies.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from . import detection
    from .audit import AuditResult, audit_training
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
    from .privacy.clipping import Clipping, FlatClip
    from .privacy.plan import PrivacyPlan
    from .privacy.planning import plan_grid
    from .run.job import TrainResult
    from .run.pretraining.run import PretrainResult, pretrain
    from .run.train import train
    from .toolbox.checking import CheckReport, check
    from .toolbox.perturbation import evaluate_perturbed, export_perturbed
    from .toolbox.redaction import redact
    from .toolbox.scrubbing import ScrubReport, scrub
    from .toolbox.seal import seal, unseal
    from .training.trainer import clipped_sum

__version__ = "0.1.0"

# Resolved on first use: `import dptrain` and the command's --help need neither torch nor Ultralytics.
_HOME = {
    "AuditResult": "audit",
    "BudgetError": "errors",
    "BudgetLedger": "ledger",
    "CheckReport": "toolbox.checking",
    "Clipping": "privacy.clipping",
    "ConfigError": "errors",
    "DataError": "errors",
    "DptrainError": "errors",
    "FlatClip": "privacy.clipping",
    "ModelError": "errors",
    "PretrainResult": "run.pretraining.run",
    "PrivacyError": "errors",
    "PrivacyPlan": "privacy.plan",
    "ScrubReport": "toolbox.scrubbing",
    "SealError": "errors",
    "TrackingError": "errors",
    "TrainResult": "run.job",
    "UnitBatch": "gradients",
    "audit_training": "audit",
    "check": "toolbox.checking",
    "check_independence": "gradients",
    "clipped_gradient_sum": "gradients",
    "clipped_sum": "training.trainer",
    "detection": "",
    "evaluate_perturbed": "toolbox.perturbation",
    "export_perturbed": "toolbox.perturbation",
    "per_sample_gradients": "gradients",
    "plan_grid": "privacy.planning",
    "pretrain": "run.pretraining.run",
    "redact": "toolbox.redaction",
    "scrub": "toolbox.scrubbing",
    "seal": "toolbox.seal",
    "train": "run.train",
    "unseal": "toolbox.seal",
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
    "clipped_sum",
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
