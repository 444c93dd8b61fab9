"""Each perturbation does what its level says, and noise is worth what is computed for it."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from dptrain.errors import ConfigError
from dptrain.toolbox.perturbation import input_noise, local_epsilon, needed_level
from dptrain.toolbox.perturbation.epsilon import RANGE
from dptrain.toolbox.perturbation.kinds import KINDS, perturb


def grey(value: int = 128, side: int = 200) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def at(name: str, level: float, image: np.ndarray, seed: int = 0, picture: str = "a.png") -> np.ndarray:
    return perturb(image, KINDS[name], level, seed, picture)


@pytest.mark.parametrize("level", [3, 20])
def test_noise_has_the_standard_deviation_and_no_bias(level: float) -> None:
    found = at("noise", level, grey()).astype(float) - 128
    assert found.std() == pytest.approx(math.sqrt(level**2 + 1 / 12), rel=0.02)  # rounding adds a twelfth
    assert abs(found.mean()) < 5 * level / math.sqrt(found.size)
    assert abs(np.corrcoef(found[..., 0].ravel(), found[..., 1].ravel())[0, 1]) < 0.03  # each channel has its own


def test_noise_is_the_pictures_own_and_the_seeds() -> None:
    first = at("noise", 10, grey())
    assert (first == at("noise", 10, grey())).all()
    for other in (at("noise", 10, grey(), picture="b.png"), at("noise", 10, grey(), seed=1), at("noise", 11, grey())):
        assert abs(np.corrcoef((first - 128.0).ravel(), (other - 128.0).ravel())[0, 1]) < 0.02


def test_whoever_knows_the_seed_takes_the_noise_off() -> None:
    """Why an export forgets its seed."""
    secret = np.random.default_rng(5).integers(60, 190, (80, 80, 3), np.uint8)
    noisy = at("noise", 15, secret, seed=3)
    noise = at("noise", 15, grey(128, 80), seed=3).astype(int) - 128
    assert np.abs(noisy - noise - secret).max() <= 1


def test_blur_jpeg_and_dark_do_what_their_level_says() -> None:
    point = np.zeros((101, 101, 3), np.uint8)
    point[50, 50] = 255
    point = cv2.dilate(point, np.ones((9, 9)))
    blurred = at("blur", 4, point)[..., 0].astype(float)
    across = blurred.sum(0) / blurred.sum()
    spread = math.sqrt((across * (np.arange(101) - 50) ** 2).sum())
    assert spread == pytest.approx(math.sqrt(4**2 + (9**2 - 1) / 12), rel=0.05)
    scene = cv2.resize(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), (128, 128))
    errors = [np.abs(at("jpeg", quality, scene).astype(int) - scene).mean() for quality in (100, 50, 5)]
    assert errors == sorted(errors) and errors[0] < 3 and errors[2] > 4
    assert at("dark", 0.25, grey(200))[0, 0, 0] == round(200 * 0.25 ** (1 / 2.2))


@pytest.mark.parametrize("name", ["noise", "blur", "dark"])
def test_the_clean_level_changes_nothing(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    assert (at(name, KINDS[name].clean, image) == image).all()


def test_epsilon_is_that_of_the_gaussian_mechanism() -> None:
    """delta = Phi(1/2s - eps s) - exp(eps) Phi(-1/2s - eps s), Balle and Wang (2018)."""
    from scipy.stats import norm

    values, delta = 300, 1e-5
    for multiplier in (0.2, 1.0, 4.0):
        epsilon = local_epsilon(multiplier * RANGE * math.sqrt(values), values, delta)
        a = 1 / (2 * multiplier)
        found = norm.cdf(a - epsilon * multiplier) - math.exp(epsilon) * norm.cdf(-a - epsilon * multiplier)
        assert found == pytest.approx(delta, rel=1e-3)
        assert needed_level(epsilon, values, delta) == pytest.approx(multiplier * RANGE * math.sqrt(values), rel=1e-6)


def test_both_formulas_agree_where_they_meet_and_the_second_is_never_below() -> None:
    from dp_accounting import get_epsilon_gaussian

    values = 3 * 640 * 640
    for multiplier in (9.9e-4, 5e-4, 2e-4):
        ours = local_epsilon(multiplier * RANGE * math.sqrt(values), values, 1e-5)
        exact = get_epsilon_gaussian(multiplier, 1e-5)
        assert exact <= ours <= 1.01 * exact


def test_visible_pictures_have_hopeless_epsilons() -> None:
    whole, _, pixel = input_noise(50, 640, 640, 1e-5)
    assert whole.epsilon > 1e7 and whole.needed > 100_000
    assert pixel.epsilon > 30
    assert local_epsilon(0, 3, 1e-5) == math.inf
    with pytest.raises(ConfigError):
        local_epsilon(1, 3, 0)
