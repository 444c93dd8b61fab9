"""Twenty audits of correct runs: does the bound ever pass the claim, and how near does it come?

    python -m experiments.audits            # 20 white-box audits of epsilon 8, five minutes of one core
    python -m experiments.audits 40         # more of them

Each trains by a plan of epsilon 8 at delta 1e-5, with noise from the operating system; rate, steps, canaries and
guesses were chosen by simulation of the Gaussian mechanism, before any of these runs. The bound of a correct run may
exceed the claim with chance 5 %. Writes experiments/results/audits.json. No image of anybody is used.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dptrain.audit import audit_training, default_plan
from dptrain.audit.result import AuditResult
from experiments.sweep import machine

RESULTS = Path(__file__).resolve().parent / "results" / "audits.json"
SIZES: dict[str, Any] = {"epsilon": 8.0, "sample_rate": 0.9, "steps": 10, "canaries": 6000}
GUESSES = 600


def row(result: AuditResult, seconds: float) -> dict[str, Any]:
    """What one audit found."""
    assert result.measured is not None
    kept = ("epsilon_lower_bound", "test", "bounds", "confidence", "guesses", "correct", "verdict", "faults")
    found = result.as_dict()
    return {
        **{name: found[name] for name in (*kept, "true_positive_rates")},
        "measured": asdict(result.measured),
        "seconds": round(seconds, 1),
    }


def main(times: int = 20) -> None:
    """Make the audits, one after the other, and write after each."""
    plan = default_plan(**SIZES)
    audits: list[dict[str, Any]] = []
    for _ in range(times):
        start = time.perf_counter()
        result = audit_training(plan, canaries=SIZES["canaries"], guesses=GUESSES)
        audits.append(row(result, time.perf_counter() - start))
        bounds = [audit["epsilon_lower_bound"] for audit in audits]
        facts = {
            "claim": {"rdp": plan.epsilon(), "pld": plan.epsilon("pld"), "delta": plan.delta},
            "plan": asdict(plan),
            "canaries": SIZES["canaries"],
            "above_the_claim": sum(bound > plan.epsilon() for bound in bounds),
            "lowest": min(bounds),
            "mean": sum(bounds) / len(bounds),
            "highest": max(bounds),
            "audits": audits,
            "machine": machine(),
        }
        RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{len(audits)} of {times}: at least {bounds[-1]:.3f}, {audits[-1]['verdict']}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
