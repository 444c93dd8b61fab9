"""The frozen plan that checked settings ask for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .limits import clipping_of
from .schema import DEFAULT_EXPECTED_BATCH_SIZE, PRIVATE, PrivacyConfig, TrainConfig

if TYPE_CHECKING:
    from ..privacy.counts import ReleasePlan
    from ..privacy.plan import PrivacyPlan

logger = logging.getLogger(__name__)


def make_plan(config: TrainConfig) -> PrivacyPlan:
    """Turn a resolved configuration into the frozen plan; any two of {epsilon, noise_multiplier, steps} find the third.

    No value is ever taken from the images: sample rate, batch size and delta come from the settings or from the
    *declared* dataset size.

    Warns, on the logger ``dptrain.settings.to_plan``, of a delta that is not below 1/n and of a seed.

    Raises:
        ConfigError: Too few or too many of the three are given, a public constant is missing, or the target
            cannot be met.
    """
    from ..privacy.plan import PrivacyPlan

    privacy, steps = config.privacy, config.steps
    if privacy.epsilon is None and privacy.noise_multiplier is None:
        raise ConfigError("no guarantee is set: give privacy.epsilon=8 (the target) or privacy.noise_multiplier=1.0")
    if privacy.epsilon is not None and privacy.noise_multiplier is not None and steps is not None:
        raise ConfigError(
            f"privacy.epsilon={privacy.epsilon}, privacy.noise_multiplier={privacy.noise_multiplier} and steps={steps} "
            "are one too many: any two determine the third, so leave one out"
        )
    batch_size, sample_rate, delta = _public_constants(privacy)
    _warn(config, delta)
    if steps is None and (privacy.epsilon is None or privacy.noise_multiplier is None):
        raise ConfigError(
            "steps is not set: give a number, such as steps=200; a single run can leave it to time=1h or epochs=9"
        )
    common: dict[str, Any] = {
        "sample_rate": sample_rate,
        "clip_norm": privacy.clip_norm,
        "delta": delta,
        "expected_batch_size": batch_size,
        "unit": privacy.unit,
        "clipping": clipping_of(privacy),
    }
    if privacy.noise == "banded":
        common["bands"] = privacy.bands or _best_bands(privacy, sample_rate, delta, steps)
    if privacy.epsilon is None:
        assert privacy.noise_multiplier is not None and steps is not None
        return PrivacyPlan(noise_multiplier=privacy.noise_multiplier, steps=steps, **common)
    if privacy.noise_multiplier is None:
        assert steps is not None
        return PrivacyPlan.calibrate(epsilon=privacy.epsilon, steps=steps, **common)
    return PrivacyPlan.steps_for(epsilon=privacy.epsilon, noise_multiplier=privacy.noise_multiplier, **common)


def make_release_plan(config: TrainConfig, steps: int) -> ReleasePlan | None:
    """Return what evaluating on a private val split releases in a run of ``steps`` steps; None for another split.

    Every number is declared: nothing is counted in the val split.

    Raises:
        ConfigError: The target cannot be met.
    """
    from ..privacy.counts import ReleasePlan

    section = config.validation_privacy
    if config.validation != PRIVATE:
        return None
    releases = -(-steps // (config.evaluate_every or steps))
    delta = section.delta
    if delta is None:
        assert section.dataset_size is not None
        delta = float(section.dataset_size) ** -1.1
        logger.info("validation_privacy.delta is dataset_size**-1.1 = %.3g", delta)
    elif section.dataset_size is not None and delta >= 1 / section.dataset_size:
        logger.warning(
            "validation_privacy.delta=%g is not below 1/dataset_size=%.3g, and so permits releasing whole units: "
            "leave it out for %.3g",
            delta,
            1 / section.dataset_size,
            section.dataset_size**-1.1,
        )
    unit = config.privacy.unit
    if section.noise_multiplier is not None:
        return ReleasePlan(section.noise_multiplier, releases, delta, unit)
    assert section.epsilon is not None
    return ReleasePlan.calibrate(epsilon=section.epsilon, delta=delta, releases=releases, unit=unit)


def _best_bands(privacy: PrivacyConfig, sample_rate: float, delta: float, steps: int | None) -> int:
    """The number of bands with the least noise on sums of gradients; more than 1."""
    from ..privacy.bands import best_bands
    from ..privacy.calibration import calibrate_quickly

    epsilon = privacy.epsilon
    if epsilon is None or privacy.noise_multiplier is not None:
        raise ConfigError(
            "privacy.bands is not set, and is found for a given privacy.epsilon and steps only: give privacy.bands=8"
        )
    assert steps is not None
    bands, share = best_bands(sample_rate, steps, lambda rate, count: calibrate_quickly(epsilon, delta, rate, count)[0])
    if bands == 1:
        raise ConfigError(
            f"privacy.noise=banded saves nothing in {steps} steps at sample rate {sample_rate:.4g}: leave it out, or "
            "take more steps of smaller batches (dptrain plan shows what they save)"
        )
    logger.info("privacy.bands is not set: %d, %.0f %% of the noise of independent steps on sums", bands, 100 * share)
    return bands


def _public_constants(privacy: PrivacyConfig) -> tuple[int, float, float]:
    """Expected batch size, sample rate and delta from what is declared; each default is said in a line."""
    size, batch_size, sample_rate, delta = (
        privacy.dataset_size,
        privacy.expected_batch_size,
        privacy.sample_rate,
        privacy.delta,
    )
    declare = f"declare the number of training {privacy.unit}s you are willing to make public, privacy.dataset_size=..."
    if sample_rate is None:
        if size is None:
            raise ConfigError(
                f"privacy.sample_rate is not set, and the files are not counted for it (their number is private): "
                f"{declare}, or give privacy.sample_rate=..."
            )
        if batch_size is None:
            batch_size = min(DEFAULT_EXPECTED_BATCH_SIZE, size)
            logger.info("privacy.expected_batch_size is not set: %d", batch_size)
        sample_rate = batch_size / size
        if sample_rate > 1:
            raise ConfigError(
                f"privacy.expected_batch_size={batch_size} is more than privacy.dataset_size={size}: "
                "the sample rate would be over 1; give a smaller batch"
            )
        logger.info("privacy.sample_rate is %d/%d = %.6g", batch_size, size, sample_rate)
    elif batch_size is None:
        if size is None:
            raise ConfigError(
                f"privacy.expected_batch_size is not set: give it (such as {DEFAULT_EXPECTED_BATCH_SIZE}), or {declare}"
            )
        batch_size = max(1, round(sample_rate * size))
        logger.info("privacy.expected_batch_size is %.6g x %d = %d", sample_rate, size, batch_size)
    if delta is None:
        if size is None:
            raise ConfigError(f"privacy.delta is not set: give privacy.delta=1e-5 (no silent default), or {declare}")
        delta = float(size) ** -1.1
        logger.info("privacy.delta is dataset_size**-1.1 = %.3g", delta)
    return batch_size, sample_rate, delta


def _warn(config: TrainConfig, delta: float) -> None:
    size = config.privacy.dataset_size
    if size is not None and delta >= 1 / size:
        logger.warning(
            "privacy.delta=%g is not below 1/dataset_size=%.3g, and so permits releasing whole units: "
            "leave it out for %.3g",
            delta,
            1 / size,
            size**-1.1,
        )
    if config.seed is not None:
        logger.warning("seed=%d: noise that can be predicted protects nobody; the guarantee is void", config.seed)
