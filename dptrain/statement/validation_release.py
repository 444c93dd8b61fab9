"""What evaluating on a private val split released, and what that costs its images: a guarantee of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..errors import ConfigError, PrivacyError
from ..privacy.counts import ReleasePlan
from .fields import Number, Part, Steps

RELEASED = "noised counts of detections on the private validation split, and the metrics estimated from them"
NOT_COVERED = (
    "the images of the validation split, by the epsilon of the training images: they have one of their own, in the "
    "section on the private validation split"
)
ASSUMPTION = "No person is in the training split and in the validation split, or their two epsilons add up."
RELATION = "add or remove one unit of the validation split"
COVERS = "all noised evaluations of this run, those planned and not made included"
MECHANISM = (
    "each unit adds counts of its detections and objects, a vector shortened to a norm fixed beforehand; discrete "
    "Gaussian noise once, to the sum over all units; metrics are computed from the noised sum alone"
)
_FIXED = {"neighbouring_relation": RELATION, "covers": COVERS, "mechanism": MECHANISM}
_ROUNDING = 1e-9


class ValBudget(Part):
    """What is published of the ledger's budget for the val images."""

    name: str
    unit: str
    limit: Number | None
    delta: Number | None


class ValidationRelease(Part):
    dataset: dict[str, Any]
    epsilon: Number
    epsilon_pld: Number
    delta: Number
    unit: str
    noise_multiplier: Number
    releases: Steps
    planned_releases: Annotated[Steps, Field(ge=1)]
    neighbouring_relation: str
    covers: str
    mechanism: str
    budget: ValBudget | None


def release_section(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the section of the statement, all planned releases counted.

    Args:
        facts: ``dataset``, ``noise_multiplier``, ``releases`` (begun), ``planned_releases``, ``delta``, ``unit``,
            ``budget``; None where no private val split was evaluated on.
    """
    if facts is None:
        return None
    plan = _plan(facts)
    return {**facts, "epsilon": plan.epsilon(), "epsilon_pld": plan.epsilon("pld"), **_FIXED}


def _plan(facts: Mapping[str, Any]) -> ReleasePlan:
    return ReleasePlan(
        float(facts["noise_multiplier"]), int(facts["planned_releases"]), float(facts["delta"]), str(facts["unit"])
    )


def agree_on_the_release(stated: ValidationRelease | None, unit: str, file: Path) -> None:
    """Work out again what the releases cost; a claim above that is safe.

    Raises:
        PrivacyError: The section claims less than its mechanism costs, or says something else of it.
    """
    if stated is None:
        return
    try:
        plan = _plan(stated.model_dump())
    except ConfigError as error:
        raise PrivacyError(f"{file}: validation_release: {error}") from error
    for name, fresh in (("epsilon", plan.epsilon()), ("epsilon_pld", plan.epsilon("pld"))):
        said = getattr(stated, name)
        if said < fresh * (1 - _ROUNDING):
            raise PrivacyError(
                f"{file}: validation_release.{name}={said:.8g} is below {fresh:.8g}, what its mechanism costs"
            )
    if stated.releases > plan.releases:
        raise PrivacyError(
            f"{file}: validation_release.releases={stated.releases} is above planned_releases={plan.releases}"
        )
    for name, fact in {**_FIXED, "unit": unit}.items():
        if getattr(stated, name) != fact:
            raise PrivacyError(
                f"{file}: validation_release.{name}={getattr(stated, name)!r} is not what dptrain does: {fact!r}"
            )
