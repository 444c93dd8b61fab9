"""Privacy units of several rows: the gradients of a unit's rows are averaged, and then clipped once.

A row is what the model sees: one augmentation of one image. A unit is what the guarantee is for: an image with all its
augmentations, or all images of a patient. Were rows clipped one by one, a unit of r rows could add r clip norms.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..errors import ModelError


class Units:
    """Which unit every row of a batch belongs to.

    The layers' gradients are formed over units whose rows lie side by side, each with the same number of them: where
    the numbers differ, the rows that are missing are zeros, which add nothing to a sum.

    Args:
        of_row: The unit of every row, whole numbers of shape (n,): 0 for the rows of the first unit, then 1, and so on.

    Raises:
        ModelError: The numbers do not begin at 0, leave one out, or go back, so that a unit would be in two places.
    """

    def __init__(self, of_row: Tensor) -> None:
        of_row = torch.as_tensor(of_row, device="cpu")
        if of_row.dim() != 1 or of_row.is_floating_point() or of_row.dtype == torch.bool:
            raise ModelError(
                f"units of shape {tuple(of_row.shape)} and {of_row.dtype}: give a whole number a row, (n,)"
            )
        of_row = of_row.long()
        steps = of_row.diff()
        if len(of_row) and (int(of_row[0]) != 0 or bool(((steps != 0) & (steps != 1)).any())):
            raise ModelError(
                "the units must be 0 for the rows of the first, 1 for those of the second, and so on without gaps: "
                "sort the rows by unit"
            )
        self.of_row = of_row
        self.counts = torch.bincount(of_row)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def rows(self) -> int:
        """Number of rows of all units."""
        return len(self.of_row)

    @cached_property
    def most(self) -> int:
        """Number of rows of the largest unit."""
        return int(self.counts.max()) if len(self) else 1

    @cached_property
    def _places(self) -> Tensor | None:
        """Where each row goes when every unit has ``most`` of them; None where they are there already."""
        if len(self) * self.most == self.rows:
            return None
        first = self.counts.cumsum(0) - self.counts
        return self.of_row * self.most + torch.arange(self.rows) - first[self.of_row]

    def shares(self, losses: Tensor) -> Tensor:
        """Return each row's loss over the number of rows of its own unit: their gradients add up to the unit's mean."""
        return losses / self.counts[self.of_row].to(losses.device, losses.dtype)

    def even(self, rows: Tensor) -> Tensor:
        """Return rows (n, ...) as (units * most, ...), with zeros for those that a unit lacks."""
        if self._places is None:
            return rows
        filled = rows.new_zeros(len(self) * self.most, *rows.shape[1:])
        return filled.index_copy_(0, self._places.to(rows.device), rows)

    def sums(self, rows: Tensor) -> Tensor:
        """Return the sum over the rows of every unit, (units, ...)."""
        return self.even(rows).unflatten(0, (len(self), self.most)).sum(1)

    def means(self, rows: Tensor) -> Tensor:
        """Return the mean over the rows of every unit, (units, ...)."""
        counts = self.counts.to(rows.device, rows.dtype)
        return self.sums(rows) / counts.view(-1, *[1] * (rows.dim() - 1))
