"""The noise that is really added, and the generator it comes from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dptrain import ConfigError, PrivacyError
from dptrain.privacy.noise import privatize
from dptrain.privacy.streams import NoiseStream

SIGNIFICANCE = 1e-6  # of a false alarm; the wrong scales below are rejected far beyond it


def _added(multiplier: float, sensitivity: float) -> np.ndarray:
    value = {"a": torch.full((300, 200), 3.0), "b": torch.full((50_001,), -1.0)}
    noised = privatize(value, sensitivity=sensitivity, noise_multiplier=multiplier, stream=NoiseStream())
    return torch.cat([(noised[k] - value[k]).flatten() for k in value]).double().numpy()


def test_what_is_added_is_gaussian_of_the_right_scale_and_no_other() -> None:
    added = _added(1.3, 0.7)
    assert stats.kstest(added, stats.norm(0, 1.3 * 0.7).cdf).pvalue > SIGNIFICANCE
    for wrong in (0.9, 1.1):
        assert stats.kstest(added, stats.norm(0, wrong * 1.3 * 0.7).cdf).pvalue < SIGNIFICANCE


def test_parameters_get_different_noise() -> None:
    stream = NoiseStream()
    noised = privatize(
        {"a": torch.zeros(1000), "b": torch.zeros(1000)}, sensitivity=1.0, noise_multiplier=1.0, stream=stream
    )
    again = privatize({"a": torch.zeros(1000)}, sensitivity=1.0, noise_multiplier=1.0, stream=stream)
    for one, other in ((noised["a"], noised["b"]), (noised["a"], again["a"]), (noised["a"][:500], noised["a"][500:])):
        assert abs(float(torch.corrcoef(torch.stack((one, other)))[0, 1])) < 0.25
        assert not torch.equal(one, other)


def test_unseeded_streams_differ_and_never_repeat() -> None:
    one, other = NoiseStream(), NoiseStream()
    draws = [one.gaussian(64), one.gaussian(64), other.gaussian(64), one.at(0).gaussian(64), one.at(0).gaussian(64)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[i + 1 :])
    assert one.secure


def test_seeded_stream_repeats_by_step_and_says_so() -> None:
    one, other = NoiseStream(seed=3, purpose="noise"), NoiseStream(seed=3, purpose="noise")
    assert not one.secure
    assert torch.equal(one.at(5).gaussian(9), other.at(5).gaussian(9))
    assert not torch.equal(one.at(5).gaussian(9), one.at(6).gaussian(9))
    assert not torch.equal(one.at(5).gaussian(9), NoiseStream(seed=3, purpose="sampling").at(5).gaussian(9))


def test_uniform_and_integer() -> None:
    stream = NoiseStream()
    uniform = stream.uniform(100_000)
    assert uniform.min() >= 0.0 and uniform.max() < 1.0
    assert stats.kstest(uniform, "uniform").pvalue > SIGNIFICANCE
    assert 0 <= stream.integer() < 2**63


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_any_count(count: int) -> None:
    assert NoiseStream().gaussian(count).shape == (count,)


def test_tails_are_there() -> None:
    """Sixty-four bits a number reach beyond the 4.5 that a million draws should show."""
    assert float(NoiseStream().gaussian(1_000_000).abs().max()) > 4.0


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_refused(bad: float) -> None:
    value = {"a": torch.zeros(2)}
    with pytest.raises(ConfigError, match="noise_multiplier"):
        privatize(value, sensitivity=1.0, noise_multiplier=bad, stream=NoiseStream())
    with pytest.raises(ConfigError, match="sensitivity"):
        privatize(value, sensitivity=bad, noise_multiplier=1.0, stream=NoiseStream())


def test_a_sum_that_is_not_finite_never_leaves() -> None:
    with pytest.raises(PrivacyError, match="'a'"):
        privatize({"a": torch.tensor([1.0, math.nan])}, sensitivity=1.0, noise_multiplier=1.0, stream=NoiseStream())
