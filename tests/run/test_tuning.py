"""Random stopping: what it costs, that only the winner is ever seen, and what does not qualify."""

from __future__ import annotations

import collections
import csv
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import dp_accounting as dp
import pytest
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant
from mlflow.tracking import MlflowClient

from dptrain import ConfigError, PrivacyError
from dptrain.privacy import random_stopping
from dptrain.privacy.random_stopping import RANDOM_STOPPING
from dptrain.run.tuning import draw_runs, plan_tuning, tune
from dptrain.settings.resolve import from_kwargs, resolve
from dptrain.settings.schema import TrainConfig
from dptrain.statement import check_statement

from ..conftest import SMALL, dataset_maker

SEARCH = {"optimizer.lr": [1e-3, 3e-3, 1e-2]}


def config(tmp_path: Path, search: Any = None, **changes: Any) -> TrainConfig:
    space = SEARCH if search is None else search
    tuning = {"method": "random_stopping", "mean_runs": 5.0, "search": space, **changes.pop("tuning", {})}
    values = {
        "model": SMALL,
        "data": str(tmp_path / "data.yaml"),
        "imgsz": 32,
        "trainable": "head",
        "workers": 0,
        "steps": 1,
        "privacy": {"noise_multiplier": 4.0, "sample_rate": 0.5, "expected_batch_size": 3, "delta": 1e-3},
        "output_dir": str(tmp_path / "out"),
        "tracking": {"enabled": False},
        **changes,
    }
    return resolve(from_kwargs(**values, tuning=tuning))


# The price


@pytest.mark.parametrize("distribution", RANDOM_STOPPING)
def test_the_price_is_papernot_and_steinkes(distribution: str, tmp_path: Path) -> None:
    tuning = plan_tuning(config(tmp_path, tuning={"distribution": distribution}))
    step = dp.PoissonSampledDpEvent(0.5, dp.GaussianDpEvent(4.0))
    event = RepeatAndSelectDpEvent(dp.SelfComposedDpEvent(step, 1), 5.0, RANDOM_STOPPING[distribution])
    account = RdpAccountant(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE).compose(event)
    assert tuning.epsilon == pytest.approx(account.get_epsilon(1e-3), rel=1e-9)
    assert tuning.epsilon > tuning.plan.epsilon()


@pytest.mark.parametrize("distribution", RANDOM_STOPPING)
def test_the_number_of_runs_follows_the_distribution_that_is_accounted(distribution: str) -> None:
    random, mean, count = Random(0), 5.0, 40_000
    drawn = collections.Counter(draw_runs(distribution, mean, random) for _ in range(count))
    if distribution == "poisson":
        expected = {k: math.exp(-mean) * mean**k / math.factorial(k) for k in range(40)}
    elif distribution == "geometric":
        expected = {k: 0.8 ** (k - 1) * 0.2 for k in range(1, 120)}
    else:  # definition 1 of the paper with shape 0, whose mean is (1/gamma - 1) / ln(1/gamma)
        gamma = random_stopping._logarithmic_gamma(mean)
        assert (1 / gamma - 1) / math.log(1 / gamma) == pytest.approx(mean, rel=1e-6)
        expected = {k: (1 - gamma) ** k / (k * math.log(1 / gamma)) for k in range(1, 400)}
    assert sum(expected.values()) == pytest.approx(1, abs=1e-6)
    for runs, chance in expected.items():
        assert abs(drawn[runs] / count - chance) < 5 * math.sqrt(chance / count) + 1e-3, runs
    assert sum(k * n for k, n in drawn.items()) / count == pytest.approx(mean, rel=0.05)


# What does not qualify


