"""Several people in one picture: each is in one unit at most, by the table alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dptrain import ConfigError, DataError, PrivacyPlan
from dptrain.datasets.grouping import grouped
from dptrain.datasets.groups import GroupsConfig
from dptrain.datasets.people import People, choose, names_in, refuse_shared
from dptrain.datasets.people_table import people_in
from dptrain.datasets.sources import DataConfig
from dptrain.settings import resolve as settings

IMAGES = [Path(f"/data/images/train/{name}.png") for name in ("1", "2", "3", "4", "5")]
ROWS = "file,person\n1.png,anna\n2.png,anna\n2.png,ben\n3.png,ben\n3.png,cleo\n4.png,cleo\n4.png,ben\n5.png,dora\n"


def table(tmp_path: Path, text: str = ROWS) -> GroupsConfig:
    (tmp_path / "people.csv").write_text(text)
    return GroupsConfig(csv=str(tmp_path / "people.csv"))


def refusal(groups: GroupsConfig, images: list[Path] = IMAGES) -> str:
    with pytest.raises(DataError) as caught:
        people_in(groups, images)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sets(*pictures: str) -> list[frozenset[str]]:
    return [frozenset(picture) for picture in pictures]


def test_nobody_is_in_two_units_and_every_picture_of_a_unit_shows_the_same_people() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pictures = [frozenset(rng.choice(list("abcdefgh"), rng.integers(1, 4)).tolist()) for _ in range(12)]
        chosen = choose(pictures)
        assert chosen <= set(pictures)
        assert all(one.isdisjoint(other) for one, other in itertools.combinations(chosen, 2))
        for left in set(pictures) - chosen:  # and no picture is left out without need
            assert any(left & people for people in chosen)


def test_pictures_of_few_people_come_first_then_the_people_of_most_pictures() -> None:
    assert choose(sets("ab", "ab", "a", "cd", "ce", "ce")) == set(sets("a", "ce"))
    assert choose(sets("ab", "bc")) == set(sets("ab"))  # by name, where nothing else tells


def test_the_order_of_rows_makes_no_difference(tmp_path: Path) -> None:
    head, *rows = ROWS.splitlines()
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(rows)
        found = people_in(table(tmp_path, "\n".join([head, *shuffled])), IMAGES)
        assert [people.names for people in found] == [
            ("anna",), ("anna", "ben"), ("ben", "cleo"), ("ben", "cleo"), ("dora",)
        ]  # fmt: skip
        assert [people.trained for people in found] == [True, False, True, True, True]


PAIRS = "file,person\n" + "".join(
    f"{n}.png,{one}\n" for n, two in enumerate(("ab", "ab", "bc", "cd", "de"), 1) for one in two
)


@pytest.mark.parametrize("text", [ROWS, PAIRS])
def test_which_files_are_there_makes_no_difference(tmp_path: Path, text: str) -> None:
    """A neighbour has the same table, and none of a person's pictures: all others are chosen as before."""
    whole = dict(zip(IMAGES, people_in(table(tmp_path, text), IMAGES), strict=True))
    for person in sorted({name for group in whole.values() for name in group.names}):
        there = [image for image in IMAGES if person not in whole[image].names]
        part = dict(zip(there, people_in(table(tmp_path, text), there), strict=True))
        assert {image: group.trained for image, group in part.items()} == {i: whole[i].trained for i in there}


def test_a_table_without_a_person_is_another_choice_for_others() -> None:
    """Why the guarantee is for a fixed table: with her rows gone, pictures of others change."""
    pictures = sets("a", "ab", "bc")
    without = [people - {"a"} for people in pictures if people - {"a"}]
    assert choose(pictures) == set(sets("a", "bc"))
    assert choose(without) == set(sets("b"))  # c is in no unit now


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,person\n1.png,anna\n", "2.png: has no row in"),
        (ROWS + "1.png,\n", ":10: '1.png' has an empty person: name everybody who is in it"),
        (ROWS + 'elsewhere.png,"a\nb"\n', "has a control character in its person"),
        (ROWS + "train/1.png,ben\n", ":10: 'train/1.png' is the picture that line 2 calls '1.png'"),
        (ROWS.replace("person", "patient"), "0 of them are called 'person'"),
    ],
)
def test_a_table_that_leaves_a_doubt_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(table(tmp_path, text))


def test_a_name_of_two_images_is_refused(tmp_path: Path) -> None:
    images = [Path("/d/train/1.png"), Path("/d/val/1.png")]
    assert "'1.png' is the name of 2 images" in refusal(table(tmp_path, "file,person\n1.png,a\n"), images)


def test_what_is_left_out_is_known_and_told(tmp_path: Path) -> None:
    data = DataConfig(Path("/data"), {0: "cat"}, tuple(IMAGES))
    found = grouped(table(tmp_path), "person", data, evaluates=False)
    assert found.data.train == (IMAGES[0], *IMAGES[2:])
    assert list(found.left_out) == [IMAGES[1]]
    assert "4 of 5 train images are trained on, as 3 units" in found.notes[0]
    assert "0 of 4 people are in none" in found.notes[0]
    with pytest.raises(DataError, match="chooses none of the train images"):
        grouped(table(tmp_path, ROWS), "person", DataConfig(Path("/data"), {0: "cat"}, (IMAGES[1],)), evaluates=False)


def test_a_person_in_train_and_val_is_refused_also_one_whose_pictures_are_left_out() -> None:
    train = {IMAGES[0]: People.of("a"), IMAGES[1]: People.of("ab", trained=False)}
    refuse_shared(train, {IMAGES[2]: People.of("cd")})
    with pytest.raises(DataError, match=r"person 'b' is in train \(.*2\.png\) and in val \(.*3\.png\)"):
        refuse_shared(train, {IMAGES[2]: People.of("bc")})


def test_people_are_each_of_them_and_a_group_is_itself() -> None:
    assert names_in(People.of(["ben", "anna"])) == ("anna", "ben")
    assert names_in("p\n1") == ("p\n1",)


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({}, "nothing says which group an image is in"),
        ({"groups": {"folder": 1}}, "privacy.unit=person needs a table"),
        ({"groups": {"csv": "a.csv"}, "same_picture": "one_unit"}, "has no effect with privacy.unit=person"),
        ({"groups": {"csv": "a.csv"}, "noise": "banded"}, "privacy.noise=banded with privacy.unit=person"),
    ],
)
def test_what_cannot_be_with_people(privacy: dict, said: str) -> None:
    given = {"unit": "person", "noise_multiplier": 1.0, "dataset_size": 100, **privacy}
    with pytest.raises(ConfigError, match=said) as caught:
        settings.resolve(settings.from_kwargs(model="yolo26n.yaml", data="pets.yaml", steps=10, privacy=given))
    assert "\n" not in str(caught.value)


def test_a_plan_of_people_is_accounted_as_any_plan_of_units() -> None:
    plans = [PrivacyPlan(0.1, 50, 1.5, 1.0, 1e-5, 10, unit=unit) for unit in ("image", "person")]
    assert plans[0].event() == plans[1].event()
