"""Small datasets in Ultralytics' layout, made afresh for each test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("YOLO_OFFLINE", "true")  # also where a test imports Ultralytics before dptrain
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # likewise OpenCV, which reads it when imported

import cv2


@pytest.fixture(autouse=True, scope="session")
def _ledger_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes a budget.db where the tests are started; runs of one worker share this ledger."""
    folder = tmp_path_factory.mktemp("ledger")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPTRAIN_BUDGET_URL", f"sqlite:///{folder / 'budget.db'}")
        for name in ("DPTRAIN_BUDGET_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        yield


MakeDataset = Callable[..., Path]


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Write ``train`` and ``val`` images of bright squares on noise, and return the ``data.yaml``."""
    return dataset_maker(tmp_path)


def dataset_maker(tmp_path: Path) -> MakeDataset:
    """Return what the fixture gives, for any folder."""

    def make(train: int = 6, val: int = 3, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
        for split, count in (("train", train), ("val", val)):
            # One's val images must not be another's train images: runs of one worker share a ledger.
            rng = np.random.default_rng(seed if split == "train" else [seed, 1])
            images, labels = tmp_path / "images" / split, tmp_path / "labels" / split
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(0, 60, (*size, 3), np.uint8)
                lines = []
                for _ in range(number % 3):  # the first image of three has no object
                    kind = int(rng.integers(2))
                    h, w = (int(v) for v in rng.integers(12, 24, 2))
                    y, x = int(rng.integers(size[0] - h)), int(rng.integers(size[1] - w))
                    picture[y : y + h, x : x + w] = (255, 60, 60) if kind else (60, 255, 60)
                    box = (x + w / 2) / size[1], (y + h / 2) / size[0], w / size[1], h / size[0]
                    lines.append(" ".join(map(str, (kind, *box))))
                cv2.imwrite(str(images / f"{number:03}.png"), picture)
                (labels / f"{number:03}.txt").write_text("\n".join(lines))
        file = tmp_path / "data.yaml"
        file.write_text("train: images/train\nval: images/val\nnames: [green, blue]\n")
        return file

    return make


SMALL = str(Path(__file__).with_name("small.yaml"))  # a model for runs whose subject is not the detector


def run_options(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Keywords of ``dptrain.train`` for a run that takes seconds."""
    return {
        "model": SMALL,
        "imgsz": 64,
        "trainable": "head",
        "physical_batch_size": 2,
        "workers": 0,
        "output_dir": str(tmp_path / "out"),
        **changes,
    }
