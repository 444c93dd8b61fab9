"""Evaluation over perturbations and perturbed copies say the same, and copies are whole datasets or nothing."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest

from dptrain.commands.main import main
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.evaluate import evaluate
from dptrain.detection.model import load_model
from dptrain.errors import ConfigError, DataError
from dptrain.sealing import new_identity
from dptrain.toolbox.perturbation import evaluate_perturbed, export_perturbed
from dptrain.toolbox.seal import seal
from experiments.digits.scenes import write_public

WEIGHTS = Path(__file__).resolve().parents[3] / "experiments/digits/public_start.pt"
LEVELS = {"noise": [40, 10], "jpeg": [10], "dark": [0.1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_public(tmp_path_factory.mktemp("digits"), train_scenes=3, val_scenes=16)


@pytest.fixture(scope="module")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("perturbed")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    result = evaluate_perturbed(WEIGHTS, data, levels=LEVELS, imgsz=128, output=folder / "out", tracking_uri=uri)
    return result, uri


def test_the_clean_row_is_what_evaluate_says_and_worse_pictures_do_worse(data: Path, evaluated) -> None:
    result, _ = evaluated
    plain = evaluate(load_model(WEIGHTS), DetectionDataset(load_data(data), "val", 128))
    assert result.rows[0].kind == "clean" and result.rows[0].metrics == plain.values
    assert result.rows[0].detections == plain.detections / 16 > 1
    assert plain.values["metrics/mAP50B"] > 0.8
    noise = [row.metrics["metrics/mAP50-95B"] for row in result.curve("noise")]
    assert [row.level for row in result.curve("noise")] == [0, 10, 40]
    assert noise[0] > noise[2] and noise[1] > noise[2]


def test_copies_give_the_numbers_that_the_evaluation_gave(data: Path, evaluated, tmp_path: Path) -> None:
    result, _ = evaluated
    for kind, level in (("noise", 40.0), ("jpeg", 10.0)):
        done = export_perturbed(data, tmp_path / kind, kind=kind, level=level, seed=0)
        found = evaluate(load_model(WEIGHTS), DetectionDataset(load_data(done.data), "val", 128))
        row = next(row for row in result.rows if (row.kind, row.level) == (kind, level))
        assert found.values == row.metrics and found.detections / 16 == row.detections


def test_the_curve_is_in_mlflow_and_in_the_folder(evaluated) -> None:
    from mlflow.tracking import MlflowClient

    result, uri = evaluated
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("dptrain-perturb").experiment_id])
    history = {
        name: [
            (m.step, m.value) for m in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)
        ]
        for name in ("noise/level", "noise/mAP50-95", "noise/detections")
    }
    rows = result.curve("noise")
    assert history["noise/level"] == [(0, 0), (1, 10), (2, 40)]
    assert history["noise/mAP50-95"] == [(i, pytest.approx(r.metrics["metrics/mAP50-95B"])) for i, r in enumerate(rows)]
    assert history["noise/detections"] == [(i, pytest.approx(r.detections)) for i, r in enumerate(rows)]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"perturbation.json", "perturbation.png"}
    assert run.info.status == "FINISHED"
    written = json.loads((result.folder / "perturbation.json").read_text())
    assert len(written["rows"]) == 5 and written["input_noise"][0]["epsilon"] > 1e5
    assert cv2.imread(str(result.folder / "perturbation.png")).std() > 10


def test_a_copy_has_the_labels_and_nothing_else_of_the_files(data: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in data.parent.rglob("*") if file.is_file()}
    done = export_perturbed(data, tmp_path / "noisy", kind="noise", level=20)
    assert (done.images, done.labels) == (19, 19)
    for split, count in (("train", 3), ("val", 16)):
        for number in range(count):
            name = f"{split}/{number:04d}"
            label = (tmp_path / f"noisy/labels/{name}.txt").read_bytes()
            assert label == (data.parent / f"labels/{name}.txt").read_bytes()
            clean = cv2.imread(str(data.parent / f"images/{name}.png")).astype(float)
            noisy = cv2.imread(str(tmp_path / f"noisy/images/{name}.png")).astype(float)
            inner = (clean > 80) & (clean < 175)
            if inner.sum() > 1000:
                assert (noisy - clean)[inner].std() == pytest.approx(20, rel=0.06)
    assert load_data(done.data).names == load_data(data).names
    assert {file: file.read_bytes() for file in before} == before
    export_perturbed(data, tmp_path / "again", kind="noise", level=20)
    one, two = (cv2.imread(str(tmp_path / f"{name}/images/val/0000.png")) for name in ("noisy", "again"))
    assert (one != two).mean() > 0.5  # the seed is drawn, and forgotten


def test_a_sealed_dataset_is_copied_with_its_labels(
    make_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = new_identity(tmp_path / "key")
    sealed = seal(make_dataset(), tmp_path / "pets.seal", recipients=[public])
    monkeypatch.setenv("DPTRAIN_SEAL_IDENTITY", (tmp_path / "key").read_text())
    done = export_perturbed(sealed, tmp_path / "copy", kind="blur", level=1)
    assert done.labels == len(list((tmp_path / "copy" / "labels").rglob("*.txt"))) > 0


def test_a_disk_that_is_full_is_told_in_one_line(
    make_dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, limits = make_dataset(), resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = f"perturb export --data {data} --kind blur --level 1 -o {tmp_path / 'copy'}".split()
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # bytes that a file may have
    try:
        assert main(arguments) != 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert not [file for file in tmp_path.iterdir() if "copy" in file.name]


def test_a_copy_is_whole_or_not_there(make_dataset, tmp_path: Path) -> None:
    data = make_dataset(train=6, val=3)
    broken = tmp_path / "images/train/004.png"
    broken.write_bytes(broken.read_bytes()[:100])
    there = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(DataError, match=r"004\.png"):
        export_perturbed(data, tmp_path / "copy", kind="blur", level=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == there
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        export_perturbed(data, tmp_path / "full", kind="blur", level=2)


def test_two_pictures_of_one_name_are_refused_rather_than_lost(make_dataset, tmp_path: Path) -> None:
    data = make_dataset(train=2, val=2)
    cv2.imwrite(str(tmp_path / "images/train/000.jpg"), np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(DataError, match="rename one"):
        export_perturbed(data, tmp_path / "copy", kind="noise", level=2)


def test_the_commands_print_what_the_noise_is_worth(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = f"perturb evaluate --weights {WEIGHTS} --data {data} --imgsz 128 --noise 30 --no-tracking -o out"
    assert main(arguments.split()) == 0
    text = capsys.readouterr().out
    assert "noise" in text and "promises nothing" in text and "dark" not in text
    assert main(f"perturb export --data {data} --kind noise --level 30 -o noisy --seed 4".split()) == 0
    text = capsys.readouterr().out
    assert "epsilon 8 would need noise of" in text and "--seed 4 can subtract the noise" in text
    assert not Path("mlflow.db").exists()


def test_a_store_that_cannot_be_reached_is_told_in_the_words_of_the_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    store = f"sqlite:///{tmp_path}/file/mlflow.db"
    assert main(["perturb", "evaluate", "--weights", str(WEIGHTS), "--data", str(data), "--tracking-uri", store]) == 2
    error = capsys.readouterr().err
    assert f"--tracking-uri {store}" in error and "give --no-tracking; nothing was measured" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("export --data d.yaml --kind noise --level -1 -o x", "noise=-1"),
        ("export --data d.yaml --kind jpeg --level 10.5 -o x", "jpeg=10.5"),
        ("export --data d.yaml --kind fog --level 1 -o x", "--kind"),
        ("export --data d.yaml --kind noise --level 1 -o x", "no such data.yaml"),
        ("evaluate --weights w.pt --data d.yaml --noise a", "--noise"),
        ("evaluate --weights w.pt --data d.yaml --dark 0", "dark=0"),
        ("evaluate --weights w.pt --data d.yaml --noise 0", "no level to try"),
        ("evaluate --weights w.pt --data d.yaml --imgsz 100", "--imgsz=100"),
        ("evaluate --weights w.pt --data d.yaml --seed -1", "seed=-1"),
        ("evaluate --weights w.pt --data d.yaml --delta 1", "--delta"),
        ("evaluate --weights w.pt", "--data"),
        ("evaluate --weights w.pt --data {data} --no-tracking", "checkpoint 'w.pt': no such file"),
        ("evaluate --weights w.pt --data {data} -o {data}/x", "is not a folder"),
        ("evaluate --weights w.pt --data {data} -o {done}", "holds a perturbation.json already"),
        ("export --data {data} --kind noise --level 1 -o {data}/x", "is not a folder"),
        ("export --data {data} --kind noise --level 1 -o {images}/x", "which is read"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    arguments: str,
    expected: str,
    data: Path,
    evaluated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments.format(data=data, done=evaluated[0].folder, images=load_data(data).train[0].parent)
    assert main(["perturb", *given.split()]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
