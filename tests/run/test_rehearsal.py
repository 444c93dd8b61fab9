"""A rehearsal: the private run's noise on the mean gradient, from public images, at a part of the cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import dptrain
from dptrain import ConfigError, DataError, PrivacyError, PrivacyPlan
from dptrain.run import rehearsal
from dptrain.run.rehearsal import Cell, Rehearsed, cells_of, rehearse
from dptrain.run.rehearsal_files import best_of, draw, table_of, write_experiment
from dptrain.settings import resolve as settings
from dptrain.settings.schema import TrainConfig

from ..conftest import SMALL, MakeDataset, run_options

ROW = Rehearsed(Cell(1000, 8.0, 1.0), 80, 250, 1.5, 2e-3, "all", "auto", 0.99, 32, 0.5, 0.3, 9.0)


def config_of(data: Path, tmp_path: Path, **changes: Any) -> TrainConfig:
    given = {
        "model": SMALL, "data": str(data), "imgsz": 64, "steps": 3, "workers": 0, "device": "cpu",
        "physical_batch_size": 4, "output_dir": str(tmp_path / "rehearsal"), "optimizer": {"lr": 1e-3},
        "privacy": {"epsilon": 8.0, "dataset_size": 1000, "expected_batch_size": 200},
        "budget": {"url": f"sqlite:///{tmp_path}/budget.db"}, "tracking": {"enabled": False},
    }  # fmt: skip
    return settings.resolve(settings.from_kwargs(**{**given, **changes}))


def test_the_noise_on_the_mean_gradient_is_that_of_the_private_run(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[PrivacyPlan] = []
    real = rehearsal.Task.trainer

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        plans.append(self.plan)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(rehearsal.Task, "trainer", watched)
    config = config_of(make_dataset(6, 3), tmp_path)
    rows = [row for row, _ in rehearse(config, cells_of([1000, 400], [8.0, 2.0], [1.0]))]
    assert [(row.cell.size, row.cell.epsilon) for row in rows] == [
        (400, 8.0), (400, 2.0), (1000, 8.0), (1000, 2.0), (1000, None),
    ]  # fmt: skip
    for row, small in zip(rows[:-1], plans[:-1], strict=True):
        private = PrivacyPlan.calibrate(
            epsilon=row.cell.epsilon or 0, delta=row.cell.size**-1.1, sample_rate=200 / row.cell.size, steps=3,
            expected_batch_size=200,
        )  # fmt: skip
        assert row.noise_multiplier == private.noise_multiplier
        assert small.noise_multiplier / small.expected_batch_size == pytest.approx(private.noise_multiplier / 200)
        assert (small.expected_batch_size, small.sample_rate, small.steps) == (6, 1.0, 3)
    assert plans[-1].noise_multiplier == 1e-3 and rows[-1].noise_multiplier == 0
    assert not (tmp_path / "budget.db").exists(), "a rehearsal spends nothing"


def test_what_is_done_is_not_done_again(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(make_dataset(6, 3), tmp_path)
    first = [row for row, _ in rehearse(config, [Cell(1000, 8.0, 1.0)])]
    monkeypatch.setattr(rehearsal._Stage, "play", lambda self, cell: replace(ROW, cell=cell))
    again = list(rehearse(config, [Cell(1000, 8.0, 1.0), Cell(1000, 8.0, 2.0)]))
    assert again[0] == (first[0], True) and again[1][1] is False
    with pytest.raises(ConfigError, match="holds a rehearsal of other settings"):
        next(rehearse(replace(config, imgsz=96), [Cell(1000, 8.0, 1.0)]))
    (tmp_path / "rehearsal/rehearsal.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read as a rehearsal"):
        next(rehearse(config, [Cell(1000, 8.0, 1.0)]))


def test_images_that_a_ledger_protects_are_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(6, 3)
    url = f"sqlite:///{tmp_path}/budget.db"
    dptrain.train(
        data=str(data),
        **run_options(tmp_path, steps=1, budget={"url": url}, tracking={"enabled": False}),
        privacy={"epsilon": 8.0, "dataset_size": 10, "expected_batch_size": 4},
    )
    with pytest.raises(PrivacyError, match="images of the stand-in"):
        next(rehearse(config_of(data, tmp_path), [Cell(1000, 8.0, 1.0)]))
    assert not (tmp_path / "rehearsal").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy": {"unit": "group", "groups": {"regex": "(.)"}, "epsilon": 8.0}}, "an image stands for a group"),
        ({"noise": {"exact": True}}, "independent noise"),
        ({"privacy": {"noise_multiplier": 1.0}}, "finds the noise by epsilon"),
        ({"validation": "off"}, "measured on the stand-in's val split"),
        ({"device": "cpu,cpu"}, "runs on one device"),
    ],
)
def test_what_cannot_be_rehearsed_is_one_line(
    changes: dict[str, Any], says: str, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        next(rehearse(config_of(make_dataset(2, 1), tmp_path, **changes), [Cell(1000, 8.0, 1.0)]))


def test_a_stand_in_without_val_and_empty_lists_are_one_line(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(2, 1)
    data.write_text("train: images/train\nnames: [green, blue]\n")
    with pytest.raises(DataError, match="has no val split"):
        next(rehearse(config_of(data, tmp_path), [Cell(1000, 8.0, 1.0)]))
    with pytest.raises(ConfigError, match=r"epsilons=\[0\.0\] must be"):
        cells_of([1], [0.0], [1.0])


def test_the_best_recipe_is_an_experiment_that_trains(tmp_path: Path, make_dataset: MakeDataset) -> None:
    rows = [ROW, replace(ROW, cell=Cell(1000, 8.0, 2.0), lr=4e-3, mAP=0.4), replace(ROW, cell=Cell(1000, None, 1.0))]
    best = best_of(rows, 1000, 8.0)
    assert best is rows[1] and best_of(rows, 99, 8.0) is None
    file = write_experiment(best, tmp_path / "experiment" / "rehearsed.yaml")
    assert file.read_text().startswith("# @package _global_\n")
    given = yaml.safe_load(file.read_text())
    config = settings.resolve(settings.from_kwargs(model=SMALL, data="x.yaml", **given))
    plan = settings.make_plan(config)
    assert (plan.steps, plan.expected_batch_size, config.optimizer.lr) == (80, 250, 4e-3)
    assert table_of(rows).row_count == 3
    draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
