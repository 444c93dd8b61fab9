"""Which group an image belongs to: by a table, by a folder or by its name; exactly one, or a line that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain import ConfigError, DataError
from dptrain.datasets.groups import GroupsConfig, check_groups, groups_of
from dptrain.datasets.people import refuse_shared

IMAGES = [Path(f"/data/images/train/{name}.png") for name in ("a/p1_0", "a/p1_1", "b/p2_0")]


def table(tmp_path: Path, text: str, column: str | None = None) -> GroupsConfig:
    (tmp_path / "groups.csv").write_text(text)
    return GroupsConfig(csv=str(tmp_path / "groups.csv"), column=column)


def refusal(groups: GroupsConfig, images: list[Path] = IMAGES) -> str:
    with pytest.raises(DataError) as caught:
        groups_of(groups, images)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_table_of_images(tmp_path: Path) -> None:
    text = "file,group\np1_0.png,x\ntrain/a/p1_1.png, x \n/data/images/train/b/p2_0.png,y\nelsewhere.png,\n"
    assert groups_of(table(tmp_path, text), IMAGES) == ["x", "x", "y"]


def test_a_table_of_labels_has_a_row_an_object_and_a_column_for_the_group(tmp_path: Path) -> None:
    text = 'patient,class,image,x\n7,cat,p1_0.png,1\n7,dog,p1_0.png,2\n\n7,cat,p1_1.png,1\n"8, b",dog,p2_0.png,3\n'
    assert groups_of(table(tmp_path, text, "patient"), IMAGES) == ["7", "7", "8, b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,group\np1_0.png,x\np1_1.png,x\n", "p2_0.png: has no row in"),
        ("file,group\np1_0.png,x\np1_0.png,y\np1_1.png,x\n", ":3: 'p1_0.png' is in group 'y', and in line 2"),
        ("file,group\np1_0.png,\n", ":2: 'p1_0.png' has an empty group"),
        ("name,group\np1_0.png,x\n", ":1: the columns are name, group"),
        ("file,image,group\np1_0.png,p1_0.png,x\n", "exactly one must be called"),
        ("file,patient\np1_0.png,x\n", "0 of them are called 'group'"),
        ("file,group,group\np1_0.png,x,y\n", "2 of them are called 'group'"),
        ("file,group\np1_0.png\n", ":2: 1 columns, and the header has 2"),
        ("", "the columns are none"),
        ("file;group\np1_0.png;x\n", "the columns are file;group (separated by commas)"),
        ('file,group\n"p1_0.png,x\n', "not a table"),
    ],
)
def test_a_table_that_leaves_a_doubt_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(table(tmp_path, text))


def test_a_name_of_two_images_is_refused_until_the_path_tells_them_apart(tmp_path: Path) -> None:
    images = [Path("/d/train/1.png"), Path("/d/val/1.png")]
    assert "'1.png' is the name of 2 images" in refusal(table(tmp_path, "file,group\n1.png,x\n"), images)
    told = table(tmp_path, "file,group\ntrain/1.png,x\nval\\1.png,y\n")
    assert groups_of(told, images) == ["x", "y"]


def test_a_table_that_is_not_there_or_no_text_is_one_line(tmp_path: Path) -> None:
    assert "no such table" in refusal(GroupsConfig(csv=str(tmp_path / "none.csv")))
    (tmp_path / "groups.csv").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(GroupsConfig(csv=str(tmp_path / "groups.csv")))


def test_folders_count_from_the_image() -> None:
    assert groups_of(GroupsConfig(folder=1), IMAGES) == ["a", "a", "b"]
    assert groups_of(GroupsConfig(folder=2), IMAGES) == ["train"] * 3
    assert "no folder 5 levels up" in refusal(GroupsConfig(folder=5))


def test_a_pattern_finds_one_group_in_every_name() -> None:
    assert groups_of(GroupsConfig(regex=r"^(p\d+)_"), IMAGES) == ["p1", "p1", "p2"]
    assert "finds '0' and '1' in 'p1_0.png'" in refusal(GroupsConfig(regex=r"(\d)"))
    assert "finds nothing in" in refusal(GroupsConfig(regex=r"^(q\d+)"))
    assert "exactly one group" in refusal(GroupsConfig(regex=r"^p(x?)"))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (GroupsConfig(), "nothing says"),
        (GroupsConfig(csv="a.csv", folder=1), "groups.csv and privacy.groups.folder says"),
        (GroupsConfig(column="patient", folder=1), "column=patient is a column of"),
        (GroupsConfig(folder=0), "folder=0 must be 1"),
        (GroupsConfig(regex="(a)(b)"), "has 2 groups in parentheses"),
        (GroupsConfig(regex="abc"), "has 0 groups in parentheses"),
        (GroupsConfig(regex="(a"), "is not a regular expression"),
    ],
)
def test_exactly_one_way_to_tell_a_group(groups: GroupsConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_groups(groups)
    assert "\n" not in str(caught.value)


def test_a_group_in_train_and_val_is_refused() -> None:
    train, val = {IMAGES[0]: "x", IMAGES[1]: "x"}, {IMAGES[2]: "y"}
    refuse_shared(train, val)
    with pytest.raises(DataError, match=r"group 'x' is in train \(.*p1_0\.png\) and in val \(.*p2_0\.png\)"):
        refuse_shared(train, {IMAGES[2]: "x"})
