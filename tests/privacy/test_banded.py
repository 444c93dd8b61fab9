"""Correlated noise: its factor, its law, its sampler, what it is accounted as, and what one unit can move."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting.dp_event import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from torch import Tensor

from dptrain import ConfigError, PrivacyError, PrivacyPlan
from dptrain.privacy import banded_noise, noise
from dptrain.privacy.banded_noise import BandedStream
from dptrain.privacy.bands import MOST_BANDS, accumulated, best_bands, factor, rounds, square
from dptrain.privacy.calibration import calibrate_noise, calibrate_quickly
from dptrain.privacy.rdp import ORDERS, RELATION
from dptrain.privacy.sampling import CyclicPoissonSampler, part_of
from dptrain.privacy.streams import NoiseStream

SIZE, DELTA = 20_000, 1.9e-5
NAMES = [f"unit {number}".encode() for number in range(4000)]


def plan(**changes: Any) -> PrivacyPlan:
    values = {
        "sample_rate": 0.1,
        "steps": 21,
        "noise_multiplier": 1.5,
        "clip_norm": 0.5,
        "delta": 1e-5,
        "expected_batch_size": 8,
        "bands": 4,
    }
    return PrivacyPlan(**{**values, **changes})


def root(count: int) -> np.ndarray:
    """The coefficients of (1 - x)^(-1/2), by another formula: (2 k)! / (4^k k!^2)."""
    return np.array([math.exp(math.lgamma(2 * k + 1) - 2 * math.lgamma(k + 1) - k * math.log(4)) for k in range(count)])


def dense(steps: int, bands: int, begins: tuple[int, ...] = (0,)) -> np.ndarray:
    """C of all steps, made from its definition; block diagonal with a block from each of ``begins``."""
    column = root(bands) / np.linalg.norm(root(bands))
    made = np.zeros((steps, steps))
    for row in range(steps):
        begin = max(place for place in begins if place <= row)
        for back in range(min(bands, row - begin + 1)):
            made[row, row - back] = column[back]
    return made


# The factor.


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7, 16, 31, 32, 100, MOST_BANDS])
def test_no_column_of_the_factor_is_longer_than_one(bands: int) -> None:
    column = factor(bands)
    assert len(column) == bands and square(column) <= 1 and float(square(column)) == pytest.approx(1, abs=1e-12)
    assert np.allclose(column, root(bands) / np.linalg.norm(root(bands)), rtol=1e-12)
    assert all(one > other > 0 for one, other in itertools.pairwise(column))


@pytest.mark.parametrize("bands", [1, 2, 10, 100])
def test_the_factor_is_jax_privacys_for_prefix_sums(bands: int) -> None:
    """Goldens of google-deepmind/jax_privacy, tests/matrix_factorization/toeplitz_test.py (commit 8967688).

    ``test_fhu_coefs``: its strategy matrix, multiplied by itself, is the triangle of ones.
    ``test_banded_inverse_square_root_noising_coefs``: its inverse begins with 1, -1/2, -1/8, -1/16, -5/128.
    """
    column = np.array(factor(bands)) / factor(bands)[0]
    matrix = np.array([[column[i - j] if i >= j else 0.0 for j in range(bands)] for i in range(bands)])
    assert np.allclose(matrix @ matrix, np.tri(bands), atol=1e-9)
    inverse = np.linalg.inv(matrix)[:, 0]
    golden = [1, -1 / 2, -1 / 8, -1 / 16, -5 / 128][:bands]
    assert np.allclose(inverse[: len(golden)], golden, atol=1e-9)


def test_a_factor_that_is_too_long_makes_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banded_noise, "factor", lambda bands: (1.0, 2.0**-40))
    with pytest.raises(PrivacyError, match="column longer than 1"):
        BandedStream(2)


# The law of the noise.


def rows(stream: NoiseStream, steps: int, count: int = 60_000) -> np.ndarray:
    return np.stack([stream.at(step).gaussian(count).numpy() for step in range(steps)])


def is_identity(found: np.ndarray, count: int) -> bool:
    """Whether a covariance of that many samples is the identity's, up to six deviations of an entry."""
    deviation = np.sqrt((1 + np.eye(len(found))) / count)
    return bool((np.abs(found - np.eye(len(found))) < 6 * deviation).all())


@pytest.mark.parametrize(("bands", "steps"), [(2, 8), (5, 12), (8, 20), (32, 12)])
def test_the_covariance_over_steps_is_that_of_the_inverse_factor(bands: int, steps: int) -> None:
    numbers = rows(BandedStream(bands), steps)
    inverse = np.linalg.inv(dense(steps, bands))
    expected = inverse @ inverse.T
    found = numbers @ numbers.T / numbers.shape[1]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.allclose(found / scale, expected / scale, atol=0.03)
    white = dense(steps, bands) @ numbers
    assert is_identity(white @ white.T / white.shape[1], white.shape[1])
    assert abs(expected[0, 1]) / scale[0, 1] > 0.2, "independent noise would not pass"


