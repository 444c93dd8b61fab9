"""Images that are of one photo, scan or patient, told from names and look, with the key that groups them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dptrain.datasets.groups import GroupsConfig, check_groups, groups_of
from dptrain.datasets.series import find_series

RF = "".join(f"{i:x}" for i in range(16)) * 2
RECORDINGS = [f"rec{n}_{i:04}.jpg" for n in range(3) for i in range(5)]
NEIGHBOURS = [(0, 1), (1, 2), (5, 6), (10, 11)]

FOUND = {
    "Roboflow's copies": (
        [*(f"a_b_jpg.rf.{n}{RF[1:]}.jpg" for n in range(3)), f"c_1_png.rf.{RF}.jpg", "my_cat.png"], [],
        "copies of one photo", ["a_b"] * 3 + ["c_1", "my_cat"],
    ),
    "frames that Roboflow exported": (
        [f"rec{n}_{i:04}_jpg.rf.{i}{RF[1:]}.jpg" for n in range(2) for i in range(4)], [(0, 1), (4, 5)],
        "pictures of one series", ["rec0"] * 4 + ["rec1"] * 4,
    ),
    "copies of frames": (
        [f"rec{n}_{i:04}_jpg.rf.{c}{RF[1:]}.jpg" for n in range(2) for i in range(4) for c in range(2)],
        [(0, 2), (1, 3), (2, 4), (8, 10), (9, 11)], "pictures of one series", ["rec0"] * 8 + ["rec1"] * 8,
    ),
    "tiles by pixel": (
        [f"scan{n}_{x}_{y}.png" for n in (1, 7) for x in (0, 512, 1024) for y in (0, 512)], [],
        "tiles of one picture", ["scan1"] * 6 + ["scan7"] * 6,
    ),
    "a few tiles of large scans": (
        [f"scan{n}_{x * n}_{x * x * n}.png" for n in (1, 7) for x in (0, 512, 4096)], [],
        "tiles of one picture", ["scan1"] * 3 + ["scan7"] * 3,
    ),
    "tiles by row and column": (
        [f"s{n}_r{x}_c{y}.png" for n in range(2) for x in range(3) for y in range(2)], [],
        "tiles of one picture", ["s0"] * 6 + ["s1"] * 6,
    ),
    "frames": (RECORDINGS, NEIGHBOURS, "pictures of one series", [name[:4] for name in RECORDINGS]),
    "numbered patients": (
        [f"{n:02}-{i}.jpg" for n in range(3) for i in range(5)], NEIGHBOURS,
        "pictures of one series", [f"{n:02}" for n in range(3) for i in range(5)],
    ),
    "numbered photos": (
        [f"{n:02}_jpg.rf.{i}{RF[1:]}.jpg" for n in range(3) for i in range(2)], [],
        "copies of one photo", [f"{n:02}" for n in range(3) for i in range(2)],
    ),
    "folders": (
        [f"rec{n}/{i:04}.jpg" for n in range(3) for i in range(5)], NEIGHBOURS,
        "pictures of one folder", [name[:4] for name in RECORDINGS],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_belongs_together_is_told_with_a_key_that_groups_it(case: str) -> None:
    names, alike, what, groups = FOUND[case]
    images = [Path("/d/images") / name for name in names]
    series = find_series(images, alike)
    assert series is not None and series.what == what
    assert (series.groups, series.images) == (len(set(groups)), sum(groups.count(g) > 1 for g in groups))
    text = str(series)
    assert what in text and series.key in text and "\n" not in text
    match = re.fullmatch(r"privacy\.groups\.(regex|folder)='?(.+?)'?", series.key)
    assert match is not None
    config = GroupsConfig(regex=match[2]) if match[1] == "regex" else GroupsConfig(folder=int(match[2]))
    check_groups(config)
    assert groups_of(config, images) == groups


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        ([f"{i:06}.jpg" for i in range(30)], [(0, 1), (1, 2)]),  # numbers say nothing
        ([f"img_{i:04}.jpg" for i in range(30)], [(0, 1), (1, 2)]),
        (RECORDINGS, []),  # cat_1, cat_2, dog_1: only pictures that look alike make frames of it
        (RECORDINGS, [(0, 7), (1, 12), (2, 3)]),
        ([f"x{i}_jpg.rf.{RF}.jpg" for i in range(5)], []),
        ([f"IMG_2021{i:04}_{i * 977 % 86400:06}.jpg" for i in range(40)], []),
        ([f"2021-{m:02}-{d:02}.jpg" for m in range(1, 4) for d in range(1, 20)], []),
        ([], []),
    ],
)
def test_ordinary_names_tell_nothing(names: list[str], alike: list[tuple[int, int]]) -> None:
    assert find_series([Path("/d/images") / name for name in names], alike) is None
