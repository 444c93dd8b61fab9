"""The command: quick to answer, one line for an error, and nothing left lying about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dptrain.commands.main import main


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("dptrain: error: ")
    return lines[0].removeprefix("dptrain: error: ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            "evaluate weights=x.pt data=d.yaml",
            "dptrain evaluate takes flags: write --weights x.pt in place of weights=x.pt",
        ),
        ("evaluate --weights x.pt --data no.yaml imgsz=64", "write --imgsz 64 in place of imgsz=64"),
        ("plan privacy.dataset_size=4000", "write --dataset-size 4000 in place of privacy.dataset_size=4000"),
        ("calibrate json=true", "write --json in place of json=true"),
        ("check data=pets.yaml", "dptrain check takes flags: write pets.yaml in place of data=pets.yaml"),
        ("perturb export kind=blur", "dptrain perturb export takes flags: write --kind blur in place of kind=blur"),
        ("audit no_such=1", "dptrain audit takes flags, not no_such=... (dptrain audit --help)"),
        ("train --model x.pt", "unknown option --model: settings are written key=value, model=..."),
        ("train --epsilon 8", "unknown option --epsilon: settings are written key=value, privacy.epsilon=..."),
    ],
)
def test_settings_typed_as_for_another_command_get_a_hint(
    arguments: str, hint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    assert one_error_line(capsys).endswith(hint)


@pytest.mark.parametrize("arguments", ["--help", "train --help", "plan --help", "budget --help"])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: str) -> None:
    """As ``dptrain --help | head``: nothing on stderr, and the status of a process that SIGPIPE ended.

    Or 0: argparse lets a help text that nobody reads pass.
    """
    done = subprocess.run(
        f"{{ {sys.executable} -m dptrain {arguments}; echo $? >&2; }} | true",
        shell=True, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr.strip() in ("0", "141")
    assert "train" not in arguments or done.stderr.strip() == "141"


def test_calibrate_prints_the_least_noise_for_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("calibrate --epsilon 8 --delta 1e-5 --sample-rate 0.02 --steps 1500 --json".split()) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["noise_multiplier"] == pytest.approx(0.8293, abs=1e-3)
    assert 7.99 < values["epsilon_rdp"] <= 8
    assert values["epsilon_pld"] < values["epsilon_rdp"]


def test_epsilon_prints_rdp_and_pld(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "epsilon --noise-multiplier 1.1 --sample-rate 0.01 --steps 1000 --delta 1e-5".split()
    assert main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["epsilon_rdp"] == pytest.approx(1.7118, abs=1e-4)
    assert values["epsilon_pld"] == pytest.approx(1.5154, abs=1e-3)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "1.71177" in text
    assert "1.51537" in text


def test_hardly_any_noise_answers_at_once_and_without_pld(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "epsilon --noise-multiplier 0.01 --sample-rate 0.2 --steps 1000 --delta 1e-5".split()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon_pld"] is None
    assert main(arguments) == 0
    assert "not computed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "COMMAND"),
        ("trian", "trian"),
        ("epsilon --noise-multiplier 1 --steps 10 --delta 1e-5", "--sample-rate"),
        ("epsilon --noise-multiplier 1 --sample-rate 0.1 --steps 1.5 --delta 1e-5", "--steps"),
        ("epsilon --noise-multiplier 1 --sample-rate 1.1 --steps 10 --delta 1e-5", "sample_rate=1.1"),
        ("epsilon --noise-multiplier 0 --sample-rate 0.1 --steps 10 --delta 1e-5", "noise_multiplier=0"),
        ("epsilon --noise-multiplier 1 --sample-rate 0.1 --steps -1 --delta 1e-5", "steps=-1"),
        (f"epsilon --noise-multiplier 1 --sample-rate 0.1 --steps {10**30} --delta 1e-5", "at most 2147483648"),
        (f"plan --dataset-size {10**400} --epsilon 8", "dataset_size=1000"),
        ("train --experimental-rerun config.pickle", "--experimental-rerun is refused"),
        ("calibrate --epsilon abc --sample-rate 0.1 --steps 10 --delta 1e-5", "--epsilon"),
        ("calibrate --epsilon -1 --sample-rate 0.1 --steps 10 --delta 1e-5", "epsilon=-1"),
        ("calibrate --epsilon 1 --sample-rate 0.1 --steps 10 --delta 1", "delta=1"),
        ("calibrate --epsilon 1e-7 --sample-rate 0.02 --steps 1500 --delta 1e-5", "epsilon=1e-07"),
        ("evaluate --weights x.pt --data d.yaml --imgsz 100", "--imgsz=100"),
        ("evaluate --weights x.pt --data d.yaml --batch-size 0", "--batch-size=0"),
        ("evaluate --weights x.pt --data d.yaml --workers -1", "--workers=-1"),
        ("evaluate --weights x.pt --data d.yaml --device gpu", "--device=gpu"),
        ("evaluate --weights x.pt --data d.yaml --split test2", "--split"),
        ("evaluate --weights x.pt --data no-such.yaml", "no-such.yaml"),
        ("calibrate --eps 8 --sample-rate 0.1 --steps 10 --delta 1e-5", "--eps"),
    ],
)
def test_a_failed_command_says_one_line_and_exits_with_2(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    assert expected in one_error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_debug_anywhere_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "calibrate --epsilon -1 --sample-rate 0.1 --steps 10 --delta 1e-5".split()
    for given in (["--debug", *arguments], [*arguments, "--debug"]):
        assert main(given) == 2
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["--help", "--version", "train --help", "epsilon --help", "evaluate -h"])
def test_help_and_version_exit_with_0(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(arguments.split())
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 0
    assert "dptrain" in capsys.readouterr().out


def test_train_help_lists_keys_presets_and_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("privacy.epsilon", "optimizer.lr", "bccd", "augment.mosaic", "--config-dir"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        ("epsilon --noise-multiplier 1 --sample-rate 0.1 --steps 10 --delta 1e-5", "torch ultralytics mlflow hydra"),
        ("train --help", "torch ultralytics mlflow dp_accounting"),
        ("redact . --region 0,0,5,5 -o out", "torch ultralytics mlflow"),
        ("scrub . --check", "torch ultralytics mlflow"),
        ("train model=a.pt data=b.yaml privacy.epsilon=-1", "torch ultralytics mlflow dp_accounting"),
    ],
)
def test_a_quick_answer_imports_nothing_heavy(arguments: str, absent: str, tmp_path: Path) -> None:
    code = (
        f"import sys; from dptrain.commands.main import main; main({arguments.split()!r}); "
        f"print('imported:', [name for name in {absent.split()!r} if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == "imported: []", done.stdout + done.stderr


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it, with random weights, beside a tiny dataset."""
    import torch
    import yaml
    from PIL import Image

    from dptrain.detection import load_model, save_weights

    folder = tmp_path_factory.mktemp("run")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (80, 60), (40 * i, 90 if split == "val" else 10, 20)).save(
                folder / "images" / split / f"{i}.png"
            )
            (folder / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    names = {0: "cat", 1: "dog"}
    data = {"path": str(folder), "train": "images/train", "val": "images/val", "names": names}
    (folder / "pets.yaml").write_text(yaml.safe_dump(data))
    torch.manual_seed(0)
    (folder / "weights").mkdir()
    save_weights(load_model("yolo26n.yaml", num_classes=2, norm="group", names=names), folder / "weights" / "last.pt")
    (folder / "config.yaml").write_text("imgsz: 64\n")
    return folder


def test_evaluate_prints_metrics_at_the_image_size_of_the_run(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--weights", f"{run_folder}/weights/last.pt", "--data", f"{run_folder}/pets.yaml"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["imgsz"], report["images"]) == (64, 2)
    assert 0 <= report["metrics"]["metrics/mAP50B"] <= 1
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == ["class", "precision", "recall", "mAP50", "mAP50-95"]
    assert "all" in text


def test_evaluating_on_the_training_images_warns(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--weights", f"{run_folder}/weights/last.pt", "--data", f"{run_folder}/pets.yaml"]
    assert main([*arguments, "--split", "train"]) == 0
    assert "carry no noise" in capsys.readouterr().err


def test_weights_that_are_no_model_are_refused_in_one_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "x.pt").write_text("nothing")
    assert main(["evaluate", "--weights", str(tmp_path / "x.pt"), "--data", f"{run_folder}/pets.yaml"]) == 2
    assert "x.pt" in one_error_line(capsys)


def test_python_m_dptrain_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dptrain", "epsilon"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("dptrain: error: ")