def test_noise_of_different_numbers_is_independent() -> None:
    numbers = rows(BandedStream(3), 6)
    assert abs(float(np.corrcoef(numbers[2, :-1], numbers[3, 1:])[0, 1])) < 0.03


@pytest.mark.parametrize("how", ["restart", "gap"])
def test_a_new_beginning_is_a_block_of_its_own(how: str) -> None:
    stream = BandedStream(4)
    taken = list(range(5)) + (list(range(5, 11)) if how == "restart" else list(range(7, 13)))
    numbers = []
    for place, step in enumerate(taken):
        if how == "restart" and place == 5:
            stream.restart()
        numbers.append(stream.at(step).gaussian(60_000).numpy())
    white = dense(11, 4, begins=(0, 5)) @ np.stack(numbers)
    assert is_identity(white @ white.T / white.shape[1], white.shape[1])


def test_no_step_has_two_noises_and_none_has_noise_without_its_number() -> None:
    stream = BandedStream(4)
    with pytest.raises(PrivacyError, match=r"stream\.at"):
        stream.gaussian(3)
    stream.at(2).gaussian(3)
    with pytest.raises(PrivacyError, match=r"stream\.at"):
        stream.gaussian(3)
    for step in (1, 2):
        with pytest.raises(PrivacyError, match=f"noise of step {step + 1} was drawn before"):
            stream.at(step)
    with pytest.raises(PrivacyError, match="5 numbers of noise after 3"):
        stream.at(3).gaussian(5)


def test_what_is_done_to_the_noise_of_a_step_does_not_reach_the_next() -> None:
    one, other = BandedStream(3, seed=1), BandedStream(3, seed=1)
    for step in range(4):
        numbers = one.at(step).gaussian(10)
        assert torch.equal(numbers, other.at(step).gaussian(10))
        numbers.mul_(100.0)


def test_the_noise_of_a_plan_passes_its_door_scaled_and_correlated() -> None:
    how = plan(steps=6)
    mechanism, stream = how.mechanism(["w"]), how.noise_stream()
    got = np.stack(
        [mechanism.noise({"w": torch.zeros(60_000, dtype=torch.float64)}, stream.at(t))["w"].numpy() for t in range(6)]
    )
    white = dense(6, 4) @ got / (1.5 * 0.5 / 8)
    assert is_identity(white @ white.T / white.shape[1], white.shape[1])


def test_a_plan_takes_no_noise_of_other_bands_and_no_exact_one() -> None:
    total = {"w": torch.zeros(3)}
    for how, stream in ((plan(), NoiseStream()), (plan(bands=1), BandedStream(4)), (plan(bands=2), BandedStream(4))):
        with pytest.raises(ConfigError, match="bands for a plan of"):
            how.mechanism(["w"]).noise(total, stream.at(0))
    whole = {"w": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ConfigError, match="exact noise of 4 bands"):
        plan().mechanism(["w"]).noise(whole, plan().noise_stream().at(0))


# The sampler.


def test_a_unit_is_drawn_in_its_part_only_at_the_accounted_rate() -> None:
    how = plan(sample_rate=0.2, steps=4000)
    sampler = how.sampler(len(NAMES), NoiseStream(), NAMES)
    assert isinstance(sampler, CyclicPoissonSampler) and sampler.sample_rate == how.accounted()[0] == 0.8
    used = np.zeros((len(NAMES), 4))
    for draw, step in zip(sampler.draws(400), range(400), strict=True):
        used[draw.indices, step % 4] += 1
    parts = np.array([part_of(name, 4) for name in NAMES])
    assert (used[np.arange(len(NAMES)), parts] == used.sum(axis=1)).all(), "a unit was drawn outside its part"
    share = used.sum(axis=1) / 100
    assert share.mean() == pytest.approx(0.8, abs=0.005) and share.std() == pytest.approx(0.04, rel=0.1)
    assert np.bincount(parts).tolist() == pytest.approx([1000] * 4, abs=5 * math.sqrt(750))


def test_a_part_follows_from_the_unit_alone_wherever_it_is_numbered() -> None:
    """With a part by number, an image that comes first in the folder would move all others."""
    found = plan().sampler(20, NoiseStream(), NAMES[:20])
    more = plan().sampler(21, NoiseStream(), [b"newcomer", *NAMES[:20]])
    assert found.parts.tolist() == more.parts[1:].tolist()  # type: ignore[attr-defined]
    digest = hashlib.sha256(b"dptrain part of a unit:newcomer").digest()
    assert part_of(b"newcomer", 7) == int.from_bytes(digest[:16]) % 7


