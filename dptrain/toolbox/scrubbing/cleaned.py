"""What every cleaner of a file format gives back."""

from __future__ import annotations

from dataclasses import dataclass


class Damaged(ValueError):
    """The file does not have the structure of its format; the message says what is wrong."""


@dataclass(frozen=True)
class Cleaned:
    """An image file without what tells of its origin.

    Attributes:
        data: The cleaned file. The compressed pixels are the same bytes as before, so what decodes is the same too.
        found: What was in it and is not any more, in words; empty for a file that was clean.
    """

    data: bytes
    found: tuple[str, ...]


def trailing(data: bytes) -> list[str]:
    """Words for what follows the end of a picture: a second picture, a film, anything."""
    return [f"{len(data)} bytes after the image"] if data else []
