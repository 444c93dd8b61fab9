"""The black-box audit: real training on image files, and a ledger that hears nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dptrain import BudgetLedger
from dptrain.audit import audit_training, black_box, default_plan
from dptrain.audit.public import refuse_charged
from dptrain.audit.scenes import CLASSES, draw_canary, draw_scene, open_dataset, write_dataset
from dptrain.datasets.sources import load_data
from dptrain.errors import ConfigError, PrivacyError

from ..conftest import SMALL


def test_a_dataset_of_scenes_is_read_back_as_it_was_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(64, rng), draw_canary(64, 3, rng)]
    examples = open_dataset(write_dataset(tmp_path / "set", scenes, CLASSES), 64)
    for index, (picture, boxes) in enumerate(scenes):
        sample = examples.sample(index)
        assert np.array_equal(sample["img"].permute(1, 2, 0).numpy(), picture)
        np.testing.assert_allclose(sample["bboxes"].numpy(), boxes[:, 1:], atol=1e-5)
        assert sample["cls"].view(-1).tolist() == boxes[:, 0].tolist()
        assert (boxes[:, 1:3] - boxes[:, 3:] / 2 >= -1e-6).all() and (
            boxes[:, 1:3] + boxes[:, 3:] / 2 <= 1 + 1e-6
        ).all()


def test_public_images_are_trained_on_and_the_ledger_hears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    data = write_dataset(tmp_path / "open", [draw_scene(64, rng) for _ in range(3)], ["a", "b", "c"])
    ledger = tmp_path / "budget.db"
    monkeypatch.setenv("DPTRAIN_BUDGET_URL", f"sqlite:///{ledger}")
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {}

    def spy(**options: Any) -> Any:
        described = yaml.safe_load(Path(options["data"]).read_text())
        examples = open_dataset(Path(options["data"]), 64)
        seen.update(images=[file.parent.parent.parent.name for file in examples.image_files], names=described["names"])
        result = real(**options)
        seen.update(status=result.statement["status"], ledger=result.statement["dataset_budget"])
        return result

    real = black_box.train
    monkeypatch.setattr(black_box, "train", spy)
    before = {file.name for file in tmp_path.iterdir()}
    plan = default_plan("black-box", steps=2, canaries=20)
    result = audit_training(
        plan, threat="black-box", model=SMALL, data=data, public=True, canaries=20, seed=0, guesses=[10, 20]
    )
    assert seen["images"].count("open") == 3 and seen["images"].count("data") == result.included.sum()
    assert seen["names"] == {0: "a", 1: "b", 2: "c"} and seen["status"] == "finished" and seen["ledger"] is None
    assert {file.name for file in tmp_path.iterdir()} == before
    assert result.measured is None and np.isfinite(result.scores).all() and result.numbers_tried == 2
    assert result.data == "data (declared public)" and "black-box" in result.threat_model


@pytest.mark.parametrize("place", ["argument", "environment", "working directory"])
def test_images_that_a_ledger_has_as_private_are_refused_whatever_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Under another name and folder, saved anew; the refusal names the dataset, and leaves the ledger as it was."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(64, rng) for _ in range(3)]
    private = write_dataset(tmp_path / "private", scenes[:2], CLASSES)
    url = f"sqlite:///{tmp_path / 'budget.db'}"
    ledger = BudgetLedger(url)
    ledger.create("pets", epsilon=8.0, delta=1e-5, manifest=ledger.manifest(load_data(private).train))
    copy = write_dataset(tmp_path / "copy", [draw_scene(64, rng), scenes[1]], CLASSES)
    other = write_dataset(tmp_path / "other", scenes[2:], CLASSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPTRAIN_BUDGET_URL")
    if place == "environment":
        monkeypatch.setenv("DPTRAIN_BUDGET_URL", url)
        monkeypatch.chdir(tmp_path / "copy")
    before = ledger.export(), sorted(tmp_path.iterdir())
    given = url if place == "argument" else None
    with pytest.raises(PrivacyError, match=r"000001\.png: .*the ledger .*budget\.db protects it, in pets;") as caught:
        audit_training(
            default_plan(steps=1, canaries=20), model="yolo26n.yaml", data=copy, public=True, ledger=given, canaries=20
        )
    assert "\n" not in str(caught.value)
    assert refuse_charged(other, given), "images that it does not hold are asked about, and let through"
    assert (ledger.export(), sorted(tmp_path.iterdir())) == before and ledger.verify().sound


def test_private_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="declare it public"):
        audit_training(threat="black-box", model="yolo26n.yaml", data=tmp_path / "private.yaml")