def test_one_unit_more_moves_no_other_draw_and_no_seed() -> None:
    draws = [list(plan().sampler(count, NoiseStream(3, "sampling"), NAMES[:count]).draws(20)) for count in (30, 31)]
    for one, other in zip(*draws, strict=True):
        assert one.indices.tolist() == other.indices[other.indices < 30].tolist() and one.seed == other.seed


def test_draws_of_a_unit_are_independent() -> None:
    sampler = plan(sample_rate=0.125).sampler(4000, NoiseStream(), NAMES)
    one, other = sampler.draw(0), sampler.draw(4)
    half = int((sampler.parts == 0).sum()) / 4  # type: ignore[attr-defined]
    assert len(np.intersect1d(one.indices, other.indices)) == pytest.approx(half, abs=6 * math.sqrt(half))


@pytest.mark.parametrize("identities", [None, NAMES[:5]])
def test_a_plan_with_bands_draws_nobody_without_the_units_identities(identities: Any) -> None:
    with pytest.raises(ConfigError, match="4 bands needs the identities of the 6 units"):
        plan().sampler(6, NoiseStream(), identities)


# The accounting.


def test_the_event_is_that_of_a_unit_composed_by_hand() -> None:
    how = plan()
    for taken in (*range(1, 10), 20, 21):
        most = max(len([t for t in range(taken) if t % 4 == part]) for part in range(4))
        by_hand = ComposedDpEvent([PoissonSampledDpEvent(0.4, GaussianDpEvent(1.5))] * most)
        expected = RdpAccountant(ORDERS, RELATION).compose(by_hand).get_epsilon(1e-5)
        assert how.epsilon(steps=taken) == pytest.approx(expected, rel=1e-12)
        assert RdpAccountant(ORDERS, RELATION).compose(how.event(taken)).get_epsilon(1e-5) == pytest.approx(expected)
        assert how.accounted(taken) == (0.4, most)
    assert how.epsilon() == how.epsilon(steps=24) > how.epsilon(steps=20)
    assert how.epsilon(steps=0) == 0.0 and how.epsilon("pld") < how.epsilon()


def test_one_band_is_independent_noise() -> None:
    how = plan(bands=1)
    assert how == PrivacyPlan(0.1, 21, 1.5, 0.5, 1e-5, 8) and type(how.noise_stream()) is NoiseStream
    assert type(how.sampler(3, NoiseStream())).__name__ == "PoissonSampler"
    assert how.event() == PrivacyPlan(0.1, 21, 1.5, 0.5, 1e-5, 8).event()
    assert how.signal == pytest.approx(0.1 * math.sqrt(21 / 2) / 1.5)


def test_calibration_and_steps_are_of_the_banded_event() -> None:
    how = PrivacyPlan.calibrate(epsilon=4.0, delta=1e-5, sample_rate=0.05, steps=101, expected_batch_size=8, bands=8)
    assert how.bands == 8 and how.noise_multiplier == calibrate_noise(4.0, 1e-5, 0.4, 13)
    assert how.epsilon() <= 4.0 < PrivacyPlan(0.05, 101, how.noise_multiplier - 1e-3, 1.0, 1e-5, 8, bands=8).epsilon()
    found = PrivacyPlan.steps_for(
        epsilon=4.0, delta=1e-5, sample_rate=0.05, noise_multiplier=2.0, expected_batch_size=8, bands=8
    )
    assert found.steps % 8 == 0 and found.epsilon() <= 4.0
    assert PrivacyPlan(0.05, found.steps + 1, 2.0, 1.0, 1e-5, 8, bands=8).epsilon() > 4.0


def test_a_plan_with_bands_is_written_and_read() -> None:
    assert PrivacyPlan.from_dict(plan().to_dict()) == plan() and plan().to_dict()["bands"] == 4
    for value in (True, "4", 2.0):
        with pytest.raises(ConfigError, match="bands="):
            PrivacyPlan.from_dict({**plan().to_dict(), "bands": value})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bands": 0}, "bands=0 must be a whole number, at least 1"),
        ({"bands": MOST_BANDS + 1}, "at most 1024"),
        ({"bands": 11}, "bands=11 at sample_rate=0.1 .* at most 10 bands"),
        ({"unit": "group"}, "bands=4 with unit=group is not worked out"),
    ],
)
def test_bands_that_are_not_accounted_for_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(**changes)


# What it saves.


