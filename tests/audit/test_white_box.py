"""The white-box audit of the trainer itself: honest runs pass, and each fault that was put in is found.

``python -m experiments.audits`` repeats the audit with noise from the operating system; see docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from dptrain.audit import AuditResult, audit_training, default_plan
from dptrain.audit.scenes import draw_scene, write_dataset
from dptrain.errors import ConfigError
from dptrain.privacy import clipping, noise, sampling, streams
from dptrain.privacy.sampling import Draw

SMALL = {"steps": 10, "canaries": 400}


def audit(epsilon: float = 8.0, seed: int | None = 0, **changes: Any) -> AuditResult:
    sizes = {**SMALL, **changes}
    return audit_training(default_plan(epsilon=epsilon, **sizes), canaries=sizes["canaries"], seed=seed)


def test_a_correct_run_passes_and_its_noise_and_shares_are_measured_as_planned() -> None:
    result = audit()
    assert not result.violation and result.faults == ()
    assert 0 < result.epsilon_lower_bound < result.claimed_epsilon <= 8
    assert result.measured is not None
    assert result.measured.noise == pytest.approx(1, abs=0.06)
    assert result.measured.share == pytest.approx(1, abs=0.3)
    assert abs(result.measured.repeated) < 0.1
    assert result.guesses == 40 and result.included.sum() == pytest.approx(200, abs=40)


def test_at_claimed_epsilon_8_the_bound_is_above_35_percent() -> None:
    result = audit(steps=4, sample_rate=1.0, canaries=3000)  # with subsampling: experiments.audits
    assert result.epsilon_lower_bound >= 0.35 * result.claimed_epsilon
    assert not result.violation


def test_noise_secretly_halved_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = noise.privatize

    def halved(value: Mapping[str, Tensor], *, noise_multiplier: float, **rest: Any) -> dict[str, Tensor]:
        return real(value, noise_multiplier=noise_multiplier / 2, **rest)

    monkeypatch.setattr(noise, "privatize", halved)
    result = audit()
    assert result.violation and result.as_dict()["verdict"] == "violation"
    assert result.measured is not None and result.measured.noise == pytest.approx(0.5, abs=0.03)
    assert "the noise is" in result.faults[-1]


def test_the_bound_itself_passes_the_claim_where_most_noise_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = noise.privatize

    def tenth(value: Mapping[str, Tensor], *, noise_multiplier: float, **rest: Any) -> dict[str, Tensor]:
        return real(value, noise_multiplier=noise_multiplier / 10, **rest)

    monkeypatch.setattr(noise, "privatize", tenth)
    result = audit(epsilon=1.0)
    assert result.epsilon_lower_bound > result.claimed_epsilon
    assert result.faults[0].startswith("epsilon is at least")


def test_a_unit_that_is_counted_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sampling.PoissonSampler.draw

    def twice(self: sampling.PoissonSampler, step: int) -> Draw:
        draw = real(self, step)
        return Draw(np.repeat(draw.indices, 2), draw.seed)

    monkeypatch.setattr(sampling.PoissonSampler, "draw", twice)
    assert_share(audit(), 2.0)


def test_noise_that_is_used_again_at_the_next_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.NoiseStream, "at", lambda self, step: streams.NoiseStream(0, self._purpose))
    monkeypatch.setattr(sampling.PoissonSampler, "draw", unseeded_draw)
    assert "of the noise is that of the step before" in audit().faults[-1]


def unseeded_draw(self: sampling.PoissonSampler, step: int) -> Draw:
    coins = np.random.default_rng(step).random(self.num_units)
    return Draw(np.flatnonzero(coins < self.sample_rate), step)


def test_a_sample_rate_above_the_plans_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sampling.PoissonSampler.__init__
    monkeypatch.setattr(
        sampling.PoissonSampler, "__init__", lambda self, units, rate, stream: real(self, units, 1.8 * rate, stream)
    )
    assert_share(audit(), 1.8)


def test_a_clip_that_does_not_clip_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping.FlatClip, "weights", lambda self, squared_norms: squared_norms.double() * 0 + 1)
    assert_share(audit(), 10.0)


def assert_share(result: AuditResult, share: float) -> None:
    assert result.measured is not None and result.measured.share == pytest.approx(share, rel=0.2)
    assert result.violation and "one unit adds" in result.faults[-1]


def test_a_seed_repeats_an_audit_and_without_one_no_two_are_alike() -> None:
    first, again, other = (audit(seed=seed, steps=2, canaries=60) for seed in (3, 3, None))
    assert np.array_equal(first.scores, again.scores) and np.array_equal(first.included, again.included)
    assert not np.array_equal(first.scores, other.scores)


def test_a_detector_on_public_images_is_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPTRAIN_BUDGET_URL", f"sqlite:///{tmp_path / 'none.db'}")
    rng = np.random.default_rng(0)
    data = write_dataset(tmp_path / "open", [draw_scene(64, rng) for _ in range(3)], ["a", "b", "c"])
    plan = default_plan(steps=2, canaries=60)
    result = audit_training(plan, model="yolo26n.yaml", data=data, public=True, canaries=60, seed=0)
    assert not result.violation and result.model == "yolo26n.yaml" and result.data == "data (declared public)"
    assert result.measured is not None and result.measured.noise == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"data": "private.yaml", "model": "yolo26n.yaml"}, "public"),
        ({"public": True}, "public"),
        ({"data": "open.yaml", "public": True}, "needs a detector"),
        ({"canaries": 19}, "canaries=19"),
        ({"guesses": 801}, "guesses=801"),
        ({"guesses": []}, "guesses"),
        ({"confidence": 95.0}, "confidence=95"),
        ({"threat": "grey-box"}, "grey-box"),
        ({"imgsz": 50}, "imgsz=50"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_training(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        audit_training(**{"canaries": 800, **wrong})
