"""Public pre-training: what it refuses, what it writes, and that private training takes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dptrain
from dptrain.commands.main import main
from dptrain.run.pretraining.run import PretrainResult, pretrain
from dptrain.run.pretraining.schema import PretrainConfig, from_arguments, resolve
from dptrain.run.public_start import declared_start
from dptrain.settings.keys import keys
from dptrain.settings.schema import TrainConfig

from ...conftest import SMALL, MakeDataset, dataset_maker, run_options


def options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Keywords of ``dptrain.pretrain`` for a training that takes seconds."""
    return {
        "model": SMALL,
        "imgsz": 64,
        "epochs": 2,
        "batch_size": 4,
        "workers": 0,
        "output_dir": str(tmp_path / "start"),
        **changes,
    }


@pytest.fixture(scope="module", autouse=True)
def _own_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same squares are somebody's private images in the ledger that other tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPTRAIN_BUDGET_URL", f"sqlite:///{tmp_path_factory.mktemp('own') / 'budget.db'}")
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, PretrainResult]]:
    """A data.yaml of public images, and a start made of them."""
    folder = tmp_path_factory.mktemp("public")
    data = dataset_maker(folder / "set")(train=6, val=3)
    yield data, pretrain(data=str(data), public_data="squares", **options(folder, model="yolo26n.yaml"))


def test_the_weights_are_a_start_for_private_training_and_the_record_says_what_made_them(
    trained: tuple[Path, PretrainResult], tmp_path: Path
) -> None:
    _, result = trained
    record = json.loads((result.weights.parent / "pretraining.json").read_text())
    assert record == result.record
    assert record["images"] == {"name": "set", "train": 6, "val": 3}
    assert record["settings"]["augment"]["mosaic"] == 1.0
    private = dataset_maker(tmp_path / "private")(train=6, val=3, seed=1)
    plan = dptrain.PrivacyPlan(
        sample_rate=0.5, steps=1, noise_multiplier=1.0, clip_norm=1.0, delta=1e-5, expected_batch_size=3
    )
    run = dptrain.train(
        data=str(private), plan=plan, tracking={"enabled": False},
        **run_options(tmp_path, model=str(result.weights)),
    )  # fmt: skip
    assert run.statement["public_data"]["declared"] == record["public_data"]
    assert record["public_data"] == "dptrain pretrain on 6 images of set, declared public (squares)"


def test_nothing_of_ultralytics_stays_in_the_folder(trained: tuple[Path, PretrainResult]) -> None:
    _, result = trained
    files = {str(file.relative_to(result.output_dir)) for file in result.output_dir.rglob("*") if file.is_file()}
    assert files == {
        "config.yaml", "settings.json", "results.csv", "weights/last.pt", "weights/pretraining.json",
    }  # fmt: skip
    checkpoint = torch.load(result.weights, map_location="cpu", weights_only=False)
    assert {p.dtype for p in checkpoint["model"].parameters()} == {torch.float16}
    assert not {"optimizer", "train_results", "train_metrics", "git"} & set(checkpoint)


def test_the_record_of_other_weights_declares_nothing(trained: tuple[Path, PretrainResult], tmp_path: Path) -> None:
    _, result = trained
    own = tmp_path / "renamed.pt"
    shutil.copy(result.weights, own)
    shutil.copy(result.weights.parent / "pretraining.json", tmp_path / "pretraining.json")
    assert declared_start(own) == result.record["public_data"]
    own.write_bytes(own.read_bytes() + b"0")
    assert declared_start(own) is None


