"""An accountant as another package would register it: shown beside the claim, and never the claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dp_accounting.dp_event import DpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

import dptrain
from dptrain import ConfigError, PrivacyPlan
from dptrain.privacy import accounting, outside_accountant

PLAN = PrivacyPlan(0.02, 100, 1.0, 1.0, 1e-5, 64)


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(outside_accountant, "_ACCOUNTANTS", {})
    accounting.dp_sgd_epsilon.cache_clear()
    yield
    accounting.dp_sgd_epsilon.cache_clear()


def unsampled(event: DpEvent, delta: float) -> float:
    """The classic bound of the Gaussian mechanism, of T steps that draw everybody (Dwork and Roth 2014)."""
    assert isinstance(event, SelfComposedDpEvent)
    step = event.event.event if isinstance(event.event, PoissonSampledDpEvent) else event.event
    assert isinstance(step, GaussianDpEvent)
    return math.sqrt(event.count * 2.0 * math.log(1.25 / delta)) / step.noise_multiplier


def test_a_plan_shows_the_epsilon_of_a_registered_accountant() -> None:
    dptrain.register_accountant("classic")(unsampled)
    assert PLAN.epsilon("classic") == pytest.approx(math.sqrt(200.0 * math.log(1.25e5)))
    assert PLAN.epsilon("classic", steps=25) == pytest.approx(PLAN.epsilon("classic") / 2)
    assert PLAN.epsilon("classic", steps=0) == 0.0
    assert PLAN.epsilon() < PLAN.epsilon("classic")


def test_no_claim_follows_it() -> None:
    """One that promises everything for nothing changes no number that is claimed."""
    from dptrain.statement.facts import claim_of

    def read() -> list[Any]:
        calibrated = PrivacyPlan.calibrate(epsilon=1.0, delta=1e-5, sample_rate=0.02, steps=100, expected_batch_size=64)
        return [PLAN.epsilon(), PLAN.epsilon("pld"), claim_of(PLAN, PLAN.steps, None), calibrated]

    before = read()
    dptrain.register_accountant("generous")(lambda event, delta: 0.0)
    accounting.dp_sgd_epsilon.cache_clear()
    assert PLAN.epsilon("generous") == 0.0
    assert read() == before


@pytest.mark.parametrize("found", [-1.0, math.nan, -math.inf])
def test_what_is_no_epsilon_is_refused(found: float) -> None:
    dptrain.register_accountant("odd")(lambda event, delta: found)
    with pytest.raises(ConfigError, match="accountant='odd' returned epsilon"):
        PLAN.epsilon("odd")


def test_names_that_are_taken_or_unknown_are_refused() -> None:
    make: Callable[[Any], Any] = dptrain.register_accountant
    make("classic")(unsampled)
    for name in ("rdp", "pld", "classic", "", None):
        with pytest.raises(ConfigError, match="the name is taken, or none"):
            make(name)
    with pytest.raises(ConfigError, match="accountant='gdp' is not one of rdp, pld, classic"):
        PLAN.epsilon("gdp")
    with pytest.raises(ConfigError, match="delta"):
        accounting.epsilon(PLAN.event(), 2.0, "classic")
