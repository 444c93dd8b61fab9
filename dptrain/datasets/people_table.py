"""The table of who is in which picture: a row for each person in each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import DataError, is_control
from .groups import GroupsConfig, Parts, ends_with, parts_of, place_of, table_rows
from .people import People, choose

COLUMN = "person"


def people_in(groups: GroupsConfig, images: Sequence[Path]) -> list[People]:
    """Return who is in each image, by a table with a row for each person in it, and whether it is trained on.

    Args:
        groups: With a table. Rows of files that are not there count for the choice as well: else it would depend on
            which files are there.
        images: Of all splits that are compared.

    Raises:
        DataError: An image has no row, a row no person; or a picture is written in two ways.
    """
    assert groups.csv is not None
    file, column = place_of(groups.csv), groups.column or COLUMN
    table, first = _table(file, column)
    chosen = choose(table.values())
    found: dict[Path, Parts] = {}
    for parts, image in _meant(file, images, first):
        if found.setdefault(image, parts) != parts:
            raise DataError(
                f"{file}:{first[parts]}: '{'/'.join(parts)}' is the picture that line {first[found[image]]} calls "
                f"'{'/'.join(found[image])}': write each picture in one way"
            )
    for image in images:
        if image not in found:
            raise DataError(
                f"{image}: has no row in {file}, and every picture needs a row for each person in it; add it"
            )
    return [People.of(table[found[image]], table[found[image]] in chosen) for image in images]


def _table(file: Path, column: str) -> tuple[dict[Parts, frozenset[str]], dict[Parts, int]]:
    """Who is in each picture of the table, and the first line of each picture."""
    people: dict[Parts, set[str]] = defaultdict(set)
    first: dict[Parts, int] = {}
    for number, name, person in table_rows(file, column):
        if not person or any(map(is_control, person)):
            raise DataError(
                f"{file}:{number}: '{name}' has {'an empty' if not person else 'a control character in its'} {column}: "
                "name everybody who is in it, and give a picture of nobody a name of its own"
            )
        parts = parts_of(name)
        people[parts].add(person)
        first.setdefault(parts, number)
    return {parts: frozenset(names) for parts, names in people.items()}, first


def _meant(file: Path, images: Sequence[Path], first: Mapping[Parts, int]) -> Iterator[tuple[Parts, Path]]:
    """The images that the pictures of the table are, each one by its name."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_name[image.name].append(image)
    for parts, number in first.items():
        meant = [image for image in by_name.get(parts[-1] if parts else "", ()) if ends_with(image, parts)]
        if len(meant) > 1:
            raise DataError(
                f"{file}:{number}: '{'/'.join(parts)}' is the name of {len(meant)} images ({meant[0]}, {meant[1]}): "
                "write as much of the path as tells them apart"
            )
        yield from ((parts, image) for image in meant)
