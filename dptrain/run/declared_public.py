"""Images that are declared public, and so are used without noise: none may be private, of this run or of another one.

Validation, the images behind a public start, those that scales are measured on, an audit's and a pre-training's: all
are held against the training split and the ledger here. A picture is known by its decoded pixels, however it is turned
(:mod:`dptrain.datasets.identity`); one that was resized or compressed again with loss is not recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..datasets.identity import pictures_in
from ..errors import DataError, PrivacyError

if TYPE_CHECKING:
    from ..ledger import BudgetLedger


class LedgerPlace(Protocol):
    """Which ledger is at hand: the settings of a run, or of a look at one."""

    url: str | None
    key: str | None


@dataclass(frozen=True)
class DeclaredPublic:
    """Some images that are declared public.

    Attributes:
        what: What they are called in a message, in the plural.
        files: Where they are.
        fix: What their owner can do about a private one.
        groups: The group of every image, where groups are protected.
    """

    what: str
    files: Sequence[Path]
    fix: str
    groups: Sequence[str] | None = None

    @cached_property
    def pictures(self) -> dict[Path, bytes]:
        """The identity of the picture in every file, each decoded once and strictly."""
        return pictures_in(self.files)

    def refuse_training(self, train: Mapping[Path, bytes]) -> None:
        """Refuse images that are training images of this run.

        Args:
            train: The identity of the picture in every file of the training split.

        Raises:
            DataError: It names two files that hold the same picture, and says how many more there are; or an image
                cannot be read.
        """
        refuse_shared(self.pictures, train, self.what, "which are used without noise", self.fix)

    def refuse_private_val(self, val: Mapping[Path, bytes]) -> None:
        """Refuse images of this run's own private val split, by the identity of the picture in each of its files.

        Raises:
            DataError: As :meth:`refuse_training`.
        """
        refuse_shared(self.pictures, val, self.what, "which are used without noise", self.fix, "private val")

    def refuse_protected(self, budget: LedgerPlace) -> str:
        """Refuse images that the ledger at hand knows: they are somebody's private data, whatever folder they are in.

        Nothing is charged or written, and no ledger is made.

        Returns:
            What was compared with, in words.

        Raises:
            PrivacyError: A dataset of the ledger holds one of them, or has ever held it; or it protects their group.
            BudgetError: The ledger is there and cannot be opened.
        """
        if budget.url is None:
            return "no ledger (budget.url=null)"
        from ..ledger import BudgetLedger

        ledger = BudgetLedger.existing(budget.url, budget.key)
        if ledger is None:
            return f"no ledger: there is none at {budget.url}"
        self.refuse_held(ledger)
        return f"the ledger {ledger.name}: none of its images"

    def refuse_held(self, ledger: BudgetLedger) -> None:
        """Refuse images that a ledger knows.

        Raises:
            PrivacyError: A dataset of the ledger holds one of them, or has ever held it.
        """
        held = ledger.holders(self.files, self.pictures, self.groups)
        if held:
            first, names = next(iter(held.items()))
            raise PrivacyError(
                f"{first}: is one of {self.what}, which are used without noise, and the ledger {ledger.name} protects "
                f"it{'' if self.groups is None else ' or its group'}, in {names[0]}{_more(len(held))}; {self.fix}"
            )


def refuse_shared(
    pictures: Mapping[Path, bytes],
    train: Mapping[Path, bytes],
    what: str,
    why: str,
    fix: str,
    split: str = "training",
) -> None:
    """Refuse images that are those of a private split, however they are turned.

    Args:
        pictures: The identity of the picture in every image file.
        train: The same of the private split.
        what: What the images are called.
        why: What they are used for.
        fix: What their owner can do.
        split: What the private split is called.

    Raises:
        DataError: It names two files that hold the same picture, and says how many more there are.
    """
    private = {picture: file for file, picture in train.items()}
    shared = [file for file, picture in pictures.items() if picture in private]
    if shared:
        first = shared[0]
        raise DataError(
            f"{private[pictures[first]]}: is a {split} image and one of {what} ({first}, perhaps "
            f"turned), {why}{_more(len(shared))}; {fix}"
        )


def _more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""
