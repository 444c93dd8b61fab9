"""Several people in one picture: which pictures are trained on, so that each person is in one privacy unit at most.

This is the multi-attribution model with fixed-graph neighbours (Ganesh et al. 2025): who is in which picture is a table
that is known, and the same in neighbouring datasets; what is protected is what a person's pictures show. Which pictures
are chosen is a function of that table alone. Of a table with or without one person it would be another choice, for
others too, so adding or removing rows of the table is not covered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError

_APART = "\n"  # no name holds it


class People(str):
    """Those who are in one picture, as the name of a privacy unit: of all pictures that show exactly them.

    Attributes:
        trained: Whether pictures of exactly these people are chosen.
    """

    trained: bool

    @classmethod
    def of(cls, names: Iterable[str], trained: bool = True) -> People:
        """The people of these names."""
        people = cls(_APART.join(sorted(names)))
        people.trained = trained
        return people

    @property
    def names(self) -> tuple[str, ...]:
        """Each of them."""
        return tuple(self.split(_APART))


def names_in(group: str) -> tuple[str, ...]:
    """Return whose guarantee a unit's is: the group itself, or each of the people."""
    return group.names if isinstance(group, People) else (group,)


def choose(pictures: Iterable[frozenset[str]]) -> set[frozenset[str]]:
    """Return sets of people of whom none is in two: pictures of exactly one of these sets are trained on, as one unit.

    Greedily: first sets of few people, of these the ones with most pictures, of these by name. No order of rows, and
    nothing but who is in which picture, has a part in it.

    Args:
        pictures: Who is in each picture of the table.
    """
    counts = Counter(pictures)
    chosen: set[frozenset[str]] = set()
    taken: set[str] = set()
    for people in sorted(counts, key=lambda names: (len(names), -counts[names], sorted(names))):
        if taken.isdisjoint(people):
            chosen.add(people)
            taken |= people
    return chosen


def refuse_shared(train: Mapping[Path, str], val: Mapping[Path, str]) -> None:
    """Refuse a group, or a person, with images in train and in val: their metrics would leave the run without noise.

    Raises:
        DataError: It names the group and an image of either split.
    """
    first = {name: image for image, group in reversed(list(train.items())) for name in names_in(group)}
    for image, group in val.items():
        for name in names_in(group):
            if name in first:
                what = "person" if isinstance(group, People) else "group"
                raise DataError(
                    f"{what} {name!r} is in train ({first[name]}) and in val ({image}): its metrics would be released "
                    "without noise; keep all of its images in one split"
                )
