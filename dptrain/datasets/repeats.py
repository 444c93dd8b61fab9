"""Where the same picture may not be twice: within a training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from ..support.words import counted


def refuse_repeats(pictures: Mapping[Path, bytes], groups: Sequence[str] | None = None) -> None:
    """Refuse a training split that holds a picture more than once, turned and mirrored copies included.

    Every copy would be a unit of its own: k copies of one photo move the sum by k clip norms, and the guarantee for one
    unit would be k times as weak for the photo. Copies within one group are one unit together.

    Args:
        pictures: The identity of the picture in each file of the split, or any hash of it.
        groups: The group of every file, where groups are protected.

    Raises:
        DataError: It names the first two files, and says how many more there are.
    """
    first: dict[bytes, int] = {}
    files = list(pictures)
    copies: list[tuple[Path, Path]] = []
    for number, (file, picture) in enumerate(pictures.items()):
        other = first.setdefault(picture, number)
        if other == number:
            continue
        if groups is None:
            copies.append((file, files[other]))
        elif groups[other] != groups[number]:
            raise DataError(
                f"{file}: is the same picture as {files[other]}, perhaps turned, and they are in groups "
                f"{groups[number]!r} and {groups[other]!r}: a person would be in both; keep one of them"
            )
    if copies:
        file, before = copies[0]
        more = f" (and {counted(len(copies) - 1, 'more file')} like it)" if len(copies) > 1 else ""
        raise DataError(
            f"{file}: is the same picture as {before}, perhaps turned{more}: one photo would count as several units; "
            "keep one of each (dptrain check --json lists them), or count all copies as one image: "
            "privacy.same_picture=one_unit"
        )
