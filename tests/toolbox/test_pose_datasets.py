"""Every tool that writes a copy of a dataset says in its data.yaml that the labels have keypoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dptrain.datasets.labels import label_path, read_labels
from dptrain.datasets.sources import DataConfig, load_data
from dptrain.errors import DataError
from dptrain.toolbox.checking import check
from dptrain.toolbox.perturbation.export import export_perturbed
from dptrain.toolbox.redaction import redact
from dptrain.toolbox.scrubbing import scrub
from dptrain.toolbox.seal import dataset_members
from tests.conftest import MakeDataset


@pytest.fixture
def pose(make_dataset: MakeDataset) -> Path:
    file = make_dataset()
    file.write_text(f"{file.read_text()}kpt_shape: [2, 3]\n")
    for number, label in enumerate(sorted((file.parent / "labels").rglob("*.txt"))):
        label.write_text(f"1 0.5 0.{number + 1} 0.25 0.125 0.45 0.45 1 0.55 0.55 2\n")
    return file


def boxes(data: DataConfig) -> list[np.ndarray]:
    found = [read_labels(label_path(image), 2, data.keypoints) for image in (*data.train, *data.val)]
    return sorted((rows for rows in found if rows is not None), key=lambda rows: rows[0, 2])


@pytest.mark.parametrize("tool", ["perturb", "scrub", "redact", "redact the folder", "seal"])
def test_a_copy_of_a_pose_dataset_has_the_same_boxes(pose: Path, tmp_path_factory, tool: str) -> None:
    new = tmp_path_factory.mktemp("copy") / "new"
    if tool == "perturb":
        export_perturbed(pose, new, kind="noise", level=10.0)
    elif tool == "scrub":
        scrub(pose, new)
    elif tool == "seal":
        for name, content in dataset_members(load_data(pose)):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    else:
        redact(pose if tool == "redact" else pose.parent, new, regions=["0,0,4,4"])
    copy = load_data(new / "data.yaml")
    assert copy.kpt_shape == (2, 3) and len(copy.train) == 6
    np.testing.assert_array_equal(boxes(copy), boxes(load_data(pose)))


def test_a_check_reads_the_boxes_and_not_the_keypoints(pose: Path) -> None:
    report = check(pose)
    assert report.counts()["label error"] == 0
    assert report.boxes["train"] == {"green": 0, "blue": 6}
    pose.write_text(pose.read_text().replace("kpt_shape: [2, 3]", ""))
    for label in (pose.parent / "labels").rglob("*.txt"):
        label.write_text("1 0.5 0.5 0.25 0.125 0.45 0.45 1 0.55 0.55 1\n0 0.2 0.3 0.25 0.125 0.1 0.1 1 0.2 0.2 0\n")
    texts = [finding.text for finding in check(pose).findings if finding.kind == "label error"]
    assert sum("look like a box with 2 keypoints" in text and "kpt_shape: [2, 3]" in text for text in texts) == 1
    for label in (pose.parent / "labels").rglob("*.txt"):  # of an object that is cut off by a corner
        label.write_text("1 .8 .9 .9 .8 .95 .8 1 .85 .9 1\n0 .1 .1 .2 .3 .3 .2\n")
    assert not any("keypoint" in finding.text for finding in check(pose).findings)
    pose.write_text(f"{pose.read_text()}kpt_shape: [two, 3]\n")
    with pytest.raises(DataError, match="kpt_shape"):
        check(pose)
