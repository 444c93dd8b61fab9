"""Which group (patient, camera, video, household) every image belongs to, where a group is what is protected.

Splitting one person's images over two groups would void the guarantee for that person, and so an image with no group or
with two is refused. Two persons in one group are both protected, as one: where names could mean either, images are
rather put together than apart.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import ConfigError, DataError
from ..support.files import MOST_TEXT
from .contents import read_data
from .own import unit_in

FILE_COLUMNS = ("file", "image", "filename", "file_name", "path")
COLUMN = "group"
Parts = tuple[str, ...]


@dataclass
class GroupsConfig:
    """The group of every image, with ``privacy.unit=group``: by exactly one of csv, folder and regex."""

    csv: str | None = field(
        default=None,
        metadata={"help": "table with a header: a column file (or image, filename), and the one of the groups"},
    )
    column: str | None = field(
        default=None, metadata={"help": "the table's column that names the group (patient, video); default group"}
    )
    folder: int | None = field(
        default=None,
        metadata={"help": "the group is a folder's name: 1 the one that holds the image, 2 the one above it"},
    )
    regex: str | None = field(
        default=None,
        metadata={"help": r"the group is what the pair of parentheses finds in the file name, as '^(p\d+)_'"},
    )


def check_groups(groups: GroupsConfig, prefix: str = "privacy.groups.") -> None:
    """Refuse anything but one way to tell an image's group; ``prefix`` is what the caller's names begin with.

    Raises:
        ConfigError: It names the key and the fix.
    """
    ways = [name for name in ("csv", "folder", "regex") if getattr(groups, name) is not None]
    if len(ways) != 1:
        raise ConfigError(
            f"{' and '.join(f'{prefix}{name}' for name in ways) or 'nothing'} says which group an image is in, and "
            f"exactly one must: give {prefix}csv=patients.csv, {prefix}folder=1 or {prefix}regex='^(p\\d+)_'"
        )
    if groups.column is not None and groups.csv is None:
        raise ConfigError(f"{prefix}column={groups.column} is a column of {prefix}csv: give the table, or leave it out")
    if groups.folder is not None and groups.folder < 1:
        raise ConfigError(f"{prefix}folder={groups.folder} must be 1 (the folder that holds the image) or more")
    if groups.regex is not None:
        try:
            pairs = re.compile(groups.regex).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"{prefix}regex={groups.regex} is not a regular expression ({error}): correct it"
            ) from None
        if pairs != 1:
            raise ConfigError(
                f"{prefix}regex={groups.regex} has {pairs} groups in parentheses: exactly one must be the group; write "
                "(?:...) for the others"
            )


def groups_of(groups: GroupsConfig, images: Sequence[Path]) -> list[str]:
    """Return the group of every image.

    Args:
        groups: Checked by :func:`dptrain.datasets.groups.check_groups`; exactly one of three ways. ``csv``: a table
            with a header, of one row an image or several (a table of labels, with one row an object); ``folder``: the
            name of the folder that many levels above the image; ``regex``: what its one pair of parentheses finds in
            the name of the file.
        images: Of all splits that are compared, so that a name that fits several of them is noticed.

    Raises:
        DataError: An image has no group, or more than one; it names the image, and the line of a table.
    """
    if groups.csv is not None:
        return _by_table(place_of(groups.csv), groups.column or COLUMN, images)
    if groups.folder is not None:
        return [_by_folder(image, groups.folder) for image in images]
    assert groups.regex is not None
    pattern = re.compile(groups.regex)
    return [_by_name(image, pattern) for image in images]


def in_words(groups: GroupsConfig, own: bool = False, column: str = COLUMN) -> str:
    """Return how groups are told, for the statement; a table by its name alone.

    Args:
        groups: The settings.
        own: Whether a dataset of one's own says it.
        column: The table's column where the settings name none.
    """
    if own:
        return "unit() of the dataset"
    if groups.csv is not None:
        return f"column {groups.column or column} of {Path(groups.csv).name}"
    return f"folder {groups.folder}, counted from the image" if groups.folder else f"file names, by {groups.regex}"


def _by_folder(image: Path, level: int) -> str:
    if (unit := unit_in(image)) is not None:
        return unit
    folders = image.absolute().parent
    if level > len(folders.parts) - 1:
        raise DataError(f"{image}: has no folder {level} levels up for privacy.groups.folder={level}; give a lower one")
    return folders.parts[-level]


def _by_name(image: Path, pattern: re.Pattern[str]) -> str:
    found = sorted({match.group(1) or "" for match in pattern.finditer(image.name)})
    if len(found) == 1 and found[0]:
        return found[0]
    what = f"finds {' and '.join(map(repr, found))} in" if found else "finds nothing in"
    raise DataError(
        f"{image}: privacy.groups.regex={pattern.pattern} {what} {image.name!r}, and an image needs exactly one group; "
        "correct the pattern, or the name"
    )


def _by_table(file: Path, column: str, images: Sequence[Path]) -> list[str]:
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_name[image.name].append(image)
    found: dict[Path, tuple[str, int]] = {}
    for number, name, group in table_rows(file, column):
        parts = parts_of(name)
        meant = [image for image in by_name.get(parts[-1] if parts else "", ()) if ends_with(image, parts)]
        if len(meant) > 1:
            raise DataError(
                f"{file}:{number}: '{name}' is the name of {len(meant)} images ({meant[0]}, {meant[1]}): write as much "
                "of the path as tells them apart"
            )
        for image in meant:
            if not group:
                raise DataError(f"{file}:{number}: '{name}' has an empty {column}: every training image needs a group")
            other, line = found.setdefault(image, (group, number))
            if other != group:
                raise DataError(
                    f"{file}:{number}: '{name}' is in group {group!r}, and in line {line} in {other!r}: an image is in "
                    "one group; correct one of the lines, or give both groups one name; where a picture shows several "
                    "people, privacy.unit=person protects each"
                )
    for image in images:
        if image not in found:
            raise DataError(f"{image}: has no row in {file}, and every image needs exactly one group; add it")
    return [found[image][0] for image in images]


def parts_of(name: str) -> Parts:
    """A file's name in a table, or as much of its path as is written."""
    return PurePosixPath(name.replace("\\", "/")).parts


def ends_with(image: Path, parts: Parts) -> bool:
    """Whether an image is what a table calls so."""
    return image.absolute().parts[-len(parts) :] == parts


def place_of(name: str) -> Path:
    """Where a table is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~somebody who is not there
        return Path(name)


def table_rows(file: Path, column: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, image name and group of every row.

    Raises:
        DataError: It cannot be read, is no table, or has not these columns.
    """
    try:
        text = read_data(file, MOST_TEXT).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: no such table of groups; correct privacy.groups.csv") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"{file}: cannot read the table of groups ({reason})") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        names = [name for name in header if name in FILE_COLUMNS]
        if len(names) != 1 or header.count(names[0]) != 1:
            raise DataError(
                f"{file}:1: the columns are {', '.join(header) or 'none'} (separated by commas): exactly one must be "
                f"called {' or '.join(FILE_COLUMNS)}"
            )
        if header.count(column) != 1:
            raise DataError(
                f"{file}:1: the columns are {', '.join(header)}, and {header.count(column)} of them are called "
                f"{column!r}: name the one that holds the group, privacy.groups.column=..."
            )
        place, own = header.index(names[0]), header.index(column)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise DataError(f"{file}:{reader.line_num}: {len(row)} columns, and the header has {len(header)}")
            yield reader.line_num, row[place].strip(), row[own].strip()
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not a table of comma separated values ({error})") from None
