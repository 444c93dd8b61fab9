"""Counts of bounded contributions: the bound whatever a unit holds, the law of the noise, and what releases cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting.dp_event import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st

from dptrain import ConfigError
from dptrain.privacy import counts, noise
from dptrain.privacy.counts import ReleasePlan, bounded, release
from dptrain.privacy.exact import SENSITIVITY
from dptrain.privacy.streams import NoiseStream


@given(st.lists(st.floats(width=64), max_size=40))
def test_no_vector_adds_more_than_the_bound_whatever_it_holds(values: list[float]) -> None:
    whole = bounded(np.array(values))
    assert whole.dtype == torch.int64
    assert sum(int(v) ** 2 for v in whole.flatten().tolist()) <= SENSITIVITY**2


@pytest.mark.parametrize(
    "values", [[1e308] * 9, [math.nan, 1.0], [math.inf, 0.0], [-1e308, 1e308], [5e-324] * 3, [], [10_000.0] * 500]
)
def test_extreme_vectors_are_bounded_too(values: list[float]) -> None:
    assert sum(int(v) ** 2 for v in bounded(np.array(values)).tolist()) <= SENSITIVITY**2


def test_a_short_vector_keeps_its_length_and_a_long_one_its_direction() -> None:
    short, long = np.array([0.3, 0.0, 0.4]), np.array([30.0, 0.0, 40.0])
    torch.testing.assert_close(bounded(short).double() / SENSITIVITY, torch.from_numpy(short), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(bounded(long).double() / SENSITIVITY, torch.from_numpy(long / 50), rtol=1e-4, atol=1e-8)


def test_what_is_released_went_through_the_door_once_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = []
    real = noise.privatize

    def door(value, **stated):
        passed.append((value, stated["sensitivity"], stated["noise_multiplier"]))
        return real(value, **stated)

    monkeypatch.setattr(noise, "privatize", door)
    total = bounded(np.ones(3))
    found = release(total, 2.5, NoiseStream(1))
    assert len(passed) == 1
    value, sensitivity, multiplier = passed[0]
    assert torch.equal(value["counts"], total)
    assert (sensitivity, multiplier) == (SENSITIVITY, 2.5)
    assert not np.allclose(found, total.numpy() / SENSITIVITY)


def test_the_noise_has_the_law_that_is_accounted() -> None:
    """Seeded, so that it never fails by chance: mean, spread and tails of 40,000 entries."""
    total = torch.full((40_000,), 7 * SENSITIVITY, dtype=torch.int64)
    found = (release(total, 3.0, NoiseStream(11)) - 7.0) / 3.0
    assert abs(found.mean()) < 0.02
    assert abs(found.std() - 1) < 0.02
    for z, tail in ((1.0, 0.31731), (2.0, 0.0455), (3.0, 0.0027)):
        assert abs((np.abs(found) > z).mean() - tail) < 0.01


def test_two_releases_have_different_noise() -> None:
    total, stream = torch.zeros(50, dtype=torch.int64), NoiseStream()
    assert not np.array_equal(release(total, 1.0, stream), release(total, 1.0, stream))


@pytest.mark.parametrize("releases", [1, 3, 40])
def test_the_epsilon_is_that_of_as_many_gaussian_mechanisms(releases: int) -> None:
    plan = ReleasePlan(2.0, releases, 1e-4)
    event = SelfComposedDpEvent(GaussianDpEvent(2.0), releases)
    accountant = RdpAccountant()
    accountant.compose(event)
    assert plan.epsilon() == pytest.approx(accountant.get_epsilon(1e-4), rel=0.02)
    # The exact trade-off of Gaussian mechanisms (Balle and Wang 2018) is no higher than what is claimed.
    assert plan.epsilon("pld") <= plan.epsilon()
    assert plan.epsilon("pld") >= _analytic(math.sqrt(releases) / 2.0, 1e-4) - 1e-3


def _analytic(mu: float, delta: float) -> float:
    """The exact epsilon of Gaussian mechanisms that add up to sensitivity over noise mu."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(epsilon: float) -> float:
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta

    return brentq(excess, 0.0, 100.0)


@pytest.mark.parametrize("releases", [1, 10])
def test_calibration_meets_its_target_and_wastes_little(releases: int) -> None:
    plan = ReleasePlan.calibrate(epsilon=1.0, delta=1e-3, releases=releases)
    assert plan.epsilon() <= 1.0
    assert ReleasePlan(plan.noise_multiplier * 0.995, releases, 1e-3).epsilon() > 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"releases": 0}, "releases=0 must be a whole number"),
        ({"releases": True}, "releases=True"),
        ({"releases": 1.5}, "releases=1.5"),
        ({"delta": 1.0}, "delta"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"unit": "pixel"}, "unit='pixel'"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ReleasePlan(**{"noise_multiplier": 1.0, "releases": 1, "delta": 1e-3, **changes})


def test_the_bound_is_the_sensitivity_that_the_noise_is_scaled_to() -> None:
    """One unit more moves the sum by at most what the door is told; the longest vector comes to within 1 % of it."""
    newcomer = bounded(np.full(100, 1e6))
    norm = math.sqrt(sum(int(v) ** 2 for v in newcomer.tolist()))
    assert 0.99 * counts.exact.SENSITIVITY < norm <= counts.exact.SENSITIVITY
