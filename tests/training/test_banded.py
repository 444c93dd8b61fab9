"""Correlated noise in the loop: what the optimizer gets, across phases and resumes, and what is kept of the past."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dptrain import ConfigError, Phase, PrivacyError, PrivacyPlan
from dptrain.privacy import noise
from dptrain.privacy.banded_noise import BandedStream
from dptrain.privacy.sampling import part_of
from dptrain.privacy.streams import NoiseStream
from dptrain.training.checkpoint import CHECKPOINT_KEYS, load_checkpoint, save_checkpoint
from dptrain.training.trainer import PrivateTrainer

from ..privacy.test_banded import dense, is_identity
from .test_trainer import Batches, losses

NAMES = [f"unit {number}".encode() for number in range(20)]
BODY, HEAD = ("0.weight", "0.bias"), ("2.weight", "2.bias")


def plan(**changes: Any) -> PrivacyPlan:
    values = {
        "sample_rate": 0.3,
        "steps": 11,
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "delta": 1e-5,
        "expected_batch_size": 6,
        "bands": 3,
    }
    return PrivacyPlan(**{**values, **changes})


def make(how: PrivacyPlan, *, hidden: int = 8, units: int = 20, **options: Any) -> PrivateTrainer:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    made = torch.optim.SGD(module.parameters(), lr=options.pop("lr", 0.1))
    given = {"identities": NAMES[:units], **options}
    return PrivateTrainer(module, losses, how, made, given.pop("batches", Batches()), units, **given)


def noise_by_step(trainer: PrivateTrainer, name: str) -> list[np.ndarray]:
    """What the optimizer gets for one parameter of every step from here on; noise alone, where nobody is drawn."""
    got: list[np.ndarray] = []

    def look(*_: Any) -> None:
        gradient = dict(trainer.module.named_parameters())[name].grad
        if gradient is not None:
            got.append(gradient.double().flatten().numpy().copy())

    trainer.optimizer.register_step_pre_hook(look)
    list(trainer.run())
    return got


def quiet(**changes: Any) -> PrivacyPlan:
    """A plan that draws nobody."""
    return plan(**{"sample_rate": 1e-9, "expected_batch_size": 1, **changes})


def test_the_optimizer_gets_noise_with_the_covariance_of_the_inverse_factor() -> None:
    got = np.stack(noise_by_step(make(quiet(), hidden=12_000, lr=0.0), "0.weight"))
    white = dense(11, 3) @ got / 0.5
    assert is_identity(white @ white.T / white.shape[1], white.shape[1])


def test_a_phase_begins_anew_with_noise_of_its_own_scale() -> None:
    """Both phases train as many numbers, so that nothing but the phase's own beginning keeps them apart."""
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    phases = (Phase(4, names, 0.125), Phase(7, names, 2.0))
    got = noise_by_step(make(quiet(), hidden=12_000, lr=0.0, phases=phases), "0.weight")
    scaled = np.stack([row / (0.125 if step < 4 else 2.0) for step, row in enumerate(got)])
    white = dense(11, 3, begins=(0, 4)) @ scaled
    assert is_identity(white @ white.T / white.shape[1], white.shape[1])


def test_phases_that_train_different_layers_run_through() -> None:
    trainer = make(plan(), phases=(Phase(4, HEAD), Phase(7, (*BODY, *HEAD))))
    assert list(trainer.run()) == list(range(1, 12))


@pytest.mark.parametrize("lost", [0, 2])
def test_a_resumed_run_begins_anew_and_goes_on_in_the_same_cycle(lost: int) -> None:
    """Also where steps after the checkpoint were counted and lost: it begins later, and never within a cycle again."""
    first = make(quiet(), hidden=12_000, lr=0.0)
    before = []
    for _, row in zip(range(5), _rows(first), strict=False):
        before.append(row)
    state = first.state()
    batches = Batches()
    second = make(quiet(), hidden=12_000, lr=0.0, batches=batches)
    second.restore(state, 5 + lost)
    after = noise_by_step(second, "0.weight")
    assert len(after) == 11 - 5 - lost
    steps = 5 + len(after)
    white = dense(steps, 3, begins=(0, 5)) @ np.stack([*before, *after]) / 0.5
    assert is_identity(white @ white.T / white.shape[1], white.shape[1])

    batches = Batches(size=100)
    drawn = make(plan(sample_rate=1 / 3), batches=batches)
    drawn.restore(make(plan(sample_rate=1 / 3)).state(), 5 + lost)
    list(drawn.run())
    for step, served in zip(range(5 + lost, 11), batches.served, strict=True):
        assert served == [number for number, name in enumerate(NAMES) if part_of(name, 3) == step % 3]


