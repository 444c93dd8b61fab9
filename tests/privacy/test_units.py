"""One whole group of images more or less, from the files to the noised gradient, and what an image-level run does.

The newcomers' names come last, so that every other unit keeps its coin, its examples and its augmentation. The door is
recorded and what comes out of it is fixed: sums may then differ by the clip norm, and nothing else may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dptrain
from dptrain import BudgetError, BudgetLedger, DataError, PrivacyPlan
from dptrain.datasets.groups import GroupsConfig, groups_of
from dptrain.detection.data import DetectionDataset, StepLoader, load_data
from dptrain.detection.loss import PerImageLoss
from dptrain.detection.model import save_weights
from dptrain.privacy import noise
from dptrain.privacy.units import UnitExamples
from dptrain.training.trainer import PrivateTrainer

from .datasets import SIZE, detector, write_image
from .recording import AUGMENTED, difference, length

OTHERS = {"a": ["ordinary", "one box", "no boxes"], "b": ["300 boxes"], "c": ["all black", "ordinary"]}
CLIP = 0.1


@dataclass(frozen=True)
class Settings:
    """How both runs train; ``unit`` is image or group."""

    unit: str = "group"
    engine: str = "fused"
    most: int = 8
    copies: int = 1
    physical_batch_size: int = 4
    rate: float = 0.8
    steps: int = 2
    pixels: str = ""
    gain: float = 1.0


@dataclass
class Seen:
    """What one run did: what went into the door by step, and the state at the end."""

    sums: list[dict[str, Tensor]] = field(default_factory=list)
    state: dict[str, bytes] = field(default_factory=dict)


def write(folder: Path, groups: dict[str, list[str]], name: str) -> Path:
    files = [
        write_image(folder, f"{group}_{number:02}", kind, 7 if kind == "one box" and group == "z" else number)
        for group, kinds in groups.items()
        for number, kind in enumerate(kinds)
    ]
    (folder / f"{name}.txt").write_text("".join(f"{file}\n" for file in files))
    (folder / f"{name}.yaml").write_text(f"path: .\ntrain: {name}.txt\nval: {name}.txt\nnames: [one, two]\n")
    return folder / f"{name}.yaml"


def run(data: Path, how: Settings, models: Path) -> Seen:
    seen = Seen()
    model = detector("end2end group", models).double()
    dataset = DetectionDataset(load_data(data), "train", SIZE, AUGMENTED if how.copies > 1 or how.pixels else None)
    real = dataset.samples

    def samples(index: int, seed: int = 0, copies: int = 1) -> list[dict[str, Any]]:
        found = real(index, seed, copies)
        if how.pixels and dataset.image_files[index].name == "z_01.png":  # one image of the newcomers, no more
            found[0]["img"] = torch.full(found[0]["img"].shape, float(how.pixels))
        return found

    def loss(module: Any, batch: dict[str, Tensor]) -> Tensor:
        return how.gain * PerImageLoss()(module, {**batch, "img": batch["img"].double()})

    def door(value: dict[str, Tensor], *, sensitivity: float, noise_multiplier: float, stream: Any) -> Any:
        assert sensitivity == CLIP
        seen.sums.append({name: tensor.double().clone() for name, tensor in value.items()})
        generator = torch.Generator().manual_seed(len(seen.sums))
        return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in value.items()}

    groups: Sequence[Any] = groups_of(GroupsConfig(regex="^([a-z])_"), dataset.image_files)
    units = UnitExamples(groups if how.unit == "group" else range(len(groups)), how.most, how.copies)
    plan = PrivacyPlan(how.rate, how.steps, 1.3, CLIP, 1e-3, 4, unit=how.unit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "privatize", door)
        patch.setattr(dataset, "samples", samples)
        trainer = PrivateTrainer(
            model,
            loss,
            plan,
            torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9),
            StepLoader(dataset, how.physical_batch_size, units=units),
            len(units),
            seed=3,
            engine=how.engine,
            ema_decay=0.9,
            probe=False,
        )
        list(trainer.run())
    state = trainer.state()
    for part in ("parameters", "frozen", "average"):
        seen.state[part] = b"".join(tensor.numpy().tobytes() for tensor in state[part].values())
    return seen


def distances(folder: Path, newcomers: list[str], how: Settings, models: Path) -> list[float]:
    """Train with and without a group ``z`` of images; return by how many clip norms the sums of each step differ."""
    smaller = run(write(folder, OTHERS, "smaller"), how, models)
    larger = run(write(folder, {**OTHERS, "z": newcomers}, "larger"), how, models)
    assert smaller.state == larger.state, "something went round the door"
    return [length(difference(b, a)) / CLIP for a, b in zip(smaller.sums, larger.sums, strict=True)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(
    "how",
    [
        Settings(),
        Settings(most=2, physical_batch_size=100),
        Settings(copies=3, most=2, physical_batch_size=12),
        Settings(copies=2, physical_batch_size=1),
        Settings("image", copies=4, physical_batch_size=8),
        Settings(engine="opacus", copies=2, most=2, physical_batch_size=9),
        Settings(engine="microbatch", copies=2, most=3),
    ],
    ids=str,
)
def test_one_whole_unit_changes_the_sum_by_at_most_the_clip_norm(how: Settings, models: Path, tmp_path: Path) -> None:
    """On every engine, with several augmentations, with a physical batch that holds many units, one, or part of one."""
    newcomers = ["ordinary", "one box", "300 boxes", "one box", "a box of the whole image"]
    moved = distances(tmp_path, newcomers[: 5 if how.unit == "group" else 1], how, models)
    assert max(moved) <= 1.0
    assert max(moved) > 0.99, "the newcomers did not use up the sensitivity: a dull test"


@pytest.mark.parametrize("pixels", ["nan", "inf"])
@pytest.mark.parametrize("size", [1, 100])
def test_a_unit_with_a_row_that_is_not_finite_adds_nothing(
    pixels: str, size: int, models: Path, tmp_path: Path
) -> None:
    how = Settings(copies=2, physical_batch_size=size, pixels=pixels, rate=1.0)
    assert max(distances(tmp_path, ["ordinary", "ordinary", "one box"], how, models)) <= 1e-6


def test_forty_images_of_one_person_move_an_image_level_sum_by_forty_clip_norms(models: Path, tmp_path: Path) -> None:
    """What unit=image does not protect from, and unit=group does."""
    forty = ["one box"] * 40
    how = Settings("image", rate=1.0, steps=1, most=40, physical_batch_size=40, gain=1e3)  # long gradients, all clipped
    (by_image,) = distances(tmp_path, forty, how, models)
    (by_group,) = distances(tmp_path, forty, replace(how, unit="group", physical_batch_size=4), models)
    assert 39.9 < by_image <= 40.0
    assert 0.99 < by_group <= 1.0


def options(tmp_path: Path, models: Path, **changes: Any) -> dict[str, Any]:
    plan = PrivacyPlan(0.6, 3, 2.0, 1.0, 1e-3, 2, unit="group")
    return {
        "model": str(save_weights(detector("end2end group", models), tmp_path / "start.pt")),
        "data": str(write(tmp_path, OTHERS, "clinic")), "imgsz": 32, "plan": plan, "validation": "off", "workers": 0,
        "physical_batch_size": 3, "output_dir": str(tmp_path / "out"), "tracking": {"enabled": False},
        "privacy": {"groups": {"regex": "^([a-z])_"}, "images_per_group": 2},
        "augment": {"fliplr": 0.5, "multiplicity": 2},
        "budget": {"url": f"sqlite:///{tmp_path / 'budget.db'}"}, **changes,
    }  # fmt: skip


def test_a_run_of_groups_samples_states_and_charges_groups(models: Path, tmp_path: Path) -> None:
    real = PrivacyPlan.sampler

    def sampler(plan: PrivacyPlan, units: int, *parts: Any) -> Any:
        assert units == len(OTHERS), "the coins are not those of the groups"
        return real(plan, units, *parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivacyPlan, "sampler", sampler)
        result = dptrain.train(**options(tmp_path, models))
    statement = result.statement
    assert statement["guarantee"]["unit"] == "group" and statement["dataset"]["groups"] == "file names, by ^([a-z])_"
    assert statement["training"]["images_averaged"] == statement["training"]["augmentations_averaged"] == 2
    assert "one group of images" in (result.output_dir / "statement.md").read_text()
    ledger = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")
    (reading,) = ledger.show()
    assert reading.unit == "group" and reading.epsilon == pytest.approx(result.plan.epsilon())
    by_image = {"plan": PrivacyPlan(0.6, 3, 2.0, 1.0, 1e-3, 2), "privacy": {}, "augment": {}}
    with pytest.raises(BudgetError, match="protects one group, and this run protects one image"):
        dptrain.train(**options(tmp_path, models, **by_image, output_dir=str(tmp_path / "other")))
    from dptrain.statement import check_statement

    assert check_statement(result.output_dir).statement["guarantee"]["unit"] == "group"


def test_a_group_with_images_in_train_and_val_starts_no_run(models: Path, tmp_path: Path) -> None:
    data = write(tmp_path, OTHERS, "pets")
    own = write_image(tmp_path / "val", "a_99", "one box", 99)  # another image of group a
    data.write_text(f"path: .\ntrain: pets.txt\nval: {own.parent}\nnames: [one, two]\n")
    with pytest.raises(DataError, match="group 'a' is in train"):
        dptrain.train(**{**options(tmp_path, models), "data": str(data), "validation": "public"})
    assert not (tmp_path / "out").exists()
