"""The groups, or the people, of the images of a run: whose images are which, and which are trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import DataError
from .groups import GroupsConfig, groups_of
from .people import People, refuse_shared
from .people_table import people_in
from .sources import DataConfig


@dataclass(frozen=True)
class Grouped:
    """A dataset by what is protected.

    Attributes:
        data: Its training split holds the images that are trained on.
        train, val: The group of every image of these splits; None where single images are protected.
        left_out: The other training images, with who is in them: somebody in another unit, too. They are private.
    """

    data: DataConfig
    train: Sequence[str] | None = None
    val: Sequence[str] | None = None
    left_out: Mapping[Path, People] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What the owner is told of a choice of pictures."""
        if not self.train or not isinstance(self.train[0], People):
            return []
        used = {name for group in set(self.train) for name in People(group).names}
        everyone = used | {name for group in self.left_out.values() for name in group.names}
        return [
            f"privacy.unit=person: {len(self.train)} of {len(self.train) + len(self.left_out)} train images are "
            f"trained on, as {len(set(self.train))} units (declare their number as privacy.dataset_size), so that "
            f"nobody is in two; {len(everyone - used)} of {len(everyone)} people are in none"
        ]


def grouped(groups: GroupsConfig, unit: str, data: DataConfig, evaluates: bool) -> Grouped:
    """Return the dataset by its privacy units.

    Args:
        groups: How groups are told; not looked at where single images are protected.
        unit: One of ``dptrain.privacy.units.UNITS``.
        data: The dataset.
        evaluates: Whether its val split is used; no group, and no person, may then be in both splits.

    Raises:
        DataError: An image has no group or more than one, a group or person is in train and in val, or no picture is
            left.
    """
    if unit == "image":
        return Grouped(data)
    val = data.val if evaluates else ()
    images, count = (*data.train, *val), len(data.train)
    found: list[str] = list(people_in(groups, images)) if unit == "person" else groups_of(groups, images)
    of_train = dict(zip(data.train, found[:count], strict=True))
    refuse_shared(of_train, dict(zip(val, found[count:], strict=True)))
    left_out = {image: group for image, group in of_train.items() if isinstance(group, People) and not group.trained}
    kept = {image: group for image, group in of_train.items() if image not in left_out}
    if not kept:
        raise DataError(
            f"{groups.csv}: chooses none of the train images, since everybody in them is in a picture of other files; "
            "take the rows of those out of the table"
        )
    return Grouped(replace(data, train=tuple(kept)), list(kept.values()), found[count:], left_out)
