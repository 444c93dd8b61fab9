"""``dptrain rehearse``: from the command line to the experiment that a private run trains with."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain.commands.main import main

from ..conftest import SMALL, MakeDataset


def test_a_rehearsal_leaves_a_table_a_picture_and_an_experiment(
    make_dataset: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rehearsal"
    common = [f"model={SMALL}", "imgsz=64", "workers=0", "device=cpu", "tracking.enabled=false", "budget.url=null"]
    stand_in = [f"data={make_dataset(6, 3)}", "steps=2", "batch=50", "physical_batch_size=4"]
    asked = ["privacy.epsilon=8", "privacy.dataset_size=400", "sizes=400", "epsilons=8,2", f"output_dir={folder}"]
    assert main(["rehearse", *common, *stand_in, *asked]) == 0
    said = capsys.readouterr().out
    assert "3 rehearsals" in said and "400 images, epsilon 8" in said and "experiment=rehearsed" in said
    assert {file.name for file in folder.iterdir()} == {"rehearsal.json", "rehearsal.png", "experiment"}
    assert main(["rehearse", *common, *stand_in, *asked]) == 0
    assert capsys.readouterr().out.count("(from before)") == 3
    chosen = ["--config-dir", str(folder), "experiment=rehearsed", f"data={tmp_path / 'data.yaml'}"]
    assert main(["train", *common, *chosen, f"output_dir={tmp_path / 'run'}"]) == 0
    assert "2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["privacy.epsilon=8"], "privacy.dataset_size is not set"),
        (["privacy.epsilon=8", "sizes=many"], "sizes=many is not a list of numbers"),
        (["-m"], "a rehearsal is not swept"),
        (["mosaic=1"], "augment.mosaic"),
    ],
)
def test_what_cannot_be_is_one_line(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rehearse", f"model={SMALL}", "data=x.yaml", *given]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_help_says_that_the_images_must_be_public(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rehearse", "--help"]) == 0
    assert "PUBLIC images" in capsys.readouterr().out
