"""Privacy units: what one more or less of is protected, and the examples that a step takes of one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from ..errors import ConfigError

# What is protected: an image or a group, one more or less; or all pictures of a person, where who is in which is known.
UNITS = ("image", "group", "person")


class UnitExamples:
    """The examples of a dataset by privacy unit, and which of them a step takes.

    Formal guarantee: what a step takes of a unit is a function of the unit's own examples and of the step's seed. It
    needs no privacy of its own: the gradients of a unit's examples are averaged and clipped as one.

    Args:
        groups: Of every example, what it belongs to; units are numbered in the order in which they first come.
        most: Largest number of examples of a unit that a step takes; a public constant.
        copies: How often each of these examples is used, each time augmented anew; a public constant.
    """

    def __init__(self, groups: Sequence[Hashable], most: int = 1, copies: int = 1) -> None:
        if most < 1 or copies < 1:
            raise ConfigError(f"most={most} and copies={copies} of a unit's examples must be 1 or more")
        numbers: dict[Hashable, int] = {}
        of_example = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
        self.most, self.copies = most, copies
        # Two arrays, not a list a unit: workers started by fork then share them instead of copying them.
        self._examples = np.argsort(of_example, kind="stable")
        self._starts = np.searchsorted(of_example[self._examples], np.arange(len(numbers) + 1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def most_at_once(self) -> int:
        """Most examples that one unit can be in a step, copies included; a public constant."""
        return self.most * self.copies

    def examples(self, unit: int) -> np.ndarray:
        """Return all examples of a unit, in their order."""
        return self._examples[self._starts[unit] : self._starts[unit + 1]]

    def count(self, unit: int) -> int:
        """Return the number of examples that a step takes of a unit, copies included."""
        return int(min(self._starts[unit + 1] - self._starts[unit], self.most)) * self.copies

    def chosen(self, unit: int, seed: int) -> np.ndarray:
        """Return the examples that a step takes of a unit, in their order: all, or ``most`` of them drawn at random.

        Every subset of that size is as likely, and units are drawn from independently.
        """
        examples = self.examples(unit)
        if len(examples) <= self.most:
            return examples
        # The key keeps these numbers apart from those that augment the example of the same number.
        rng = np.random.default_rng(np.random.SeedSequence([seed, unit], spawn_key=(1,)))
        return np.sort(rng.choice(examples, self.most, replace=False))
