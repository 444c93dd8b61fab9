"""A detector that is asked for redaction: no score above the threshold is lost, and boxes lie where things are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dptrain.detection.evaluate import predict
from dptrain.detection.finding import Finder
from dptrain.detection.model import load_model
from dptrain.errors import ConfigError, ModelError
from experiments.digits.scenes import scene

WEIGHTS = Path(__file__).resolve().parents[2] / "experiments/digits/public_start.pt"


def scenes(count: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(scene(np.random.default_rng([9, n]))[0][..., ::-1]) for n in range(count)]


def test_a_box_counts_for_every_class_that_reaches_the_threshold_not_only_for_its_best() -> None:
    """A face that looks a little more like a head must still be redacted where faces are asked for."""
    finder = Finder(WEIGHTS, imgsz=128, conf=0.02)
    batch = finder.batch([finder.prepare(image) for image in scenes(12)])
    with torch.no_grad():
        raw = finder._detector(batch)
    scores = (raw[0] if isinstance(raw, tuple) else raw)[:, 4:14].amax(2)
    for picture, rows in enumerate(finder.forward(batch)):
        found = set(rows[:, 5].int().tolist())
        assert found == set((scores[picture] > 0.02).nonzero().flatten().tolist())
    alone = Finder(WEIGHTS, ["3"], imgsz=128, conf=0.02)
    for picture, rows in enumerate(alone.forward(batch)):
        assert bool(len(rows)) == bool(scores[picture, 3] > 0.02)


def test_boxes_are_those_of_predict_in_pixels_of_the_picture(tmp_path: Path) -> None:
    import cv2

    picture = cv2.resize(scenes(1)[0], (300, 300))
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (expected,) = predict(load_model(WEIGHTS), [tmp_path / "a.png"], 128, conf=0.3)
    finder = Finder(WEIGHTS, imgsz=128, conf=0.3)
    (found,) = finder.find([finder.prepare(picture)])
    assert len(expected) and found[: len(expected), 5].tolist() == expected[:, 5].tolist()
    assert np.allclose(found[: len(expected), :4], expected[:, :4], atol=1.5)


@pytest.mark.parametrize("size", [(128, 400), (400, 128), (33, 640), (5, 5)])
def test_a_picture_of_any_shape_is_not_distorted(size: tuple[int, int]) -> None:
    finder = Finder(WEIGHTS, imgsz=128)
    picture = finder.prepare(np.full((*size, 3), 7, np.uint8))
    assert all(side % 32 == 0 and side <= 128 for side in picture.planes.shape[1:])
    inside = (picture.planes[0] == 7).nonzero()
    assert (inside[0].max() + 1 - inside[0].min(), inside[1].max() + 1 - inside[1].min()) == (
        picture.place.height, picture.place.width,
    )  # fmt: skip
    assert abs(picture.place.height / picture.place.width / (size[0] / size[1]) - 1) < 0.2


def test_weights_without_upright_boxes_and_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import OBBModel

    torch.save({"model": OBBModel("yolov8n-obb.yaml", nc=2, verbose=False)}, tmp_path / "obb.pt")
    with pytest.raises(ModelError, match="upright boxes are needed"):
        Finder(tmp_path / "obb.pt")
    with pytest.raises(ConfigError, match="multiple of 32"):
        Finder(WEIGHTS, imgsz=100)


@pytest.mark.parametrize("kind", ["seg", "pose"])
def test_segmentation_and_pose_weights_find_boxes_too(kind: str, tmp_path: Path) -> None:
    """Weights for faces are often pose weights."""
    from ultralytics.nn.tasks import PoseModel, SegmentationModel

    torch.manual_seed(0)
    model = (SegmentationModel if kind == "seg" else PoseModel)(f"yolov8n-{kind}.yaml", verbose=False)
    model.names = dict(enumerate(str(n) for n in range(model.model[-1].nc)))
    with torch.no_grad():
        for branch in model.model[-1].cv3:
            branch[-1].bias.fill_(0.0)
    torch.save({"model": model}, tmp_path / "w.pt")
    finder = Finder(tmp_path / "w.pt", ["0"], imgsz=64, conf=0.3)
    (found,) = finder.find([finder.prepare(scenes(1)[0])])
    assert found.shape[1] == 6 and len(found) > 0 and set(found[:, 5]) == {0.0}
    assert (found[:, :4] >= 0).all() and (found[:, :4] <= 128).all()
