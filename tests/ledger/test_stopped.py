"""What a dataset has spent where runs ended early: when they ended may have been chosen by what they showed."""

from __future__ import annotations

import math

import pytest

from dptrain import BudgetLedger
from dptrain.ledger.reading import DatasetReading
from dptrain.privacy.accounting import dp_sgd_epsilon, dp_sgd_event
from dptrain.privacy.rdp import rdp_at

from .pictures import pictures

DELTA = 1e-5
RUN = dp_sgd_event(0.02, 1000, 1.1)


def reading(ledger: BudgetLedger, name: str = "pets") -> DatasetReading:
    assert ledger.verify().findings == ()
    return ledger.show(name)[0]


def of_steps(steps: int) -> float:
    return dp_sgd_epsilon(0.02, steps, 1.1, DELTA)


def of(steps: int) -> object:
    return pytest.approx(of_steps(steps))


def test_a_run_that_ended_early_has_spent_its_plan_and_is_charged_its_steps(any_ledger: BudgetLedger) -> None:
    manifest = pictures(any_ledger, range(5))
    charge = any_ledger.reserve(RUN, manifest, data_name="pets", delta=DELTA)
    charge.settle(300, "stopped")
    found = reading(any_ledger)
    assert (found.epsilon, found.epsilon_charged, found.stopped_runs) == (of(1000), of(300), 1)
    assert any_ledger.history("pets")[-1].epsilon == found.epsilon
    charge.resume(manifest, 300).settle(1000)
    found = reading(any_ledger)
    assert (found.epsilon, found.epsilon_charged, found.stopped_runs) == (of(1000), of(1000), 0)


def test_a_run_that_took_no_step_has_spent_nothing(ledger: BudgetLedger) -> None:
    ledger.reserve(RUN, pictures(ledger, range(5)), data_name="pets", delta=DELTA).settle(0, "failed")
    assert (reading(ledger).epsilon, reading(ledger).stopped_runs) == (0.0, 0)


def test_no_loss_distribution_is_shown_beside_a_run_that_ended_early(ledger: BudgetLedger) -> None:
    """It is the figure that a stop chosen by looking breaks most, also where another picture has spent more."""
    ledger.reserve(RUN, pictures(ledger, range(5)), data_name="pets", delta=DELTA).settle(1000)
    ledger.refresh_pld("pets")
    assert reading(ledger).epsilon_pld is not None
    short = dp_sgd_event(0.02, 10, 1.1)
    ledger.reserve(short, pictures(ledger, range(4, 9)), dataset="pets", delta=DELTA).settle(3, "stopped")
    ledger.refresh_pld("pets")
    assert reading(ledger).epsilon_pld is None


def test_what_is_spent_on_shared_pictures_counts_every_plan(ledger: BudgetLedger) -> None:
    """The runs that ended early are on two sets of pictures, and one picture is in both."""
    for numbers in (range(5), range(4, 9)):
        charge = ledger.reserve(RUN, pictures(ledger, numbers), dataset=None, data_name="pets", delta=DELTA)
        charge.settle(100, "stopped")
    found = max(ledger.show(), key=lambda one: one.epsilon)
    assert (found.epsilon, found.epsilon_charged) == (of(2000), of(200))
    assert ledger.verify().findings == ()


def test_a_budget_has_never_spent_more_than_its_limit(ledger: BudgetLedger) -> None:
    """Steps that were not taken are free again; what the filter lets through is within the limit all the same."""
    manifest = pictures(ledger, range(5))
    limit = dp_sgd_epsilon(0.02, 1000, 1.1, DELTA)
    ledger.create("pets", epsilon=limit, delta=DELTA, manifest=manifest)
    for steps in (1000, 900, 800):
        ledger.reserve(dp_sgd_event(0.02, steps, 1.1), manifest).settle(100, "stopped")
    found = reading(ledger)
    assert of_steps(300) < found.epsilon <= limit and found.epsilon_charged == of(300)
    assert found.used is not None and found.used < 1


def test_at_the_order_fixed_in_advance_what_was_charged_bounds_the_loss_at_any_stop(ledger: BudgetLedger) -> None:
    """And nowhere else: not at an order that was fixed when runs had been seen."""
    manifest, other = pictures(ledger, range(5)), pictures(ledger, range(10, 15))
    ledger.create("pets", epsilon=8.0, delta=DELTA, manifest=manifest)
    ledger.reserve(RUN, manifest).settle(300, "stopped")
    found = reading(ledger)
    assert found.filter_order is not None
    rho = rdp_at(RUN.event, [found.filter_order])[0] * 300
    assert found.epsilon == pytest.approx(min(rho + math.log(1 / DELTA) / (found.filter_order - 1), of_steps(1000)))
    ledger.reserve(RUN, other, data_name="late", delta=DELTA).settle(300, "stopped")
    ledger.create("late", epsilon=8.0, delta=DELTA, manifest=other)
    assert reading(ledger, "late").epsilon == of(1000)
