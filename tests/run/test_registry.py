"""A run's weights in MLflow's registry: served as stock Ultralytics predicts, under the epsilon that was recomputed."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pandas
import pytest
from mlflow.exceptions import MlflowException
from ultralytics import YOLO

from dptrain.commands.main import main
from dptrain.detection import load_model, save_weights, set_names
from dptrain.errors import ConfigError, PrivacyError, TrackingError
from dptrain.run.registry import register_run
from dptrain.statement import write_statement

from ..statement.runs import PLAN, edit, facts, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run")
    model = load_model("yolo26n.yaml", num_classes=2)
    set_names(model, {0: "cat", 1: "dog"})
    for name in ("last.pt", "last_raw.pt"):
        save_weights(model, folder / "weights" / name)
    write_statement(folder, facts())
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)  # MLflow puts the files of an SQLite store beside it
    return f"sqlite:///{tmp_path}/mlflow.db"


def _photo() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def test_a_version_predicts_as_stock_does_and_names_its_epsilon(
    run: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert register_run(run, "pets", store).version == 1
    made = register_run(run / "weights" / "last.pt", "pets", store)
    assert (made.name, made.version, made.epsilon, made.valid) == ("pets", 2, PLAN.epsilon(), True)
    assert "MLFLOW_TRACKING_URI" not in os.environ and not mlflow.is_tracking_uri_set()

    client = mlflow.MlflowClient(store)
    version = client.get_model_version("pets", "2")
    assert version.description.startswith("# Privacy statement")
    assert float(version.tags["dptrain.epsilon"]) == PLAN.epsilon()
    assert (version.tags["dptrain.unit"], version.tags["dptrain.valid"]) == ("image", "true")

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        model = mlflow.pyfunc.load_model("models:/pets/2")
    (tmp_path / "photo.png").write_bytes(_photo())
    text = base64.b64encode(_photo()).decode()
    rows = model.predict(pandas.DataFrame({"image": [text, text]}), params={"confidence": 1e-4})
    expected = YOLO(run / "weights" / "last.pt").predict(tmp_path / "photo.png", conf=1e-4, verbose=False)[0].boxes
    assert len(expected) > 0 and list(rows["image"].unique()) == [0, 1]
    first = rows[rows["image"] == 0]
    np.testing.assert_allclose(first[["x1", "y1", "x2", "y2"]], expected.xyxy, rtol=1e-6)
    np.testing.assert_allclose(first["confidence"], expected.conf, rtol=1e-6)
    assert set(first["class"]) <= {"cat", "dog"}
    assert model.predict(pandas.DataFrame({"image": [text]}), params={"confidence": 0.999}).empty
    with pytest.raises(MlflowException, match="image 1 cannot be read"):
        model.predict(pandas.DataFrame({"image": [text, "!"]}))


def test_what_cannot_be_registered_leaves_no_version(run: Path, store: str, tmp_path: Path) -> None:
    weights = run / "weights" / "last.pt"
    with pytest.raises(TrackingError, match="nothing was registered"):
        register_run(run, "pets", "http://127.0.0.1:9")
    weights.rename(weights.with_name("last.pt.age"))
    with pytest.raises((ConfigError, PrivacyError), match=r"last\.pt"):
        register_run(run, "pets", store)
    weights.with_name("last.pt.age").rename(weights)
    edit(run / "statement.json", "guarantee/epsilon", 0.1)
    with pytest.raises(PrivacyError, match="epsilon"):
        register_run(run, "pets", store)
    assert mlflow.MlflowClient(store).search_registered_models() == []


def test_a_void_statement_says_so(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "void", seed=1, secure=False)
    assert main(["register", str(folder), "--name", "pets", "--tracking-uri", store]) == 0
    assert "VOID" in capsys.readouterr().out
    assert mlflow.MlflowClient(store).get_model_version("pets", "1").tags["dptrain.valid"] == "false"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("register {tmp} --name a/b", "without / and :"),
        ("register {tmp}/nothing --name pets", "is not there"),
        ("ui --tracking-uri sqlite:///{tmp}/none.db", "train first"),
        ("ui --port 0", "--port=0"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.format(tmp=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_ui_of_a_server_names_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--tracking-uri", "https://runs.example"]) == 0
    assert "open https://runs.example" in capsys.readouterr().out
