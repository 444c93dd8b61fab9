"""All pictures of one person there or blank, where a picture may show several: from the files to what is published.

The table of who is in which picture is the same in both datasets: fixed-graph neighbours (Ganesh et al. 2025).
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import pytest

import dptrain
from dptrain import BudgetError, BudgetLedger, DataError, PrivacyError, PrivacyPlan
from dptrain.detection.model import save_weights
from dptrain.run import prepare as module
from dptrain.statement import check_statement
from dptrain.statement.facts import FIXED_TABLE, sealed

from .datasets import detector, write_image
from .recording import difference, length
from .whole_runs import published, run_on

PLAN = PrivacyPlan(0.7, 4, 1.0, 0.3, 1e-3, 4, unit="person")
# Who is in each picture. Of z's pictures two are trained on, as one unit, and two show somebody who is in another.
TABLE = {
    "a_0": ["anna"], "a_1": ["anna"], "b_0": ["anna", "ben"], "c_0": ["ben", "cleo"], "c_1": ["ben", "cleo"],
    "z_0": ["zoe"], "z_1": ["zoe"], "z_2": ["zoe", "anna"], "z_3": ["zoe", "ben"],
}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return save_weights(detector("end2end group", folder), folder / "start.pt")


def write(folder: Path, name: str, names: list[str], table: dict[str, list[str]] | None = None) -> Path:
    files = [write_image(folder, picture, "300 boxes", number) for number, picture in enumerate(TABLE)]
    kept = [file for file in files if file.stem in names]
    (folder / f"{name}.txt").write_text("".join(f"{file}\n" for file in kept))
    (folder / f"{name}.yaml").write_text(f"train: {folder}/{name}.txt\nnames: [one, two]\n")
    rows = "".join(f"{picture}.png,{one}\n" for picture, people in (table or TABLE).items() for one in people)
    (folder / "people.csv").write_text(f"file,person\n{rows}")
    return folder / f"{name}.yaml"


def privacy(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"plan": PLAN, "privacy": {"groups": {"csv": str(folder / "people.csv")}, "images_per_group": 8}, **changes}


def test_all_pictures_of_a_person_move_the_sum_by_one_clip_norm_and_nothing_else_differs(
    start: Path, tmp_path: Path
) -> None:
    """Zoe is in four pictures, with anna and ben in two of them: without all four, the table being the same."""
    doors, files = [], []
    for name, pictures in (("smaller", [p for p in TABLE if not p.startswith("z")]), ("larger", list(TABLE))):
        data = write(tmp_path, name, pictures)
        with pytest.MonkeyPatch.context() as patch:
            where, newcomers = tmp_path / f"run {name}", int(name == "larger")
            result, door = run_on(data, start, where, patch, newcomers, **privacy(tmp_path))
        doors.append(door)
        files.append(published(where))
        assert result.statement["guarantee"]["neighbouring_relation"] == FIXED_TABLE
    one, other = doors
    assert one.stated == other.stated == [(0.3, 1.0)] * 4
    assert one.draws == other.draws, "others have other coins"
    moved = [length(difference(b, a)) / 0.3 for a, b in zip(one.values, other.values, strict=True)]
    assert max(moved) <= 1 + 1e-4
    assert max(moved) > 0.99, "zoe did not use up the sensitivity: a dull test"
    assert files[0] == files[1], "something went round the door"


def options(
    folder: Path, start: Path, pictures: list[str], table: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    return {
        "model": str(start), "data": str(write(folder, "pets", pictures, table)), "imgsz": 32, "validation": "off",
        "workers": 0, "physical_batch_size": 3, "tracking": {"enabled": False}, "output_dir": str(folder / "out"),
        "budget": {"url": f"sqlite:///{folder / 'budget.db'}"}, **privacy(folder),
    }  # fmt: skip


def test_a_run_states_and_charges_every_person_of_the_chosen_pictures(start: Path, tmp_path: Path) -> None:
    real = PrivacyPlan.sampler

    def sampler(plan: PrivacyPlan, units: int, *parts: Any) -> Any:
        assert units == 3, "anna; ben and cleo; zoe"
        return real(plan, units, *parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivacyPlan, "sampler", sampler)
        result = dptrain.train(**options(tmp_path, start, list(TABLE)))
    statement = check_statement(result.output_dir).statement
    assert statement["guarantee"]["unit"] == "person"
    assert statement["guarantee"]["neighbouring_relation"] == FIXED_TABLE
    assert any("chose the pictures that were trained on" in text for text in statement["assumptions"])
    assert statement["dataset"]["groups"] == "column person of people.csv"
    text = (result.output_dir / "statement.md").read_text()
    assert "for all pictures of one person, there or blank, where it is known who is in which" in text
    assert "Who is in which picture is taken as known" in text
    assert "person more or less" not in text
    told = (result.output_dir / "owner" / "dataset.txt").read_text()
    assert "6 of 9 train images are trained on, as 3 units" in told
    ledger = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")
    (reading,) = ledger.show()
    assert reading.unit == "person"
    assert reading.epsilon == pytest.approx(PLAN.epsilon())
    # Cleo on a new picture of her own: she has spent both runs, whoever was with her in the first.
    other = tmp_path / "other"
    file = write_image(other, "n_0", "one box", 77)
    (other / "pets.yaml").write_text(f"train: {file.parent}\nnames: [one, two]\n")
    (other / "people.csv").write_text("file,person\nn_0.png,cleo\n")
    again = options(tmp_path, start, list(TABLE)) | {"data": str(other / "pets.yaml"), "output_dir": str(other / "out")}
    dptrain.train(**again | privacy(other))
    both = PrivacyPlan(0.7, 8, 1.0, 0.3, 1e-3, 4).epsilon()
    assert max(reading.epsilon for reading in ledger.show()) == pytest.approx(both)
    with pytest.raises(BudgetError, match="protects one person, and this run protects one image"):
        dptrain.train(
            **options(tmp_path, start, list(TABLE))
            | {"plan": PrivacyPlan(0.7, 4, 1.0, 0.3, 1e-3, 4), "privacy": {}, "output_dir": str(tmp_path / "three")}
        )


def test_a_picture_with_other_people_than_before_is_refused(start: Path, tmp_path: Path) -> None:
    dptrain.train(**options(tmp_path, start, list(TABLE)))
    table = TABLE | {"c_0": ["ben", "cleo", "dora"], "c_1": ["ben", "cleo", "dora"]}
    with pytest.raises(BudgetError, match="known in another group"):
        dptrain.train(**options(tmp_path, start, list(TABLE), table) | {"output_dir": str(tmp_path / "two")})


@pytest.mark.parametrize("picture", ["b_0", "a_0"])
def test_a_picture_that_is_left_out_is_private_all_the_same(picture: str, start: Path, tmp_path: Path) -> None:
    """Not as a val image, nor as a copy under the name of somebody else."""
    given = options(tmp_path, start, list(TABLE))
    copy = tmp_path / "val" / "images" / "x.png"
    copy.parent.mkdir(parents=True)
    image = cv2.imread(str(tmp_path / "images" / f"{picture}.png"))
    cv2.imwrite(str(copy), image[::-1])
    (copy.parents[1] / "labels").mkdir()
    (copy.parents[1] / "labels" / "x.txt").write_text("0 .5 .5 .1 .1\n")
    data = Path(given["data"])
    data.write_text(data.read_text() + f"val: {copy.parent}\n")
    with (tmp_path / "people.csv").open("a") as rows:
        rows.write("x.png,other\n")
    with pytest.raises(DataError, match=rf"{picture}\.png: is a training image and one of the val images"):
        dptrain.train(**given | {"validation": "public"})
    cv2.imwrite(str(tmp_path / "images" / "x.png"), image[::-1])
    (tmp_path / "pets.txt").write_text((tmp_path / "pets.txt").read_text() + f"{tmp_path}/images/x.png\n")
    data.write_text(f"train: {tmp_path}/pets.txt\nnames: [one, two]\n")
    with pytest.raises(DataError, match="is the same picture as"):
        dptrain.train(**given)
    assert not (tmp_path / "out").exists()


def test_a_val_picture_of_somebody_whom_the_ledger_protects_is_refused(start: Path, tmp_path: Path) -> None:
    """Whoever is beside them, and in whatever company the ledger knows them."""
    dptrain.train(**options(tmp_path, start, list(TABLE)))
    other = tmp_path / "other"
    for number, name in enumerate("tv"):
        write_image(other / name, f"{name}_0", "one box", 50 + number)
    (other / "pets.yaml").write_text(f"train: {other}/t/images\nval: {other}/v/images\nnames: [one, two]\n")
    (other / "people.csv").write_text("file,person\nt_0.png,ned\nv_0.png,cleo\nv_0.png,olga\n")
    given = options(tmp_path, start, list(TABLE)) | {"data": str(other / "pets.yaml"), "validation": "public"}
    with pytest.raises(PrivacyError, match=r"v_0\.png: is one of the val images.*protects it or its group"):
        dptrain.train(**given | privacy(other) | {"output_dir": str(tmp_path / "two")})
    (other / "people.csv").write_text("file,person\nt_0.png,ned\nv_0.png,olga\n")
    dptrain.train(**given | privacy(other) | {"output_dir": str(tmp_path / "three")})


def test_a_statement_of_people_cannot_pass_for_one_of_groups(start: Path, tmp_path: Path) -> None:
    result = dptrain.train(**options(tmp_path, start, list(TABLE)))
    file = result.output_dir / "statement.json"
    statement = json.loads(file.read_text())
    for name, other in (("neighbouring_relation", "add or remove one unit"), ("unit", "group")):
        file.write_text(json.dumps(sealed(statement | {"guarantee": statement["guarantee"] | {name: other}})))
        with pytest.raises(PrivacyError, match=rf"guarantee\.{name}="):
            check_statement(result.output_dir)


def test_no_two_units_have_a_person_in_common_in_any_run(start: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    real = module._units

    def units(config: Any, groups: Any, pictures: Any, images: int) -> Any:
        seen.append((groups, list(pictures)))
        return real(config, groups, pictures, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_units", units)
        dptrain.train(**options(tmp_path, start, list(TABLE)))
    groups, files = seen[0]
    assert [file.stem for file in files] == ["a_0", "a_1", "c_0", "c_1", "z_0", "z_1"]
    people = {frozenset(TABLE[file.stem]) for file in files}
    assert len(set(groups)) == len(people)
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(people, 2))
