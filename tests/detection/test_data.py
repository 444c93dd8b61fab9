"""The dataset: checked at the door, read without a trace, a pure function of number and seed."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset

from dptrain.detection.data import Augmentation, DetectionDataset, load_data
from dptrain.errors import DataError

AUGMENTATION = Augmentation(
    fliplr=0.5, flipud=0.5, hsv_h=0.02, hsv_s=0.5, hsv_v=0.3, scale=0.4, translate=0.2, crop=0.4
)  # fmt: skip


def refusal(file: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        DetectionDataset(load_data(file), "train", 64, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes())
        if path.is_file()
        else (path.stat().st_mtime_ns, path.stat().st_mode, b"")
        for path in sorted(root.rglob("*"))
    }


@pytest.mark.parametrize("size", [(48, 64), (80, 50), (64, 64), (130, 200)])
def test_samples_are_those_of_ultralytics_validation(make_dataset, size):
    file = make_dataset(size=size)
    ours = DetectionDataset(load_data(file), "train", 64)
    theirs = YOLODataset(
        img_path=str(file.parent / "images" / "train"),
        imgsz=64,
        augment=False,
        data={"names": {0: "green", 1: "blue"}, "channels": 3},
        hyp=get_cfg(),
        task="detect",
    )
    assert len(ours) == len(theirs) == 6
    for index in range(6):
        mine, other = ours.sample(index, seed=index), theirs[index]
        assert mine["img"].dtype == torch.uint8 and mine["img"].is_contiguous()
        torch.testing.assert_close(mine["img"], other["img"], rtol=0, atol=0)
        assert mine["cls"].shape == (len(mine["bboxes"]), 1) and mine["cls"].dtype == torch.float32
        torch.testing.assert_close(mine["cls"], other["cls"].float())
        torch.testing.assert_close(mine["bboxes"], other["bboxes"].float(), rtol=0, atol=1e-6)


def test_nothing_is_written(make_dataset):
    file = make_dataset()
    before = snapshot(file.parent)
    dataset = DetectionDataset(load_data(file), "train", 64, AUGMENTATION)
    for index in range(len(dataset)):
        dataset.sample(index, 1)
    assert snapshot(file.parent) == before


def test_row_and_seed_decide(make_dataset):
    dataset = DetectionDataset(load_data(make_dataset()), "train", 64, AUGMENTATION)
    one, again = dataset.sample(2, 5), pickle.loads(pickle.dumps(dataset)).sample(2, 5)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["img"], dataset.sample(2, 6)["img"])
    flips = Augmentation(fliplr=0.5)
    dataset.augmentation, flipped = flips, []
    for index in range(6):  # images of one step are augmented apart
        plain = DetectionDataset(dataset.data, "train", 64, verify=False).sample(index)["img"]
        flipped.append(not torch.equal(plain, dataset.sample(index, 4)["img"]))
    assert 0 < sum(flipped) < 6
    dataset.augmentation = AUGMENTATION
    huge = dataset.sample(2, 2**200 + 5)  # draws are seeded by whole numbers of any size
    assert not torch.equal(one["img"], huge["img"])
    assert all(len(np.unique(dataset.labels(i)[:, 0])) <= 2 for i in range(6)) and dataset.most_boxes == 2


def test_other_images_do_not_matter(make_dataset):
    """A neighbouring dataset, with one more image at the end, gives every other image the same sample."""
    file = make_dataset()
    before = DetectionDataset(load_data(file), "train", 64, AUGMENTATION)
    want = [before.sample(index, 3) for index in range(6)]
    cv2.imwrite(str(file.parent / "images" / "train" / "zzz.png"), np.full((70, 30, 3), 9, np.uint8))
    (file.parent / "labels" / "train" / "zzz.txt").write_text("1 .5 .5 .9 .9\n" * 3)
    after = DetectionDataset(load_data(file), "train", 64, AUGMENTATION)
    assert len(after) == 7 and len(after.labels(6)) == 1
    for index in range(6):
        assert all(torch.equal(want[index][key], after.sample(index, 3)[key]) for key in want[index])


def test_a_bad_label_or_image_stops_it_at_the_door(make_dataset):
    file = make_dataset()
    label = file.parent / "labels" / "train" / "004.txt"
    kept = label.read_text()
    label.write_text(kept + "\n2 .5 .5 .1 .1")
    assert f"{label}:2: class '2'" in refusal(file)
    label.write_text(kept + "\n0 1.5 .5 .1 .1")
    assert f"{label}:2: box x=1.5" in refusal(file, verify=False)
    label.write_text(kept)
    image = file.parent / "images" / "train" / "003.png"
    image.write_bytes(image.read_bytes()[:500])
    assert str(image) in refusal(file)
    with pytest.raises(DataError, match=r"003\.png"):
        DetectionDataset(load_data(file), "train", 64, verify=False).sample(3, 0)


def test_splits_that_hold_nothing(make_dataset):
    file = make_dataset()
    with pytest.raises(DataError, match="'test' is not declared"):
        DetectionDataset(load_data(file), "test", 64)
    for label in (file.parent / "labels" / "train").iterdir():
        label.unlink()
    message = refusal(file)
    assert "none of the train images has a label file" in message and "000.txt" in message
    (file.parent / "labels" / "train" / "003.txt").touch()
    assert DetectionDataset(load_data(file), "train", 64).most_boxes == 0
    with pytest.raises(DataError, match="imgsz=0"):
        DetectionDataset(load_data(file), "train", 0)
