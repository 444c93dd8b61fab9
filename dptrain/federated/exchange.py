"""What goes between the server and a site, in Flower's terms but without Flower: nothing else ever does.

From the site's view all that the server sends is public and may be meant to harm: it is checked before it is used, and
it decides nothing but where the next steps begin. All that a site sends is noised, or was declared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DptrainError


class DeclinedError(DptrainError, ValueError):
    """A site does not do what the server asks. The message holds public values only: it is sent to the server."""


@dataclass(frozen=True)
class Terms:
    """What server and sites must agree on before anything is computed; all of it public.

    Attributes:
        rounds: Of the whole training.
        steps_per_round: Noised steps of a site in a round.
        start_sha256: Of the start weights; ``random`` without any.
        frozen_sha256: Of what does not train, by :func:`frozen_hash`.
        classes: Names, in the order of their numbers.
    """

    rounds: int
    steps_per_round: int
    start_sha256: str
    frozen_sha256: str
    classes: tuple[str, ...]

    def refuse_other(self, own: Terms) -> None:
        """Refuse terms of the server that are not the site's ``own``.

        Raises:
            DeclinedError: One line with both.
        """
        for name in self.__dataclass_fields__:
            theirs, ours = getattr(self, name), getattr(own, name)
            if type(theirs) is not type(ours) or theirs != ours:
                raise DeclinedError(f"{name} is {theirs!r:.100} at the server and {ours!r:.100} at the site")


@dataclass(frozen=True)
class Offer:
    """What the server sends for a round."""

    number: int
    terms: Terms
    parameters: Mapping[str, Tensor]


@dataclass(frozen=True)
class Release:
    """What a site sends back: its noised iterate, and what it declared before it saw an image.

    Attributes:
        name: Of the site.
        number: Of the server's round.
        parameters: The iterate after the round's last step.
        dataset_size: As declared.
        epsilon, delta: Of the plan over all rounds, which is what the site spends in the end.
        epsilon_so_far: Of the steps that are taken.
        steps: Taken, counted from the first round; steps that a crash lost count.
        planned_steps: Of all rounds.
        valid: Whether the noise is secret: not in a test with a seed.
        unit: What one more or less of is protected.
    """

    name: str
    number: int
    parameters: Mapping[str, Tensor]
    dataset_size: int
    epsilon: float
    delta: float
    epsilon_so_far: float
    steps: int
    planned_steps: int
    valid: bool
    unit: str


def check_parameters(offered: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are not those of ``own``: by name, shape, kind of number, and finite, all of them.

    Raises:
        DeclinedError: One line that names the first.
    """
    if other := sorted(set(offered) ^ set(own)):
        where = "in the message" if other[0] in offered else "here"
        raise DeclinedError(f"the parameter {other[0]!r:.200} is {where} only: give server and sites one trainable")
    for name, mine in own.items():
        theirs = offered[name]
        if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
            raise DeclinedError(
                f"the parameter {name} is {theirs.dtype} {tuple(theirs.shape)} as sent, and {mine.dtype} "
                f"{tuple(mine.shape)} here"
            )
        if not bool(torch.isfinite(theirs).all()):
            raise DeclinedError(f"the parameter {name} as sent is not made of finite numbers")


def frozen_hash(frozen: Mapping[str, Tensor]) -> str:
    """Return the sha256 of what does not train: an average says nothing where that differs from site to site."""
    digest = hashlib.sha256()
    for name in sorted(frozen):
        tensor = frozen[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def class_list(names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the names of the classes in the order of their numbers."""
    return tuple(names[number] for number in sorted(names))
