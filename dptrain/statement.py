"""What was promised, to whom, under which assumptions: facts of the run, not typed in by hand."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import accounting
from .plan import PrivacyPlan

STATEMENT_FORMAT = 1
_PACKAGES = ("dptrain", "torch", "ultralytics", "dp-accounting", "opacus", "numpy")

RELEASED = (
    "the weights of the last iterate and of the moving average",
    "every iterate at which the run was evaluated, through its metrics on the validation split",
    "the settings in config.yaml, among them the declared dataset size",
)
ASSUMPTIONS = (
    "The declared constants (dataset size, expected batch size, sample rate, delta, image size, names) are public.",
    "The start weights were made from data that is public or shares no unit with the training split.",
    "One person's data is in one unit: a person in several images has a guarantee that weakens with their number.",
    "The adversary sees everything released and every iterate, and not the memory, the timing or the crashes of the "
    "training machine.",
    "The noise is Gaussian up to the rounding of floating-point numbers.",
)


def make_statement(
    plan: PrivacyPlan,
    *,
    steps: int,
    status: str,
    secure: bool,
    dataset: Mapping[str, Any],
    model: Mapping[str, Any],
    validation: str,
    deviations: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the privacy statement of a run as a plain dictionary.

    Args:
        plan: What was planned.
        steps: Noised steps that were started, also those that a crash lost.
        status: ``running``, ``stopped`` or ``finished``.
        secure: Whether noise and sampling came from the operating system's entropy.
        dataset: Its public facts: name, declared size.
        model: Its public facts: description, start weights and their hash, trainable parameters, norm.
        validation: What was declared of the validation split.
        deviations: What a reader must know that the defaults do not say.
    """
    void = () if secure else ("VOID: a seed was set, so the noise can be predicted and nothing is protected.",)
    orders = accounting.rdp_curve(plan.event(steps)) if steps else {}
    curve = {str(order): bound for order, bound in orders.items() if math.isfinite(bound)}  # JSON has no infinity
    return {
        "format": STATEMENT_FORMAT,
        "status": status,
        "valid": secure,
        "guarantee": {
            "epsilon": plan.epsilon(steps=steps),
            "epsilon_pld": plan.epsilon("pld", steps=steps),
            "delta": plan.delta,
            "unit": plan.unit,
            "neighbouring_relation": "add or remove one unit",
            "setting": "central: the trainer is trusted with the data; whoever receives what is released is not",
        },
        "mechanism": {
            "name": "DP-SGD (Abadi et al. 2016, algorithm 1)",
            "sampling": "Poisson",
            "sample_rate": plan.sample_rate,
            "steps": steps,
            "planned_steps": plan.steps,
            "noise_multiplier": plan.noise_multiplier,
            "clipping": "flat, on the whole gradient of a unit",
            "clip_norm": plan.clip_norm,
            "expected_batch_size": plan.expected_batch_size,
            "noise": "AES-256-CTR from operating system entropy" if secure else "seeded, for tests",
        },
        "accounting": {
            "headline": "RDP",
            "tighter_reading": "PLD",
            "library": f"dp-accounting {_version('dp-accounting')}",
            "rdp_curve": curve,
        },
        "dataset": dict(dataset),
        "model": dict(model),
        "validation": validation,
        "released": list(RELEASED),
        "assumptions": list(ASSUMPTIONS),
        "deviations": [*void, *deviations],
        "versions": {**{name: _version(name) for name in _PACKAGES}, "python": platform.python_version()},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def to_json(statement: Mapping[str, Any]) -> str:
    """Return the statement as JSON."""
    return json.dumps(statement, indent=2, sort_keys=False) + "\n"


def to_markdown(statement: Mapping[str, Any]) -> str:
    """Return the statement as a page that a person reads; the RDP curve stays in the JSON."""
    guarantee, mechanism = statement["guarantee"], statement["mechanism"]
    lines = [
        "# Privacy statement",
        "",
        f"**({guarantee['epsilon']:.4g}, {guarantee['delta']:.3g})-differential privacy** (RDP; by PLD epsilon is "
        f"{guarantee['epsilon_pld']:.4g}) for {guarantee['neighbouring_relation']}, where a unit is one "
        f"{guarantee['unit']}. Status of the run: {statement['status']}.",
        "",
    ]
    lines += [f"> {deviation}" for deviation in statement["deviations"]]
    lines += [""] if statement["deviations"] else []
    rows = {
        "Setting": guarantee["setting"],
        "Mechanism": mechanism["name"],
        "Sampling": f"{mechanism['sampling']}, rate {mechanism['sample_rate']:.6g}",
        "Steps": f"{mechanism['steps']} of {mechanism['planned_steps']} planned",
        "Noise multiplier": mechanism["noise_multiplier"],
        "Clipping": f"{mechanism['clipping']}, norm {mechanism['clip_norm']}",
        "Expected batch size": mechanism["expected_batch_size"],
        "Noise": mechanism["noise"],
        "Accountant": f"{statement['accounting']['headline']}, {statement['accounting']['library']}",
        "Dataset": _facts(statement["dataset"]),
        "Model": _facts(statement["model"]),
        "Validation split": statement["validation"],
    }
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items()), ""]
    for title, key in (("What is released", "released"), ("Assumptions", "assumptions")):
        lines += [f"## {title}", "", *(f"- {item}" for item in statement[key]), ""]
    versions = ", ".join(f"{name} {number}" for name, number in statement["versions"].items())
    return "\n".join([*lines, f"Made by dptrain from the run's own facts. Versions: {versions}.", ""])


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items() if value is not None)
