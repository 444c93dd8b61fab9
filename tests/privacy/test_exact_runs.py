"""Exact noise from the settings to the weights: by the command and by Python, and what it does not go with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dptrain
from dptrain import ConfigError, PrivacyError
from dptrain.commands.main import main
from dptrain.privacy import noise
from dptrain.privacy.exact import SENSITIVITY
from dptrain.privacy.noise import privatize
from dptrain.statement import check_statement, make_statement

from .test_spent_steps import PLAN, options

EXACT = {"noise": {"exact": True}, "budget": {"url": None}}


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What goes through the one door, and what comes out."""
    seen: list[dict[str, Any]] = []

    def watched(value: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
        noised = privatize(value, **how)
        seen.append({"in": value, "out": noised, **how})
        return noised

    monkeypatch.setattr(noise, "privatize", watched)
    return seen


def check_run(seen: list[dict[str, Any]], folder: Path, steps: int) -> None:
    """Every step went through in whole numbers, with noise of the plan's size, and the statement says so."""
    assert len(seen) == steps
    for step in seen:
        assert all(tensor.dtype == torch.int64 for side in ("in", "out") for tensor in step[side].values())
        assert step["sensitivity"] == SENSITIVITY and step["noise_multiplier"] == PLAN.noise_multiplier
        added = torch.cat([(step["out"][name] - tensor).flatten() for name, tensor in step["in"].items()])
        assert float(added.double().std()) == pytest.approx(PLAN.noise_multiplier * SENSITIVITY, rel=0.1)
    statement = json.loads((folder / "statement.json").read_text())
    assert statement["training"]["exact_noise"] is True and statement["valid"] is True
    assert statement["guarantee"]["epsilon"] == PLAN.epsilon(steps=steps)
    for text in (*statement["assumptions"], (folder / "statement.md").read_text()):
        assert "rounding of floating-point" not in text
    assert "discrete Gaussian" in (folder / "statement.md").read_text()
    assert check_statement(folder).statement["training"]["exact_noise"] is True


def test_a_run_by_the_command_adds_exact_noise_and_says_so(tmp_path: Path, door: list[dict[str, Any]]) -> None:
    given = options(tmp_path)
    command = [
        "train", f"model={given['model']}", f"data={given['data']}", "imgsz=32", "validation=off", "workers=0",
        "physical_batch_size=2", "steps=3", f"privacy.noise_multiplier={PLAN.noise_multiplier}",
        f"privacy.sample_rate={PLAN.sample_rate}", f"privacy.delta={PLAN.delta}",
        f"privacy.expected_batch_size={PLAN.expected_batch_size}", "tracking.enabled=false", "budget.url=null",
        f"output_dir={given['output_dir']}", "noise.exact=true",
    ]  # fmt: skip
    assert main(command) == 0
    check_run(door, tmp_path / "out", 3)


def test_a_run_from_python_does_and_goes_on_only_as_it_began(
    tmp_path: Path, door: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any) -> None:
        raise OSError("power gone")

    with monkeypatch.context() as patch:
        patch.setattr("dptrain.run.job.Run._finish", cut)
        with pytest.raises(OSError, match="power gone"):
            dptrain.train(**options(tmp_path, **EXACT))
    with pytest.raises(PrivacyError, match=r"noise\.exact"):
        dptrain.train(**options(tmp_path, **EXACT | {"noise": {"exact": False}}, resume=True))
    dptrain.train(**options(tmp_path, **EXACT, resume=True))
    check_run(door, tmp_path / "out", PLAN.steps)


def test_a_statement_of_a_run_without_it_says_that_the_noise_is_rounded() -> None:
    known = {"secure": True, "dataset": {}, "model": {}, "validation": "off", "training": {"exact_noise": False}}
    statement = make_statement(PLAN, steps=2, status="finished", **known)  # type: ignore[arg-type]
    assert any("rounding of floating-point" in text for text in statement["assumptions"])
    assert not any("discrete Gaussian" in text for text in statement["assumptions"])


@pytest.mark.parametrize("how", [{}, EXACT])
def test_a_device_without_double_precision_is_refused_before_anything_is_written(
    how: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"device=mps: .*double precision.*use device=cpu"):
        dptrain.train(**options(tmp_path, **how, device="mps"))
    assert not (tmp_path / "out").exists()