@pytest.mark.parametrize(("steps", "bands"), [(1, 1), (50, 1), (50, 4), (7, 8), (800, 32), (2500, 4), (1500, 2)])
def test_the_noise_on_sums_is_that_of_the_matrices(steps: int, bands: int) -> None:
    sums = np.tri(steps) @ np.linalg.inv(dense(steps, bands))
    assert accumulated(steps, bands) == pytest.approx(np.linalg.norm(sums) / math.sqrt(steps), rel=1e-9)


@pytest.mark.parametrize(
    ("epsilon", "steps", "batch", "shares"),
    [
        (8.0, 50, 1024, {4: 0.78, 8: 0.75, 16: 0.75}),
        (8.0, 800, 64, {4: 0.65, 8: 0.53, 16: 0.45, 32: 0.40}),
        (8.0, 800, 256, {4: 0.73, 8: 0.66, 16: 0.62, 32: 0.60}),
        (8.0, 800, 1024, {4: 0.96, 8: 0.99, 16: 1.01}),
        (2.0, 800, 64, {4: 0.68, 8: 0.59, 16: 0.54, 32: 0.52}),
        (2.0, 800, 256, {4: 0.92, 8: 0.94, 16: 0.98, 32: 1.04}),
    ],
)
def test_the_share_of_independent_noise_by_dense_matrices(
    epsilon: float, steps: int, batch: int, shares: dict[int, float]
) -> None:
    """Goldens of an earlier prototype. Here both kinds of noise are worked out from the matrices alone."""
    rate = batch / SIZE
    independent = calibrate_noise(epsilon, DELTA, rate, steps) * np.linalg.norm(np.tri(steps))
    for bands, golden in shares.items():
        multiplier = calibrate_noise(epsilon, DELTA, bands * rate, math.ceil(steps / bands))
        sums = np.tri(steps) @ np.linalg.inv(dense(steps, bands))
        assert multiplier * np.linalg.norm(sums) / independent == pytest.approx(golden, abs=0.007)
        how = PrivacyPlan.calibrate(
            epsilon=epsilon, delta=DELTA, sample_rate=rate, steps=steps, expected_batch_size=batch, bands=bands
        )
        assert how.signal == pytest.approx(
            rate * math.sqrt(steps / 2) * np.linalg.norm(np.tri(steps)) / how.noise_multiplier / np.linalg.norm(sums)
        )


@pytest.mark.parametrize(("epsilon", "best"), [(20.0, 10), (0.1, 1)])
def test_the_best_bands_are_jax_privacys(epsilon: float, best: int) -> None:
    """Goldens of google-deepmind/jax_privacy, toeplitz_test.py: ``test_large_epsilon``, ``test_small_epsilon``."""
    found, share = best_bands(100 / 1000, 100, lambda rate, count: calibrate_quickly(epsilon, 1e-6, rate, count)[0])
    assert found == best and (share < 1.0) == (best > 1)


def test_bands_that_no_noise_is_enough_for_are_not_the_best() -> None:
    def noise(rate: float, count: int) -> float:
        if rate > 0.1:
            raise ConfigError("no")
        return 1.0

    assert best_bands(0.05, 100, noise)[0] == 2


def test_rounds_are_begun_ones() -> None:
    assert [rounds(0.25, steps, 4)[1] for steps in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2] and rounds(0.25, 1, 4)[0] == 1.0


# What one unit can move.


@pytest.mark.parametrize("begins", [(0,), (0, 5), (0, 1, 7, 8, 9, 17)])
def test_one_use_of_a_unit_moves_rows_of_its_own_by_at_most_the_sensitivity(begins: tuple[int, ...]) -> None:
    """Whatever its gradients are, wherever the correlation begins anew, and where the run ends in the midst of it."""
    matrix, generator = dense(21, 4, begins), np.random.default_rng(0)
    for part in range(4):
        own = np.zeros((21, 6))
        uses = range(part, 21, 4)
        for step in uses:
            direction = generator.normal(size=6)
            own[step] = 0.5 * direction / np.linalg.norm(direction)
        moved = matrix @ own
        for step in uses:
            assert np.linalg.norm(moved[step : step + 4]) <= 0.5 * (1 + 1e-12)
        touched = [row for step in uses for row in range(step, min(step + 4, 21))]
        assert len(touched) == len(set(touched)) and not np.delete(moved, touched, axis=0).any()


def test_the_door_sees_the_sum_itself_and_the_past_noise_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = noise.privatize
    monkeypatch.setattr(
        noise, "privatize", lambda value, **said: (seen.append(value["w"].clone()), real(value, **said))[1]
    )
    how, stream = plan(), plan().noise_stream()
    for step in range(5):
        how.mechanism(["w"]).noise({"w": torch.full((4,), float(step))}, stream.at(step))
    assert [float(value[0]) for value in seen] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert len(stream._past) == 3  # type: ignore[attr-defined]
