"""Training from a sealed dataset into sealed outputs: the same run, and nothing plain on the disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import torch_safe_load

from dptrain import ConfigError, ModelError, PrivacyError, PrivacyPlan, SealError, seal, train, unseal
from dptrain.detection.model import load_model, save_weights
from dptrain.sealing import find_keys, new_identity
from dptrain.sealing.age import decrypted
from dptrain.sealing.keys import IDENTITY, PASSPHRASE
from dptrain.statement import to_json
from dptrain.statement.facts import sealed as resealed
from dptrain.support.files import file_hash

from ..conftest import SMALL, MakeDataset, run_options
from ..statement.runs import facts

PLAN = PrivacyPlan(
    noise_multiplier=1.0, sample_rate=0.5, steps=2, delta=1e-3, clip_norm=1.0, expected_batch_size=3, unit="image"
)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    for name in (IDENTITY, PASSPHRASE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "key.txt", new_identity(tmp_path / "key.txt")


def options(tmp_path: Path, out: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in run_options(tmp_path).items() if name != "model"} | {
        "plan": PLAN,
        "seed": 0,
        "output_dir": str(tmp_path / out),
        "tracking": {"enabled": False},
        "budget": {"url": None},
        **changes,
    }


def test_a_sealed_dataset_is_the_same_to_training_as_a_plain_one(
    make_dataset: MakeDataset, pair: tuple[Path, str]
) -> None:
    from dptrain.datasets.identity import pictures_in
    from dptrain.detection.data import DetectionDataset, load_data
    from dptrain.run.declared_public import DeclaredPublic
    from dptrain.run.outputs import keys_of, open_dataset
    from dptrain.settings.schema import SealConfig

    yaml = make_dataset(train=5)
    sealed = seal(yaml, yaml.parent / "pets.seal", recipients=[pair[1]])
    plain = load_data(yaml)
    open_dataset(sealed, keys_of(SealConfig(identity=str(pair[0]))))
    found = load_data(sealed)
    assert found.names == plain.names
    for split in ("train", "val"):
        one, two = (DetectionDataset(data, split, 64) for data in (plain, found))
        assert len(one) == len(two)
        for index in range(len(one)):
            a, b = one.sample(index), two.sample(index)
            assert all(torch.equal(a[key], b[key]) for key in a)
    DeclaredPublic("the val images", found.val, "...").refuse_training(pictures_in(found.train))
    (sealed.parent / "images" / "val" / "twin.png").write_bytes(plain.train[0].read_bytes())
    twin = seal(yaml, yaml.parent / "twin.seal", recipients=[pair[1]])
    open_dataset(twin, find_keys(pair[0]))
    found = load_data(twin)
    with pytest.raises(ValueError, match=r"is a training image and one of the val images .*twin\.png"):
        DeclaredPublic("the val images", found.val, "...").refuse_training(pictures_in(found.train))


def opened(weights: Path, key: Path) -> dict[str, torch.Tensor]:
    return torch.load(decrypted(weights, find_keys(key)), weights_only=False)["model"].state_dict()


def test_a_sealed_run_is_the_plain_run_and_leaves_nothing_plain(
    make_dataset: MakeDataset, tmp_path: Path, pair: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = make_dataset(train=5)
    sealed = seal(yaml, tmp_path / "pets.seal", recipients=[pair[1]])
    start = save_weights(load_model(SMALL, 3), tmp_path / "start.pt")
    sealed_start = seal(start, recipients=[pair[1]])
    earlier = resealed({**facts(), "weights": {"start.pt": file_hash(start)}})  # of the run that the start comes from
    (tmp_path / "statement.json").write_text(to_json(earlier))
    plain = train(start, yaml, **options(tmp_path, "plain"))
    start.unlink()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def watched(file: Path, **more: Any) -> Any:
        files = [
            found for folder, _, names in os.walk(tmp_path / "temporary") for found in map(Path(folder).joinpath, names)
        ]
        assert all(found.is_symlink() for found in files), files
        return torch_safe_load(file, **more)

    monkeypatch.setattr("dptrain.detection.model.torch_safe_load", watched)
    for folder in ("images", "labels"):
        (tmp_path / folder).rename(tmp_path / f"{folder} away")
    images = [file.read_bytes() for file in (tmp_path / "images away").rglob("*.png")]
    keys = {"identity": str(pair[0]), "recipients": [pair[1]]}
    run = train(sealed_start, sealed, **options(tmp_path, "sealed", seal=keys, workers=1))
    assert run.metrics == plain.metrics and run.epsilon == plain.epsilon
    assert run.weights.name == "last.pt.age"
    for file in (tmp_path / "sealed").rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert data[:4] != b"PK\x03\x04" and not any(image in data for image in images), file
    one, two = opened(run.weights, pair[0]), torch.load(plain.weights, weights_only=False)["model"].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in two)
    from dptrain.statement import check_statement

    found = check_statement(tmp_path / "sealed")
    for name in ("public_data", "model"):
        one, two = found.statement[name], plain.statement[name]
        assert {**one, "start": "", "start_weights": ""} == {**two, "start": "", "start_weights": ""}
    assert found.statement["deviations"] == plain.statement["deviations"]
    assert any("come from 1 private run" in text for text in found.statement["deviations"])
    assert check_statement(run.weights).statement["guarantee"] == found.statement["guarantee"]
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / "statement.json").write_bytes((tmp_path / "sealed/weights/statement.json").read_bytes())
    released = unseal(run.weights, tmp_path / "clinic" / "last.pt", keys=find_keys(pair[0]))
    assert "sha256 of last.pt: as stated" in check_statement(tmp_path / "clinic").statement["checks"]
    released.write_bytes(released.read_bytes() + b"x")
    with pytest.raises(PrivacyError, match=r"last\.pt is not the sha256"):
        check_statement(released)
    text = (tmp_path / "sealed" / "config.yaml").read_text() + (tmp_path / "sealed" / "settings.json").read_text()
    assert pair[0].read_text().splitlines()[1][20:] not in text


def test_a_sealed_run_resumes_with_its_key_only(
    make_dataset: MakeDataset, tmp_path: Path, pair: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dptrain.run.job import Run

    yaml = make_dataset(train=5)
    keys = {"identity": str(pair[0]), "recipients": [pair[1]]}
    whole = train(SMALL, yaml, **options(tmp_path, "whole", seal=keys))

    def dies(self: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_write_weights", dies)
        train(SMALL, yaml, **options(tmp_path, "cut", seal=keys, evaluate_every=1))
    assert (tmp_path / "cut" / "checkpoint.pt.age").is_file() and not (tmp_path / "cut" / "checkpoint.pt").exists()
    new_identity(tmp_path / "other.txt")
    wrong = keys | {"identity": str(tmp_path / "other.txt")}
    again = options(tmp_path, "cut", evaluate_every=1, resume=True)
    with pytest.raises(SealError, match="another key"):
        train(SMALL, yaml, **again, seal=wrong)
    with pytest.raises(Exception, match="sealed"):  # plain files would lie beside the sealed ones
        train(SMALL, yaml, **again)
    resumed = train(SMALL, yaml, **again, seal=keys)
    one, two = opened(resumed.weights, pair[0]), opened(whole.weights, pair[0])
    assert all(torch.equal(one[name], two[name]) for name in two)
    names = {file.name for file in (tmp_path / "cut").rglob("*.pt*")}
    assert names == {"checkpoint.pt.age", "last.pt.age", "last_raw.pt.age"}


def test_what_is_no_sealed_dataset_is_told_in_one_line(
    make_dataset: MakeDataset, tmp_path: Path, pair: tuple[Path, str]
) -> None:
    yaml = make_dataset()
    sealed = seal(yaml, tmp_path / "pets.seal", recipients=[pair[1]])
    keys = {"identity": str(pair[0])}
    with pytest.raises(SealError, match="no key"):
        train(SMALL, sealed, **options(tmp_path, "out"))
    good = sealed.read_bytes()
    sealed.write_bytes(good[:-5] + bytes(5))
    with pytest.raises(SealError, match=r"pets\.seal is damaged"):
        train(SMALL, sealed, **options(tmp_path, "out", seal=keys))
    with pytest.raises(ConfigError, match="is not there"):
        train(SMALL, tmp_path / "no.seal", **options(tmp_path, "out", seal=keys))
    start = tmp_path / "start.pt"
    start.write_bytes(b"x")
    new_identity(tmp_path / "other.txt")
    for key, message in ((None, "no key"), (tmp_path / "other.txt", "another key")):
        wrong = options(tmp_path, "out", seal={"identity": None if key is None else str(key)})
        with pytest.raises(SealError, match=message):
            train(seal(start, recipients=[pair[1]]), yaml, **wrong)
        (tmp_path / "start.pt.age").unlink()
    with pytest.raises(ModelError, match="no such file"):
        train(tmp_path / "start.pt.age", yaml, **options(tmp_path, "out", seal=keys))
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "x").write_bytes(b"x")
    other = seal(tmp_path / "some", tmp_path / "some.seal", recipients=[pair[1]])
    with pytest.raises(SealError, match=r"no data\.yaml"):
        train(SMALL, other, **options(tmp_path, "out", seal=keys))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="is called NAME"):
        seal(yaml, tmp_path / "pets.age", recipients=[pair[1]])


def test_a_sealed_dataset_becomes_a_plain_one_again(
    make_dataset: MakeDataset, tmp_path: Path, pair: tuple[Path, str]
) -> None:
    from dptrain.datasets.sources import load_data

    yaml = make_dataset()
    sealed = seal(yaml, tmp_path / "pets.seal", recipients=[pair[1]])
    again = unseal(sealed, tmp_path / "again", keys=find_keys(pair[0]))
    found, plain = load_data(again / "data.yaml"), load_data(yaml)
    assert [file.read_bytes() for file in found.train] == [file.read_bytes() for file in plain.train]
