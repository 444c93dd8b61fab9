"""The manifest of a training split, with a progress bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.threads import bar

if TYPE_CHECKING:
    from ..datasets.boxes import TextBoxes
    from . import BudgetLedger, Manifest


def hash_images(
    ledger: BudgetLedger,
    images: Sequence[Path],
    groups: Sequence[str] | None = None,
    pictures: Mapping[Path, bytes] | None = None,
    copies_are_one: bool = False,
    boxes: TextBoxes | None = None,
) -> Manifest:
    """Make the manifest of a training split, with a bar where it takes long."""
    with bar("images known to the ledger", len(images)) as progress:
        return ledger.manifest(images, progress, groups, pictures, copies_are_one, boxes)
