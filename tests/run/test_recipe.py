"""A run with adapters, one branch and a rate by rule: resumed, averaged, saved and stated as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
import yaml

import dptrain
from dptrain import PrivacyPlan
from dptrain.detection import load_model
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.evaluate import evaluate
from dptrain.statement import check_statement
from dptrain.support.files import read_json

from ..conftest import SMALL, MakeDataset, run_options
from ..detectors import stock_detector, write_checkpoint

PLAN = PrivacyPlan(0.5, 4, 1.0, 1.0, 1e-3, 3)


def options(tmp_path: Path, start: Path, out: str, **changes: Any) -> dict[str, Any]:
    given = {
        "model": str(start), "plan": PLAN, "evaluate_every": 2, "seed": 5, "trainable": ["lora", "norm_and_bias"],
        "head": "one_to_many", "lora": {"rank": 2}, "loss": {"normaliser": "constant"}, "new_classes": "zero",
        "tracking": {"enabled": False}, "output_dir": str(tmp_path / out),
    }  # fmt: skip
    return run_options(tmp_path, **{**given, **changes})


def test_a_resumed_run_with_adapters_ends_as_the_whole_one(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()
    start = write_checkpoint(stock_detector(SMALL.removesuffix(".yaml"), "abc"), tmp_path / "start.pt")
    whole = dptrain.train(data=data, **options(tmp_path, start, "whole"))
    real = dptrain.run.job.Run._evaluate

    def cut(self: Any, *args: Any) -> None:
        if self.trainer.step:
            raise OSError("power gone")
        real(self, *args)

    with monkeypatch.context() as context:
        context.setattr("dptrain.run.job.Run._evaluate", cut)
        with pytest.raises(OSError, match="power gone"):
            dptrain.train(data=data, **options(tmp_path, start, "cut"))
    with pytest.raises(dptrain.PrivacyError, match=r"lora\.rank"):
        dptrain.train(data=data, **options(tmp_path, start, "cut", resume=True, lora={"rank": 3}))
    resumed = dptrain.train(data=data, **options(tmp_path, start, "cut", resume=True))
    states = [ultralytics.YOLO(result.weights).model.state_dict() for result in (whole, resumed)]
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert not any(".base." in name or "one2one" in name for name in states[0])
    first = ultralytics.YOLO(start).model.state_dict()
    assert not torch.equal(first["model.0.conv.weight"], states[0]["model.0.conv.weight"]), "folded in"

    assert evaluate(load_model(whole.weights), DetectionDataset(load_data(data), "val", 64)).values == pytest.approx(
        whole.metrics, abs=1e-3
    )
    training = whole.statement["training"]
    assert (training["head"], training["loss"]["normaliser"]) == ("one_to_many", "constant")
    assert whole.statement["model"]["trainable"] == ["lora", "norm_and_bias"]
    settings = read_json(whole.output_dir / "settings.json")
    config = yaml.safe_load((whole.output_dir / "config.yaml").read_text())
    assert training["learning_rate"] == settings["optimizer"]["lr"] == config["optimizer"]["lr"] > 0
    check_statement(whole.output_dir)  # every field agrees with the run's records