@pytest.mark.parametrize(
    ("search", "changes", "expected"),
    [
        ({}, {}, "tuning.search is empty"),
        ({"optimizer.lr": 1e-3}, {}, "give a list of values"),
        ({"privacy.noise_multiplier": [1.0, 2.0]}, {}, "it changes what a run costs"),
        ({"steps": [1, 2]}, {}, "it changes what a run costs"),
        ({"optimizer.lrr": [1.0]}, {}, "unknown key optimizer.lrr; did you mean optimizer.lr?"),
        ({"output_dir": ["a"]}, {}, "output_dir cannot be searched"),
        ({"optimizer.lr": [-1.0]}, {}, "optimizer.lr=-1.0 must be"),
        ({"privacy.clipping": ["flat", "scaled"]}, {}, "privacy.clipping=scaled needs privacy.clip_scales"),
        (None, {"validation": "off"}, "the score that picks the winner must be computed on public images"),
        (None, {"seed": 3}, "every run would draw the same noise"),
        (None, {"resume": True}, "a tuning cannot be resumed"),
        (None, {"tuning": {"distribution": "fixed"}}, "a fixed number does not qualify"),
        (None, {"tuning": {"mean_runs": 1.0}}, "tuning.mean_runs=1.0 must be more than 1"),
        (None, {"tuning": {"method": "grid"}}, "tuning.method=grid is not one of none, random_stopping"),
    ],
)
def test_what_the_bound_does_not_cover_is_refused(
    search: Any, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        tune(config(tmp_path, search, **changes))
    assert expected in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_candidate_that_could_not_start_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    """The second one trains no such layer; a run of the first would pay for all."""
    (tmp_path / "public").mkdir()
    public = dataset_maker(tmp_path / "public")(seed=9)
    ledger = {"url": f"sqlite:///{tmp_path / 'budget.db'}"}
    privacy = {
        "noise_multiplier": 4.0, "sample_rate": 0.5, "expected_batch_size": 3, "delta": 1e-3,
        "clipping": "scaled", "clip_scales": str(public),
    }  # fmt: skip
    dataset_maker(tmp_path)(train=4, val=2)
    with pytest.raises(ConfigError, match=r"model\.99"):
        tune(config(tmp_path, {"trainable": ["head", ["model.99.*"]]}, budget=ledger, privacy=privacy))
    assert not (tmp_path / "out").exists() and not (tmp_path / "budget.db").exists()


def test_without_a_val_split_nothing_starts(tmp_path: Path) -> None:
    dataset_maker(tmp_path)(train=3, val=1)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [green, blue]\n")
    with pytest.raises(ConfigError, match="has no val split, and the winner is picked by its score there"):
        tune(config(tmp_path))


def test_candidates_that_cost_the_same_may_differ_in_clip_norm(tmp_path: Path) -> None:
    tuning = plan_tuning(config(tmp_path, {"privacy.clip_norm": [0.5, 2.0], "ema.decay": [0.0, 0.9]}))
    assert [(c.privacy.clip_norm, c.ema.decay) for c in tuning.candidates] == [(0.5, 0), (0.5, 0.9), (2, 0), (2, 0.9)]


# What is seen


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Real runs on a tiny dataset, whose scores are replaced: run n gets ``n`` of the list; None diverges."""
    dataset_maker(tmp_path)(train=3, val=1)
    scores: list[float] = []
    import dptrain.run.job

    real = dptrain.run.job.Run.execute

    def execute(run: Any) -> Any:
        result = real(run)
        print("a loser's line")
        dptrain.run.tuning.logger.warning("a loser's warning")
        value = scores.pop(0)
        if value is None:
            raise PrivacyError("the weights are no longer finite")
        (run.output / "note").write_text(str(value))
        return type(result)(**{**vars(result), "metrics": {**result.metrics, dptrain.run.tuning.MAP: value}})

    monkeypatch.setattr(dptrain.run.job.Run, "execute", execute)
    monkeypatch.setattr(dptrain.run.tuning, "draw_runs", lambda *_: len(scores))
    monkeypatch.chdir(tmp_path)
    return scores


def test_only_the_winner_is_left_and_nothing_tells_how_many_ran(
    scored: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored += [0.25, 0.75, None, 0.5]
    settings = config(tmp_path, tracking={"uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "experiment": "t"})
    result = tune(settings)
    out = tmp_path / "out"
    assert (out / "note").read_text() == "0.75"
    assert not (out / "tuning.partial").exists()
    told = capsys.readouterr()
    assert "loser" not in told.out + told.err
    assert [line.split()[0] for line in told.out.splitlines()] == ["tuning", "budget:", "done:"]
    tuning = plan_tuning(settings)
    assert result.epsilon == tuning.epsilon
    statement = json.loads((out / "statement.json").read_text())
    assert statement["tuning"]["epsilon"] == tuning.epsilon
    assert statement["guarantee"]["epsilon"] == tuning.epsilon > tuning.plan.epsilon()  # the headline is the true price
    assert statement["guarantee"]["epsilon_pld"] == tuning.epsilon
    with (out / "results.csv").open() as stream:
        assert {float(row["dp/epsilon"]) for row in csv.DictReader(stream)} == {tuning.epsilon}
    assert check_statement(out).statement["guarantee"]["epsilon"] == tuning.epsilon
    assert statement["tuning"]["runs"] == "secret, geometric with mean 5"
    assert "they chose the run" in statement["validation"]
    files = [file for file in out.rglob("*") if file.is_file()]
    times = [file.stat().st_mtime for file in files]
    assert max(times) - min(times) < 30
    assert not any("tuning.partial" in file.read_text(errors="ignore") for file in files if file.suffix != ".pt")
    client = MlflowClient(settings.tracking.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "t"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["dp/epsilon_tuning"] == pytest.approx(tuning.epsilon)
    assert run.info.start_time / 1000 >= (out / "weights" / "last.pt").stat().st_mtime - 1


@pytest.mark.parametrize("scores", [[], [None]])
def test_no_winner_releases_nothing(scores: list[Any], scored: list[Any], tmp_path: Path) -> None:
    scored += scores
    with pytest.raises(PrivacyError, match="nothing is released"):
        tune(config(tmp_path))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["owner"]  # what it cost, and nothing else


def test_a_stopped_tuning_leaves_nothing(scored: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dptrain.run.job

    scored += [0.5, 0.5]

    def stop(run: Any) -> None:
        (run.output / "weights").mkdir(parents=True)
        raise SystemExit("stopped after step 1 of 4")

    monkeypatch.setattr(dptrain.run.job.Run, "execute", stop)
    with pytest.raises(SystemExit, match=r"nothing is released, it cannot be resumed, and epsilon .* stays spent"):
        tune(config(tmp_path))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["owner"]  # what it cost, and nothing else
