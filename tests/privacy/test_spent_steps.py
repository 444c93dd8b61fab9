"""What a run claims and is charged, however it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dptrain
from dptrain import BudgetLedger, PrivacyPlan
from dptrain.detection.model import save_weights
from dptrain.run.job import Run

from .datasets import detector, write_neighbours

PLAN = PrivacyPlan(0.5, 6, 2.0, 1.0, 1e-3, 2)


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    data = write_neighbours(tmp_path / "data", ["ordinary", "one box"], "no boxes", 2).larger
    return {
        "model": str(save_weights(detector("end2end group", tmp_path), tmp_path / "start.pt")), "data": str(data),
        "imgsz": 32, "plan": PLAN, "validation": "off", "workers": 0, "evaluate_every": 2, "physical_batch_size": 2,
        "output_dir": str(tmp_path / "out"), "tracking": {"enabled": False}, **changes,
    }  # fmt: skip


def test_a_run_that_fails_is_charged_the_steps_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint is on the disk, whatever the error was."""
    url = f"sqlite:///{tmp_path / 'budget.db'}"
    real = Run._checkpoint

    def fail(self: Run) -> None:
        real(self)
        if self.trainer.step == 4:
            raise OSError("disk gone")

    monkeypatch.setattr(Run, "_checkpoint", fail)
    with pytest.raises(OSError, match="disk gone"):
        dptrain.train(**options(tmp_path, budget={"url": url}))
    (reading,) = BudgetLedger(url).show()
    assert reading.epsilon_charged == pytest.approx(PLAN.epsilon(steps=4))


def test_a_seeded_run_states_no_guarantee(tmp_path: Path) -> None:
    result = dptrain.train(**options(tmp_path, seed=1, budget={"url": None}))
    assert result.statement["valid"] is False
    assert result.statement["mechanism"]["rng_mode"] == "seeded"
