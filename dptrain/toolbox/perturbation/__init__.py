"""Pictures made worse on purpose: to test a detector's robustness, or to prepare data. Not differential privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .epsilon import input_noise, local_epsilon, needed_level

if TYPE_CHECKING:
    from .evaluate import evaluate_perturbed
    from .export import Export, export_perturbed
    from .result import PerturbationResult

__all__ = [
    "Export",
    "PerturbationResult",
    "evaluate_perturbed",
    "export_perturbed",
    "input_noise",
    "local_epsilon",
    "needed_level",
]

# Epsilons are computed without torch; the rest is loaded on first use.
_HOME = {
    "Export": "export",
    "PerturbationResult": "evaluate",
    "evaluate_perturbed": "evaluate",
    "export_perturbed": "export",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'dptrain.toolbox.perturbation' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