def _rows(trainer: PrivateTrainer) -> Any:
    got: list[np.ndarray] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: got.append(trainer.parameters["0.weight"].grad.double().flatten().numpy().copy())  # type: ignore[union-attr]
    )
    for _ in trainer.run():
        yield got[-1]


def test_what_is_written_holds_no_noise(tmp_path: Any) -> None:
    """Whoever has the past noise can take it out of what was released."""
    trainer = make(plan(steps=6))
    for _ in zip(trainer.run(), range(4), strict=False):
        pass
    stream = trainer.noise_stream
    assert isinstance(stream, BandedStream) and len(stream._past) == 2
    state = trainer.state()
    save_checkpoint(tmp_path / "checkpoint.pt", state, trainer.plan, None)
    found = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(found) == set(CHECKPOINT_KEYS)

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return [tensor for item in items for tensor in tensors(item)]

    total = sum(p.numel() for p in trainer.parameters.values())
    kept = {float(number) for past in stream._past for number in past}
    assert len(kept) == 2 * total
    for tensor in tensors(found):
        assert not kept & set(tensor.double().flatten().tolist()) and tensor.numel() < total
    load_checkpoint(tmp_path / "checkpoint.pt", trainer.plan, None)
    with pytest.raises(PrivacyError, match="another bands"):
        load_checkpoint(tmp_path / "checkpoint.pt", dataclasses.replace(trainer.plan, bands=2), None)


def test_a_step_that_failed_after_its_noise_is_not_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second draw of the same part would come within the bands of the first."""
    trainer = make(plan())
    steps = trainer.run()
    next(steps)
    real = trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        next(steps)
    monkeypatch.setattr(trainer.optimizer, "step", real)
    with pytest.raises(PrivacyError, match="noise of step 2 was drawn before"):
        next(trainer.run())


CHANGES: dict[str, tuple[str, Any]] = {
    "the bands of the plan": ("plan", lambda t: object.__setattr__(t.plan, "bands", 1)),
    "the bands of the noise": ("clip rule", lambda t: object.__setattr__(t.clipped.mechanism, "bands", 1)),
    "independent noise": ("noise", lambda t: setattr(t, "noise_stream", NoiseStream())),
    "noise of its own": ("noise", lambda t: setattr(t, "noise_stream", BandedStream(3))),
    "the factor": ("noise", lambda t: setattr(t.noise_stream, "factor", (1.0, 0.0, 0.0))),
    "the rate": ("sampler", lambda t: setattr(t.sampler, "sample_rate", 1.0)),
    "the cycle": ("sampler", lambda t: setattr(t.sampler, "bands", 2)),
    "the parts": ("sampler", lambda t: t.sampler.parts.fill(0)),
}


@pytest.mark.parametrize(("named", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_what_the_guarantee_was_stated_for_cannot_change_after_the_start(named: str, change: Any) -> None:
    for at in (0, 2):
        released: list[int] = []
        trainer = make(plan(), on_release=released.append)
        steps = trainer.run()
        for _ in range(at):
            next(steps)
        change(trainer)
        with pytest.raises(PrivacyError, match=f"{named}.* changed after step {at}"):
            next(steps)
        assert len(released) == at


def test_what_was_not_worked_out_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="exact noise of 3 bands"):
        make(plan(), exact=True)
    with pytest.raises(ConfigError, match="identities of the 20 units, and there are none"):
        make(plan(), identities=None)


def test_one_unit_moves_its_own_steps_only_and_the_seen_sums_by_rows_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The door is frozen, so that both runs stay alike: the newcomer adds C times its gradients, and no more."""
    runs: list[list[np.ndarray]] = []
    for units in (19, 20):
        seen: list[np.ndarray] = []

        def door(value: dict[str, Tensor], seen: Any = seen, **stated: Any) -> dict[str, Tensor]:
            seen.append(np.concatenate([tensor.double().flatten().numpy() for tensor in value.values()]))
            return {name: torch.full_like(tensor, len(seen)) for name, tensor in value.items()}

        monkeypatch.setattr(noise, "privatize", door)
        list(make(plan(sample_rate=1 / 3), units=units, seed=2).run())
        runs.append(seen)
    own = np.stack(runs[1]) - np.stack(runs[0])
    part = part_of(NAMES[19], 3)
    uses = [step for step in range(11) if step % 3 == part]
    assert not np.delete(own, uses, axis=0).any()
    moved = dense(11, 3) @ own
    sizes = [float(np.linalg.norm(moved[step : step + 3])) for step in uses]
    assert 0.0 < max(sizes) <= 0.5 * (1 + 1e-5)