def test_images_that_a_ledger_protects_are_refused_under_any_name(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(train=6, val=3)
    url = f"sqlite:///{tmp_path / 'own.db'}"
    budget = f"budget create pets --data {data} --epsilon 8 --delta 1e-5 --url {url}"
    assert main(budget.split()) == 0
    copy = tmp_path / "copy"
    for split in ("train", "val"):  # one private image among public ones, renamed, in the split for validation
        (copy / "images" / split).mkdir(parents=True)
    public = dataset_maker(tmp_path / "public")(train=4, val=2, seed=5).parent
    shutil.copytree(public / "images", copy / "images", dirs_exist_ok=True)
    shutil.copytree(public / "labels", copy / "labels")
    shutil.copy(tmp_path / "images" / "train" / "004.png", copy / "images" / "val" / "holiday.png")
    (copy / "data.yaml").write_text(data.read_text())
    with pytest.raises(dptrain.PrivacyError, match=r"holiday\.png: is one of the images to pre-train.*in pets;"):
        pretrain(data=str(copy / "data.yaml"), budget={"url": url}, **options(tmp_path))
    assert not (tmp_path / "start").exists()
    assert main(f"pretrain model=yolo26n.yaml data={copy / 'data.yaml'} budget.url={url} imgsz=64".split()) == 2


def test_looking_at_a_ledger_makes_none(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(train=2, val=1)
    file = tmp_path / "none.db"
    with pytest.raises(dptrain.ModelError):
        pretrain(data=str(data), budget={"url": f"sqlite:///{file}"}, **options(tmp_path, model="gone.pt"))
    assert not file.exists() and not (tmp_path / "start").exists()


def test_weights_of_a_private_run_are_no_public_start(tmp_path: Path, make_dataset: MakeDataset) -> None:
    (tmp_path / "last.pt").write_bytes(b"")
    (tmp_path / "statement.json").write_text("{}")
    with pytest.raises(dptrain.PrivacyError, match="comes from a private run"):
        pretrain(data=str(make_dataset()), **options(tmp_path, model=str(tmp_path / "last.pt")))


def test_a_stopped_training_goes_on_and_only_with_its_own_settings(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dptrain.detection.public import PublicTraining

    data = str(make_dataset(train=6, val=2))
    real = PublicTraining._row

    def cut(self: PublicTraining) -> dict[str, float]:
        if self.epoch == 1:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(PublicTraining, "_row", cut)
        with pytest.raises(KeyboardInterrupt) as caught:
            pretrain(data=data, **options(tmp_path, epochs=3))
    assert "resume=true" in caught.value.__notes__[0]
    with pytest.raises(dptrain.ConfigError, match=r"epochs=4 \(there: 3\)"):
        pretrain(data=data, **options(tmp_path, epochs=4, resume=True))
    capsys.readouterr()
    result = pretrain(data=data, **options(tmp_path, epochs=3, resume=True))
    seen = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert seen == ["3/3"]  # the second was whole before the stop
    assert result.weights.is_file()
    with pytest.raises(dptrain.ConfigError, match="is finished"):
        pretrain(data=data, **options(tmp_path, epochs=3, resume=True))


def test_scenes_are_drawn_once_and_a_generator_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spots.py").write_text(
        "import numpy as np\nNAMES = {0: 'spot'}\n"
        "def scene(rng):\n"
        "    image = rng.integers(0, 60, (64, 64, 3), np.uint8)\n"
        "    image[20:40, 10:30] = 255\n"
        "    return image, [[0, 20 / 64, 30 / 64, 20 / 64, 20 / 64]]\n"
    )
    (tmp_path / "blank.py").write_text("NAMES = {0: 'spot'}\n")
    with pytest.raises(dptrain.ConfigError, match=r"scenes\.generator=blank is not a generator"):
        pretrain(**options(tmp_path, scenes={"generator": "blank"}))
    with pytest.raises(dptrain.ConfigError, match=r"scenes\.generator=nowhere cannot be imported"):
        pretrain(**options(tmp_path, scenes={"generator": "nowhere"}))
    result = pretrain(**options(tmp_path, scenes={"generator": "spots", "train": 4, "val": 2}, epochs=1))
    assert result.record["public_data"] == "dptrain pretrain on 4 scenes drawn by spots (seed 0)"
    assert len(result.record["images"]["generator_sha256"]) == 64


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "model is not set"),
        ("model=yolo26n.yaml", "give data=public.yaml, or scenes.generator=MODULE"),
        ("model=yolo26n.yaml data=a.yaml scenes.generator=b", "cannot be combined"),
        ("model=yolo26n.yaml data=nowhere.yaml", "nowhere.yaml"),
        ("model=yolo26n.yaml data=a.yaml epochs=0", "epochs=0 must be 1 or more"),
        ("model=yolo26n.yaml data=a.yaml epochs=many", "epochs=many is not a whole number"),
        ("model=yolo26n.yaml data=a.yaml imgsz=100", "imgsz=100 is not a multiple of 32"),
        ("model=yolo26n.yaml data=a.yaml epoch=3", "unknown key epoch; did you mean epochs?"),
        ("model=yolo26n.yaml data=a.yaml privacy.epsilon=8", "privacy.epsilon is a key of dptrain train"),
        ("model=yolo26n.yaml data=a.yaml norm=frozen", "norm=frozen is not one of auto, group, batch"),
        ("model=yolo26n.yaml data=a.yaml optimizer.lr=0.1", "needs a name"),
        ("model=yolo26n.yaml data=a.yaml --epochs", "cannot read '--epochs'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert expected in captured.err
    assert not list(tmp_path.iterdir())


def test_a_key_that_both_commands_have_means_the_same() -> None:
    shared = dict(keys(TrainConfig))
    both = {name: item for name, item in keys(PretrainConfig) if name in shared}
    assert {"imgsz", "device", "output_dir", "resume", "augment.fliplr", "schedule.final"} <= set(both)
    own_words = {  # what the images may be, and what is chosen, differs
        "model", "data", "norm", "seed", "workers", "public_data", "budget.url", "optimizer.name", "optimizer.lr",
        "optimizer.momentum", "schedule.name", "augment.mosaic", "augment.mixup",
        "augment.cutmix", "epochs",
    }  # fmt: skip
    for name, item in both.items():
        assert item.type == shared[name].type or name in ("optimizer.lr", "data", "seed", "epochs"), name
        assert (item.metadata == shared[name].metadata) == (name not in own_words), name


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name, _ in keys(PretrainConfig)) and "WITHOUT privacy" in text


def test_text_values_stay_as_they_are_typed() -> None:
    config = resolve(from_arguments(["model=a.pt", "data=/photos (1), b/x.yaml", "public_data=COCO: 2017"]))
    assert config.data == "/photos (1), b/x.yaml" and config.public_data == "COCO: 2017"
