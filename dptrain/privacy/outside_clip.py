"""Clip rules from outside the package, and what holds each of them to the sensitivity that it states."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError, DptrainError, PrivacyError
from .clip_rules import ROUNDING, ClipRule, FlatClip, kept

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_ABOVE = 1.0 + 1e-9  # rounding of a product that is right
# Lengths that a rule is tried on, in units of the clip norm and by themselves.
_TRIED = (0.0, 1e-12, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0, 1.001, 1.1, 2.0, 3.0, 7.0, 10.0, 100.0, 1e4, 1e8, 1e12)


class MakeClipRule(Protocol):
    """Makes the rule of a clip norm; its parts are the author's, the guarantee is what they keep to.

    Held by dptrain, whatever the rule does: it sees the norm of one unit at a time; a unit that it would let add more
    than its sensitivity ends the run before anything of that step is released; a norm that is not finite counts as
    zero and is not shown to it.

    The author's duty, which no check can hold: a weight is a function of that unit's norm and of public numbers only.
    The rule keeps nothing of a norm, in itself or elsewhere, writes none down, and draws no random numbers.
    """

    def __call__(self, clip_norm: float) -> ClipRule:
        """Return a rule without ``groups``: ``weights`` of shape (1, 1) from (1, 1), and ``sensitivity()``."""


_MAKERS: dict[str, MakeClipRule] = {}


def is_outside_name(name: Any) -> bool:
    """Return whether a clip rule of this name is not one of dptrain's own: ``package.rule``, with a dot."""
    return isinstance(name, str) and len(name) <= 100 and _NAME.fullmatch(name) is not None


def register_clip_rule(name: str) -> Callable[[MakeClipRule], MakeClipRule]:
    """Register a clip rule under a name with a dot, ``package.rule``; a decorator of what makes it.

    A plan follows it by ``clipping=dptrain.Clipping("package.rule")``. The noise is scaled to the sensitivity that the
    rule states. Statements name it as not one of dptrain's own. See :class:`~dptrain.MakeClipRule` for the duties.

    Raises:
        ConfigError: The name has no dot, or is taken: a name stands for one rule as long as the process lives.
    """
    if not is_outside_name(name):
        raise ConfigError(f"register_clip_rule({name!r}): give a name with a dot, such as 'mypackage.smooth'")
    if name in _MAKERS:
        raise ConfigError(f"register_clip_rule({name!r}): the name is taken in this process; choose another")

    def decorate(make: MakeClipRule) -> MakeClipRule:
        _MAKERS[name] = make
        return make

    return decorate


@functools.lru_cache(maxsize=64)
def held_rule(name: str, clip_norm: float) -> HeldRule:
    """Return the registered rule for a clip norm, held to its sensitivity; one for as long as the process lives.

    Raises:
        ConfigError: Nobody registered it, or it fails on made-up norms.
    """
    if name not in _MAKERS:
        raise ConfigError(
            f"clipping={name!r} is not registered in this process: import what registers it, and train from Python"
        )
    return HeldRule(name, _MAKERS[name](clip_norm), clip_norm)


class HeldRule:
    """A clip rule from outside that cannot let a unit add more than the sensitivity it stated when it was made.

    Formal guarantee: that of :class:`~dptrain.privacy.clip_rules.ClipRule`, provided that the author keeps to
    :class:`MakeClipRule`.
    """

    groups = None

    def __init__(self, name: str, rule: ClipRule, clip_norm: float) -> None:
        self._name, self._rule = name, rule
        stated: Any = rule.sensitivity()
        if isinstance(stated, bool) or not isinstance(stated, int | float) or not 0.0 < stated < math.inf:
            raise ConfigError(
                f"clipping={name!r} states the sensitivity {stated!r}: it must be a finite number above 0"
            )
        if getattr(rule, "groups", None) is not None:
            raise ConfigError(f"clipping={name!r} has groups: a rule from outside weighs a unit's whole gradient")
        self._sensitivity = float(stated)
        self._try(clip_norm)

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        """What the rule stated for ``add_or_remove_one``; twice that for ``replace_one``."""
        return FlatClip(1.0).sensitivity(relation) * self._sensitivity

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Return the factor of every unit; both of shape (n, 1).

        Raises:
            PrivacyError: The rule would let a unit add more than its sensitivity, or weighs a unit by others.
        """
        squared = squared_norms.detach().double().cpu()
        factors = squared.new_zeros(squared.shape)
        finite = [number for number in range(len(squared)) if math.isfinite(float(squared[number, 0]))]
        for number in finite:
            factors[number] = self._weight(squared, number, PrivacyError)
        if self._remembers(squared, factors, finite[:1]):
            raise PrivacyError(f"clipping={self._name!r} weighs a unit by others that it saw: it must keep nothing")
        return kept((factors * ROUNDING).to(squared_norms.device), squared_norms)

    def _remembers(self, squared: Tensor, factors: Tensor, first: list[int]) -> bool:
        """Whether the first unit now gets another weight, or made-up norms other ones than when the rule was made."""
        again = [self._weight(squared, number, PrivacyError) for number in first]
        made_up = [self._weight(self._made_up, number, PrivacyError) for number in range(len(self._made_up))]
        return again != [float(factors[number]) for number in first] or made_up != self._agreed

    def _weight(self, squared: Tensor, number: int, error: type[DptrainError]) -> float:
        """Return the rule's factor of one unit, which it is shown alone."""
        return self._checked(
            self._rule.weights(squared[number : number + 1].clone()), squared[number : number + 1], error
        )

    def _checked(self, given: Any, squared: Tensor, error: type[DptrainError]) -> float:
        shape = tuple(getattr(given, "shape", ()))
        if shape != (1, 1):
            raise error(f"clipping={self._name!r} returned weights of shape {shape} for one unit: it must be (1, 1)")
        factor = float(given)
        length = factor * math.sqrt(float(squared))
        if not (factor >= 0.0 and length <= self._sensitivity * _ABOVE):
            at = f" of norm {math.sqrt(float(squared)):g} with weight {factor:g}" if error is ConfigError else ""
            raise error(
                f"clipping={self._name!r} lets a unit{at} add more than the sensitivity {self._sensitivity:g} that it "
                "states, or has no such weight: state what it is, or clip harder"
            )
        return factor

    def _try(self, clip_norm: float) -> None:
        """Refuse a rule that fails on made-up norms: alone, again, and beside others, in another order."""
        import torch

        lengths = sorted({*_TRIED, *(clip_norm * length for length in _TRIED)})
        squared = torch.tensor(lengths, dtype=torch.float64).square().view(-1, 1)
        alone = [self._weight(squared, number, ConfigError) for number in range(len(squared))]
        again = [self._weight(squared, number, ConfigError) for number in reversed(range(len(squared)))]
        together = self._rule.weights(squared.clone()).double()
        expected = torch.tensor(alone, dtype=torch.float64).view(-1, 1)
        if alone != again[::-1] or not torch.allclose(together, expected, rtol=1e-9, atol=0.0):
            raise ConfigError(
                f"clipping={self._name!r} weighs a unit by others that it saw: a weight must be a function of that "
                "unit's norm and of public numbers only"
            )
        self._made_up, self._agreed = squared, alone
