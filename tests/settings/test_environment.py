"""An address that a team has set once reaches every command; one that is given where it is needed comes first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import dptrain
from dptrain.commands.main import _parser, main
from dptrain.run.sweep.hydra_app import run_hydra
from dptrain.settings.resolve import from_kwargs, resolve
from dptrain.settings.schema import TrainConfig

from ..ledger.pictures import pictures

STORE, EXPERIMENT = "sqlite:///team.db", "team"


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from commands(inner)


def test_no_command_has_an_address_of_its_own_that_hides_the_environments() -> None:
    found = {
        (parser.prog, action.dest): action.default
        for parser in commands(_parser())
        for action in parser._actions
        if action.dest in ("url", "key", "tracking_uri", "experiment")
    }
    assert len(found) > 20 and set(found.values()) == {None}


def test_a_plan_for_a_budget_asks_the_ledger_that_trainings_are_charged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'team.db'}"
    monkeypatch.setenv("DPTRAIN_BUDGET_URL", url)
    monkeypatch.chdir(tmp_path)
    ledger = dptrain.BudgetLedger()
    assert ledger.address == url
    ledger.create("clinic", epsilon=3.0, delta=1e-5, manifest=pictures(ledger, range(9)))
    assert main(["plan", "--dataset-size", "900", "--budget", "clinic", "--steps", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["epsilon"] == 3.0
    assert main(["plan", "--dataset-size", "900", "--budget", "clinic", "--url", "sqlite:///own.db"]) == 2
    assert not (tmp_path / "own.db").exists() and not (tmp_path / "budget.db").exists()


@pytest.mark.parametrize(
    ("given", "uri", "experiment"),
    [
        ([], STORE, EXPERIMENT),
        (["tracking.uri=sqlite:///own.db"], "sqlite:///own.db", EXPERIMENT),
        (["tracking.experiment=own"], STORE, "own"),
        (["tracking=sqlite"], "sqlite:///mlflow.db", EXPERIMENT),
        (["tracking=server"], STORE, EXPERIMENT),
    ],
)
def test_mlflows_variables_are_heeded_unless_a_store_is_given(
    given: list[str], uri: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", STORE)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    seen: list[TrainConfig] = []
    run_hydra(["model=a.pt", "data=b.yaml", *given], lambda config: seen.append(resolve(config)), lambda *_: None)
    assert (seen[0].tracking.uri, seen[0].tracking.experiment) == (uri, experiment)


def test_python_heeds_them_too_and_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(**options: object) -> TrainConfig:
        return resolve(from_kwargs(model="a.pt", data="b.yaml", **options))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", STORE)
    assert resolved().tracking.uri == STORE
    assert resolved(tracking={"uri": "sqlite:///own.db"}).tracking.uri == "sqlite:///own.db"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DPTRAIN_BUDGET_URL"):
        monkeypatch.setenv(name, "")
    config = resolved()
    assert (config.tracking.uri, config.tracking.experiment) == ("sqlite:///mlflow.db", "dptrain")
    assert config.budget.url == "sqlite:///budget.db"
