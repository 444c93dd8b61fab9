"""Whole runs with a clip rule and an accountant from outside: what is stated, and who can read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dptrain
from dptrain import Clipping, ConfigError, PrivacyPlan
from dptrain.privacy import accounting, outside_accountant, outside_clip
from dptrain.statement.check import check_statement

from ..conftest import MakeDataset, run_options
from ..privacy.test_outside_clip import Smooth

PLAN = PrivacyPlan(0.5, 2, 1.0, 1.0, 1e-3, 3)


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(outside_clip, "_MAKERS", {})
    monkeypatch.setattr(outside_accountant, "_ACCOUNTANTS", {})
    for cache in (outside_clip.held_rule, accounting.dp_sgd_epsilon):
        cache.cache_clear()
    yield
    for cache in (outside_clip.held_rule, accounting.dp_sgd_epsilon):
        cache.cache_clear()


def test_a_run_states_an_outside_rule_and_claims_rdp_whatever_is_registered(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    plan = dataclasses.replace(PLAN, clipping=Clipping("acme.smooth"))
    given: dict[str, Any] = {
        "data": make_dataset(),
        "budget": {"url": f"sqlite:///{tmp_path / 'budget.db'}"},
        "tracking": {"enabled": False},
    }
    with pytest.raises(ConfigError, match=r"privacy\.clipping='acme\.smooth' is not registered in this process"):
        dptrain.train(**run_options(tmp_path, plan=plan, **given))
    assert not (tmp_path / "out").exists()

    dptrain.register_clip_rule("acme.smooth")(Smooth)
    dptrain.register_accountant("generous")(lambda event, delta: 0.0)
    assert plan.epsilon("generous") == 0.0
    result = dptrain.train(**run_options(tmp_path, plan=plan, **given))
    assert result.epsilon == PLAN.epsilon()
    assert "generous" not in (result.output_dir / "statement.json").read_text()
    mechanism = result.statement["mechanism"]
    assert mechanism["clip_rule"]["name"] == "acme.smooth"
    assert "not one of dptrain's own rules" in mechanism["clipping"]
    assert "not one of dptrain's own rules" in (result.output_dir / "statement.md").read_text()

    outside_clip._MAKERS.clear()
    outside_clip.held_rule.cache_clear()
    assert check_statement(result.output_dir).statement["guarantee"]["epsilon"] == PLAN.epsilon()
