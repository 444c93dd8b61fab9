"""Privacy units of several examples: the gradients of a unit's examples are averaged, and then clipped once.

An example is what the model sees: one augmentation of one image. A unit is what the guarantee is for: an image with all
its augmentations, or all images of a patient. Were examples clipped one by one, a unit of r could add r clip norms.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..errors import ModelError


class Units:
    """Which unit every example of a batch belongs to.

    The layers' gradients are formed over units whose examples lie side by side, each with the same number of them:
    where the numbers differ, the examples that are missing are zeros, which add nothing to a sum.

    Args:
        of_example: The unit of every example, whole numbers of shape (n,): 0 for those of the first, then 1, and so on.

    Raises:
        ModelError: The numbers do not begin at 0, leave one out, or go back, so that a unit would be in two places.
    """

    def __init__(self, of_example: Tensor) -> None:
        of_example = torch.as_tensor(of_example, device="cpu")
        if of_example.dim() != 1 or of_example.is_floating_point() or of_example.dtype == torch.bool:
            raise ModelError(
                f"units of shape {tuple(of_example.shape)} and {of_example.dtype}: give a whole number an example, (n,)"
            )
        of_example = of_example.long()
        steps = of_example.diff()
        if len(of_example) and (int(of_example[0]) != 0 or bool(((steps != 0) & (steps != 1)).any())):
            raise ModelError(
                "the units must be 0 for the examples of the first, 1 for those of the second, and so on without gaps: "
                "sort the examples by unit"
            )
        self.of_example = of_example
        self.counts = torch.bincount(of_example)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def examples(self) -> int:
        """Number of examples of all units."""
        return len(self.of_example)

    @cached_property
    def most(self) -> int:
        """Number of examples of the largest unit."""
        return int(self.counts.max()) if len(self) else 1

    @cached_property
    def _places(self) -> Tensor | None:
        """Where each example goes when every unit has ``most`` of them; None where they are there already."""
        if len(self) * self.most == self.examples:
            return None
        first = self.counts.cumsum(0) - self.counts
        return self.of_example * self.most + torch.arange(self.examples) - first[self.of_example]

    def shares(self, losses: Tensor) -> Tensor:
        """Return each example's loss over the size of its own unit: their gradients add up to the unit's mean."""
        return losses / self.counts[self.of_example].to(losses.device, losses.dtype)

    def even(self, examples: Tensor) -> Tensor:
        """Return examples (n, ...) as (units * most, ...), with zeros for those that a unit lacks."""
        if self._places is None:
            return examples
        filled = examples.new_zeros(len(self) * self.most, *examples.shape[1:])
        return filled.index_copy_(0, self._places.to(examples.device), examples)

    def sums(self, examples: Tensor) -> Tensor:
        """Return the sum over the examples of every unit, (units, ...)."""
        return self.even(examples).unflatten(0, (len(self), self.most)).sum(1)

    def means(self, examples: Tensor) -> Tensor:
        """Return the mean over the examples of every unit, (units, ...)."""
        counts = self.counts.to(examples.device, examples.dtype)
        return self.sums(examples) / counts.view(-1, *[1] * (examples.dim() - 1))
