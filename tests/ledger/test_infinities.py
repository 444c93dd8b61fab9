"""Orders without a bound: never free, never chosen, never lost on the way through the database."""

from __future__ import annotations

import json
import math

import pytest
from dp_accounting import dp_event

from dptrain import BudgetError, BudgetLedger
from dptrain.commands.main import main
from dptrain.ledger import curves, events, filters
from dptrain.privacy.accounting import dp_sgd_event, epsilon
from dptrain.privacy.random_stopping import RANDOM_STOPPING, random_stopping_event
from dptrain.privacy.rdp import ORDERS
from dptrain.support.words import shown

from .pictures import pictures

DELTA = 1e-5
GAPS = dp_sgd_event(0.08, 1, 0.4771)  # at some orders dp-accounting's series does not converge


@pytest.mark.parametrize("distribution", RANDOM_STOPPING)
def test_a_tuning_is_charged_shown_and_verified_and_a_second_run_comes_on_top(
    url: str, distribution: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = BudgetLedger(url)
    manifest = pictures(ledger, range(5))
    ledger.create("pets", epsilon=9.0, delta=DELTA, manifest=manifest)
    tuning = random_stopping_event(dp_sgd_event(0.02, 500, 1.5), 4.0, distribution)
    ledger.reserve(tuning, manifest).settle(1, "finished")
    assert ledger.show("pets")[0].epsilon == pytest.approx(epsilon(tuning, DELTA), rel=1e-9)
    run = dp_sgd_event(0.02, 300, 1.5)
    ledger.reserve(run, manifest).settle(300, "finished")
    both = epsilon(dp_event.ComposedDpEvent([tuning, run]), DELTA)
    again = BudgetLedger(url)
    assert again.show("pets")[0].epsilon == pytest.approx(both, rel=1e-9)
    assert again.verify().findings == ()
    with pytest.raises(BudgetError, match="do not fit"):
        again.reserve(random_stopping_event(dp_sgd_event(0.02, 3000, 0.8), 4.0, distribution), manifest)
    for command in ("show", "history", "export"):
        assert main(["budget", command, *(() if command == "export" else ("--json",)), "--url", url]) == 0
        json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


def test_the_one_infinite_number_of_an_event_comes_back_and_no_other_goes_in() -> None:
    event = random_stopping_event(dp_sgd_event(0.1, 5, 2.0), 3.0, "poisson")
    text = events.event_to_json(event)
    assert events.event_from_json(text) == event and "Infinity" not in text
    for wrong in (dp_event.GaussianDpEvent(math.inf), dp_event.RepeatAndSelectDpEvent(GAPS, math.inf, 1.0)):
        with pytest.raises(BudgetError, match="cannot be recorded"):
            events.event_to_json(wrong)
    edits = (('"infinity"', "Infinity"), ("2.0", '"infinity"'), ("3.0", '"x"'))
    for damaged in (text.replace(old, new) for old, new in edits):
        with pytest.raises(BudgetError, match="not an event"):
            events.event_from_json(damaged)


def test_an_order_without_a_bound_stays_without_one_and_is_never_free() -> None:
    step = curves.to_curve([math.inf, 0.5, math.nan, 2.0, math.inf])
    total = curves.total([(count, step) for count in (3, 2, 7)], range(5))
    assert total == (math.inf, 6.0, math.inf, 24.0, math.inf)
    assert curves.decode(curves.encode(total)) == total
    assert [curves.divergence([(12, step)], index) for index in range(5)] == [6.0, 6.0, 24.0, 24.0, math.inf]
    assert curves.total([], range(5)) == (0.0,) * 5
    finite = curves.total([(12, step), (1, curves.to_curve([1.0] * 5))], range(5))
    assert curves.largest([finite, total])[0] == math.inf


@pytest.mark.parametrize("huge", [1e100, 1e150, 1e308])
def test_a_bound_too_large_to_add_up_is_no_bound_and_not_a_small_one(huge: float) -> None:
    curve = curves.to_curve([huge])
    assert curve == (math.inf,)
    assert curves.divergence([(1, curve)] * 1000, 0) == math.inf
    nearly = curves.to_curve([0.99 * curves.MOST])
    assert math.isfinite(curves.divergence([(2**62, nearly)] * 1000, 0))


def test_a_filter_never_looks_at_an_order_without_a_bound() -> None:
    step = curves.step_curve(events.event_to_json(GAPS), ORDERS)
    endless = [order for order, value in zip(ORDERS, step, strict=True) if math.isinf(value)]
    assert endless
    found = filters.Filter.fix(step, ORDERS, 8.0, DELTA)
    assert found.order not in endless
    with pytest.raises(BudgetError, match="no RDP bound at any order"):
        filters.Filter.fix(curves.to_curve([math.inf] * len(ORDERS)), ORDERS, 8.0, DELTA)


@pytest.mark.parametrize("value", [1e24, 1e26, 1e61, 1e300])
def test_a_large_epsilon_can_be_written(value: float) -> None:
    assert float(shown(value)) >= value


@pytest.mark.parametrize("distribution", RANDOM_STOPPING)
def test_a_tuning_of_runs_with_orders_without_a_bound_is_charged_at_the_others(
    ledger: BudgetLedger, distribution: str
) -> None:
    tuning = random_stopping_event(dp_sgd_event(0.08, 6, 0.4771), 4.0, distribution)
    manifest = pictures(ledger, range(5))
    ledger.create("pets", epsilon=99.0, delta=1e-3, manifest=manifest)
    ledger.reserve(tuning, manifest).settle(1, "finished")
    ledger.reserve(tuning, manifest).settle(1, "finished")
    twice = epsilon(dp_event.SelfComposedDpEvent(tuning, 2), 1e-3)
    assert ledger.show("pets")[0].epsilon == pytest.approx(twice, rel=1e-9)
    assert math.isfinite(twice) and ledger.verify().findings == ()
