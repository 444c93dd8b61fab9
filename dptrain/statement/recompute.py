"""Does a statement claim what its mechanism costs? Every figure is worked out again, and none may be lower."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PrivacyError
from ..privacy import accounting
from ..privacy.plan import PrivacyPlan
from . import facts
from .fields import get
from .plan import plan_of
from .shape import Statement
from .start_runs import start_runs_section, start_runs_words

_ROUNDING = 1e-9  # relative: the same sum in another order
_ALWAYS = (
    "guarantee.neighbouring_relation",
    "guarantee.setting",
    "guarantee.adversary",
    "guarantee.covers",
    "mechanism.name",
    "mechanism.sampling",
    "mechanism.clipping",
    "mechanism.correlation",
    "accounting.epsilon_over_steps_of",
)


def stated_plan(written: Mapping[str, Any], stated: Statement, file: Path) -> PrivacyPlan:
    """The plan that a statement speaks of; every value is in range, and the steps fit it."""
    try:
        plan = plan_of(written)
    except ConfigError as error:
        raise PrivacyError(f"{file}: {error}") from error
    steps = stated.mechanism.steps
    if steps > plan.steps:
        raise PrivacyError(f"{file}: mechanism.steps={steps} is above mechanism.planned_steps={plan.steps}")
    if stated.status == "finished" and steps < plan.steps:
        raise PrivacyError(f"{file}: status='finished', and mechanism.steps={steps} of {plan.steps} were taken")
    return plan


def recompute(
    written: Mapping[str, Any], stated: Statement, plan: PrivacyPlan, steps: int, file: Path
) -> dict[str, Any]:
    """Return a statement of the same mechanism made afresh, for ``steps`` steps.

    Raises:
        PrivacyError: The file claims less for the steps that it names, or says something else of the mechanism.
    """
    tuning = written["tuning"]
    claim = facts.claim_of(plan, stated.mechanism.steps, tuning)
    fresh = {
        "guarantee.epsilon": claim.epsilon,
        "guarantee.attack_accuracy": claim.attack_accuracy,
        **{f"guarantee.true_positive_rates.{name}": rate for name, rate in claim.true_positive_rates.items()},
    }
    if claim.epsilon_pld is not None:
        fresh["guarantee.epsilon_pld"] = claim.epsilon_pld
    elif (pld := stated.guarantee.epsilon_pld) is not None:
        raise PrivacyError(f"{file}: guarantee.epsilon_pld={pld!r}, and a run that ended early claims none")
    for name, value in fresh.items():
        _refuse_lower(get(written, name), value, name, stated, file)
    _agree_on_the_end(stated, claim, file)
    curve = {str(order): bound for order, bound in claim.curve.items()}
    for order, bound in stated.accounting.rdp_curve.items():
        _refuse_lower(bound, curve.get(order), f"accounting.rdp_curve.{order}", stated, file)
    over_steps = stated.accounting.epsilon_over_steps
    if over_steps and str(plan.steps) not in over_steps:
        raise PrivacyError(f"{file}: accounting.epsilon_over_steps does not reach step {plan.steps}, the last planned")
    for step, epsilon in over_steps.items():
        at = int(step) if step.isdecimal() and len(step) <= 10 else -1
        cost = None
        if 0 <= at <= plan.steps:  # no part of a winner costs less than the tuning that chose it
            cost = claim.epsilon if facts.is_tuned(tuning) else plan.epsilon(steps=at)
        _refuse_lower(epsilon, cost, f"accounting.epsilon_over_steps.{step}", stated, file)
    again = facts.make_statement(
        plan, steps=steps, status="", secure=stated.valid, dataset={}, model={}, validation="", tuning=tuning
    )
    for name in _ALWAYS:
        said, fact = get(written, name), get(again, name)
        if said != fact:
            raise PrivacyError(f"{file}: {name}={said!r} is not what dptrain does: {fact!r}")
    for name in fresh:  # a claim above the fresh value is safe, and stays
        section, _, key = name.rpartition(".")
        found = get(again, section)
        found[key] = max(found[key], float(get(written, name)))
    return again


def _agree_on_the_end(stated: Statement, claim: facts.Claim, file: Path) -> None:
    """A run that ended early names what its steps cost, and under which condition that holds; no other does."""
    said, fact = stated.guarantee.ended_early, claim.ended_early
    if said is None and fact is None:
        return
    if said is None or fact is None:
        raise PrivacyError(
            f"{file}: guarantee.ended_early={said and said.model_dump()!r} does not fit "
            f"mechanism.steps={stated.mechanism.steps}"
        )
    for key, value in said.model_dump().items():
        name = f"guarantee.ended_early.{key}"
        if key == "epsilon_of_steps":
            _refuse_lower(value, fact[key], name, stated, file)
        elif value != fact[key]:
            raise PrivacyError(f"{file}: {name}={value!r} is not what dptrain says: {fact[key]!r}")


def agree_on_the_start(written: Mapping[str, Any], stated: Statement, plan: PrivacyPlan, file: Path) -> None:
    """What the runs behind the start and this one cost together is worked out again from their mechanisms."""
    said = stated.start_runs
    if said is None:
        return
    for number, run in enumerate(said.runs):
        own = accounting.epsilon_of_curves([run.curve()], run.delta)
        _refuse_lower(run.epsilon, own, f"start_runs.runs.{number}.epsilon", stated, file)
    claim = facts.claim_of(plan, stated.mechanism.steps, written["tuning"])
    fact = start_runs_section(said.runs, claim.curve, plan.delta, plan.unit, stated.valid)
    assert fact is not None
    if fact["epsilon"] is not None and said.epsilon is not None:
        _refuse_lower(said.epsilon, fact["epsilon"], "start_runs.epsilon", stated, file)
        fact["epsilon"] = said.epsilon  # a claim above the fresh value is safe, and stays
    for key, value in said.model_dump().items():
        if value != fact[key]:
            raise PrivacyError(f"{file}: start_runs.{key}={value!r} is not what dptrain says")
    if not set(start_runs_words(fact)) <= set(stated.deviations):
        raise PrivacyError(f"{file}: deviations does not say that the start comes from private runs")


def _refuse_lower(said: float | None, fresh: float | None, name: str, stated: Statement, file: Path) -> None:
    if said is None:
        raise PrivacyError(f"{file}: {name} is missing, so dptrain did not write it")
    if fresh is None:
        raise PrivacyError(f"{file}: {name} is not a place on the curve")
    if said >= fresh * (1 - _ROUNDING):
        return
    now = f"dp-accounting {facts.package_version('dp-accounting')}"
    maker = "" if stated.accounting.library == now else f", and the file names {stated.accounting.library}"
    raise PrivacyError(f"{file}: {name}={said:.8g} is below {fresh:.8g}, what its mechanism costs ({now}{maker})")
