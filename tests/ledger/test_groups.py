"""What a ledger charges where groups are protected: the group, under its name, and each of its pictures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from dptrain import BudgetError, BudgetLedger, DataError, PrivacyPlan
from dptrain.ledger.manifest import Manifest, Picture, from_pictures

from .pictures import hashed, pictures
from .test_manifest import photos

PLAN = PrivacyPlan(0.1, 100, 1.5, 1.0, 1e-5, 10, unit="group")


def grouped(ledger: BudgetLedger, groups: dict[int, str], labels: str = "") -> Manifest:
    """The manifest of numbered pictures, each in a group."""
    made = [Picture(hashed(f"file {n}"), hashed(f"unit {n}"), hashed(labels)) for n in groups]
    return from_pictures(ledger._store.key, made, groups=list(groups.values()))


def reserve(ledger: BudgetLedger, manifest: Manifest, unit: str = "group", data_name: str = "clinic") -> str:
    charge = ledger.reserve(PLAN.event(), manifest, data_name=data_name, delta=PLAN.delta, unit=unit)
    charge.settle(PLAN.steps)
    return charge.dataset


def spent(ledger: BudgetLedger, name: str = "clinic") -> float:
    return ledger.show(name)[0].epsilon


def runs(count: int) -> float:
    return PrivacyPlan(0.1, 100 * count, 1.5, 1.0, 1e-5, 10).epsilon()


def test_a_group_that_gets_new_pictures_keeps_what_it_has_spent(ledger: BudgetLedger) -> None:
    """Two runs on different pictures of the same patients have cost these patients two runs."""
    reserve(ledger, grouped(ledger, {1: "p", 2: "p", 3: "q"}))
    assert spent(ledger) == pytest.approx(runs(1), rel=1e-6)
    ledger.create("later", epsilon=10 * runs(2), delta=1e-5, unit="group", manifest=grouped(ledger, {7: "p", 8: "q"}))
    reserve(ledger, grouped(ledger, {7: "p", 8: "q"}))
    assert spent(ledger, "later") == pytest.approx(runs(2), rel=1e-6)
    assert ledger.verify().sound


def test_a_picture_in_another_group_or_under_another_name_of_it_is_refused(ledger: BudgetLedger) -> None:
    reserve(ledger, grouped(ledger, {1: "p", 2: "p", 3: "q"}))
    for changed in ({1: "p", 2: "q", 3: "q"}, {1: "new", 2: "new", 3: "q"}, {2: "p2"}):
        with pytest.raises(BudgetError, match="known in another group"):
            reserve(ledger, grouped(ledger, changed))
    reserve(ledger, grouped(ledger, {1: "p", 4: "r"}))
    assert spent(ledger) == pytest.approx(runs(2), rel=1e-6)


@pytest.mark.parametrize("first", ["image", "group"])
def test_pictures_are_charged_under_one_unit_only(ledger: BudgetLedger, first: str) -> None:
    """Neither is a charge of the other: an image-level run costs a group of forty up to forty times as much."""
    both = {"image": pictures(ledger, [1, 2, 3]), "group": grouped(ledger, {3: "p", 4: "p", 5: "q", 6: "r", 7: "r"})}
    other = "group" if first == "image" else "image"
    reserve(ledger, both[first], first)
    for ask in (
        lambda: reserve(ledger, both[other], other, "another name"),
        lambda: ledger.create("another", epsilon=8, delta=1e-5, unit=other, manifest=both[other]),
    ):
        with pytest.raises(BudgetError, match=f"protects one {first}, and this run protects one {other}") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert len(ledger.show()) == 1


@pytest.mark.parametrize("unit", ["image", "group"])
def test_the_unit_of_a_charge_is_that_of_its_manifest(ledger: BudgetLedger, unit: str) -> None:
    other = pictures(ledger, [1]) if unit == "group" else grouped(ledger, {1: "p"})
    with pytest.raises(BudgetError, match=f"unit={unit} and the manifest is of"):
        reserve(ledger, other, unit)


def test_changes_are_counted_in_pictures(ledger: BudgetLedger) -> None:
    before = grouped(ledger, {1: "p", 2: "p", 3: "q"})
    now = grouped(ledger, {1: "p", 4: "s", 5: "s"})
    changes = now.changes_since(before.units)
    assert (changes.added, changes.removed, changes.relabelled) == (2, 2, 0)
    assert not before.changes_since(before.units)
    moved = grouped(ledger, {1: "p", 2: "q", 3: "q"}).changes_since(before.units)
    assert (moved.added, moved.regrouped, str(moved)) == (0, 1, "1 image in another group")
    assert grouped(ledger, {1: "p", 2: "p", 3: "q"}).digest == before.digest != pictures(ledger, [1, 2, 3]).digest


def test_the_same_picture_in_two_groups_is_refused(ledger: BudgetLedger, tmp_path: Path) -> None:
    folder = photos(tmp_path / "a")
    shutil.copy(folder / "images" / "0.jpg", folder / "images" / "9.jpg")
    files: Sequence[Path] = sorted((folder / "images").iterdir())
    assert ledger.manifest(files, groups=["p", "p", "q", "q", "p"]).unit == "group"
    with pytest.raises(DataError, match=r"9\.jpg: is the same picture as .*0\.jpg, .* are in groups 'r' and 'p'"):
        ledger.manifest(files, groups=["p", "p", "q", "q", "r"])
