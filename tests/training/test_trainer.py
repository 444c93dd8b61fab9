"""The loop, on a module that is not a detector: what reaches the optimizer, and what does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain import Clipping, ConfigError, ModelError, PrivacyError, PrivacyPlan, UnitBatch
from dptrain.privacy import noise, streams
from dptrain.privacy.clipping import CLIPPINGS
from dptrain.privacy.sampling import Draw
from dptrain.training.average import MovingAverage
from dptrain.training.clipped_sum import ClippedSum
from dptrain.training.trainer import PrivateTrainer, learning_rate

X = torch.linspace(-1, 1, 60).view(20, 3)
Y = (X[:, 0] > 0).long()


class Batches:
    """Serves examples of X and Y in physical batches of a given size."""

    def __init__(self, size: int = 4, examples_at_once: int | None = None) -> None:
        self.size, self.examples_at_once = size, examples_at_once
        self.served: list[list[int]] = []

    def steps(self, draws: Iterator[Draw]) -> Iterator[Iterator[Any]]:
        for draw in draws:
            self.served.append(draw.indices.tolist())
            yield ((X[part], Y[part]) for part in np.split(draw.indices, range(self.size, len(draw.indices), self.size))
                   if len(part))  # fmt: skip


def losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def make(
    plan: PrivacyPlan,
    *,
    batches: Batches | None = None,
    lr: float = 0.1,
    loss: Any = losses,
    optimizer: Any = torch.optim.SGD,
    **options: Any,
) -> PrivateTrainer:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 2))
    return PrivateTrainer(
        module, loss, plan, optimizer(module.parameters(), lr=lr), batches or Batches(), 20, **options
    )


def plan(**changes: Any) -> PrivacyPlan:
    values = {
        "sample_rate": 0.3,
        "steps": 8,
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "delta": 1e-5,
        "expected_batch_size": 6,
    }
    return PrivacyPlan(**{**values, **changes})


def weights(trainer: PrivateTrainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters.values()])


def test_one_step_is_noised_clipped_sum_over_the_expected_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[dict[str, Tensor]] = []

    def record(value: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
        sums.append({k: v.clone() for k, v in value.items()})
        assert options["sensitivity"] == 0.5 and options["noise_multiplier"] == 1.0
        return value

    monkeypatch.setattr(noise, "privatize", record)
    batches = Batches()
    trainer = make(plan(), batches=batches, lr=0.1, seed=3)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    next(trainer.run())
    drawn = batches.served[0]
    assert len(drawn) not in (0, 6), "division by the true batch would not show"
    reference = make(plan())
    total = {name: torch.zeros_like(p) for name, p in before.items()}
    for example in drawn:  # clipped one at a time, by hand
        loss = losses(reference.module, (X[example : example + 1], Y[example : example + 1])).sum()
        gradients = torch.autograd.grad(loss, list(reference.parameters.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient * min(1.0, 0.5 / float(norm))
    for name, p in trainer.parameters.items():
        assert torch.allclose(sums[0][name].float(), total[name], atol=1e-6)
        assert torch.allclose(p, before[name] - 0.1 * total[name] / 6, atol=1e-6)


class Groups(Batches):
    """Serves units of two examples, numbers 2 u and 2 u + 1, whole."""

    def steps(self, draws: Iterator[Draw]) -> Iterator[Iterator[Any]]:
        for draw in draws:
            self.served.append(draw.indices.tolist())
            parts = [draw.indices[i : i + self.size] for i in range(0, len(draw.indices), self.size)]
            yield (
                UnitBatch((X[examples], Y[examples]), torch.arange(len(part)).repeat_interleave(2))
                for part in parts
                for examples in [np.stack([2 * part, 2 * part + 1], 1).ravel()]
            )


def grouped(
    plan: PrivacyPlan, size: int = 3, loss: Any = None, examples_at_once: int | None = None, **options: Any
) -> PrivateTrainer:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return PrivateTrainer(module, loss or losses, plan, optimizer, Groups(size, examples_at_once), 10, **options)


@pytest.mark.parametrize("examples_at_once", [None, 1, 3, 9])
@pytest.mark.parametrize("exact", [False, True])
def test_units_of_several_examples_are_clipped_as_one(
    examples_at_once: int | None, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[dict[str, Tensor]] = []
    real = noise.privatize
    monkeypatch.setattr(noise, "privatize", lambda value, **how: (sums.append(value), real(value, **how))[1])
    trainer = grouped(plan(unit="group", clip_norm=0.2), seed=3, exact=exact, examples_at_once=examples_at_once)
    reference = grouped(plan())
    next(trainer.run())
    drawn = trainer.loader.served[0]  # type: ignore[attr-defined]
    assert len(drawn) > 1
    total = {name: torch.zeros_like(p) for name, p in trainer.parameters.items()}
    for unit in drawn:  # averaged, then clipped, by hand
        own = losses(reference.module, (X[2 * unit : 2 * unit + 2], Y[2 * unit : 2 * unit + 2])).mean()
        gradients = torch.autograd.grad(own, list(reference.parameters.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient * min(1.0, 0.2 / float(norm))
    for name, value in sums[0].items():
        got = value.double() * (0.2 / 2**30) if exact else value
        assert torch.allclose(got.float(), total[name], atol=1e-5)


def test_the_sum_over_physical_batches_is_kept_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In single precision its rounding would grow with the draw, past what the sensitivity has room for."""
    kinds: set[torch.dtype] = set()

    def note(value: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        kinds.update(tensor.dtype for tensor in value.values())
        return value

    monkeypatch.setattr(noise, "privatize", note)
    next(make(plan()).run())
    assert kinds == {torch.float64}


@pytest.mark.parametrize("name", [name for name in CLIPPINGS if name != "flat"])
def test_the_physical_batch_changes_nothing_but_rounding_by_any_clip_rule(name: str) -> None:
    needed: dict[str, dict[str, Any]] = {"groups": {"groups": ("0",)}, "scaled": {"scales": (("0", 4.0),)}}
    clipping = Clipping(name, **needed.get(name, {}))
    how = plan(clipping=clipping, clip_norm=1.0 if name == "automatic" else 0.5)
    one, other = make(how, batches=Batches(20), seed=5), make(how, batches=Batches(3), seed=5)
    list(one.run())
    list(other.run())
    assert torch.allclose(weights(one), weights(other), atol=1e-5)


def test_an_empty_draw_takes_a_noised_step() -> None:
    trainer = make(plan(sample_rate=1e-9, steps=3), on_release=(released := []).append)
    start = weights(trainer)
    assert list(trainer.run()) == [1, 2, 3]
    assert released == [1, 2, 3]
    assert not torch.equal(start, weights(trainer))


def test_noise_is_added_once_a_step_whatever_the_physical_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = noise.privatize, []
    monkeypatch.setattr(noise, "privatize", lambda value, **o: (calls.append(1), real(value, **o))[1])
    trainer = make(plan(sample_rate=1.0, steps=4), batches=Batches(size=1))
    list(trainer.run())
    assert len(calls) == 4


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_the_physical_batch_changes_nothing_but_rounding(size: int) -> None:
    one, other = make(plan(), batches=Batches(20), seed=5), make(plan(), batches=Batches(size), seed=5)
    list(one.run())
    list(other.run())
    assert torch.allclose(weights(one), weights(other), atol=1e-5)


def test_production_runs_differ_and_seeded_ones_do_not() -> None:
    runs = [make(plan()) for _ in range(2)] + [make(plan(), seed=1) for _ in range(2)]
    for trainer in runs:
        list(trainer.run())
    assert not torch.equal(weights(runs[0]), weights(runs[1]))
    assert torch.equal(weights(runs[2]), weights(runs[3]))
    assert runs[0].secure and not runs[2].secure


def test_a_cut_seeded_run_equals_an_uncut_one_bitwise() -> None:
    whole, first, second = (make(plan(), seed=2, ema_decay=0.9) for _ in range(3))
    list(whole.run())
    for step in first.run():
        if step == 3:
            break
    second.restore(first.state())
    assert list(second.run()) == [4, 5, 6, 7, 8]
    assert torch.equal(weights(whole), weights(second))
    for name, value in whole.average.values.items():
        assert torch.equal(value, second.average.values[name])


def test_lost_steps_stay_spent() -> None:
    trainer = make(plan())
    trainer.restore(make(plan()).state(), step=6)
    assert list(trainer.run()) == [7, 8]


def test_more_steps_than_planned_are_refused() -> None:
    trainer = make(plan())
    with pytest.raises(PrivacyError, match="9 steps"):
        list(trainer.run(until=9))
    list(trainer.run())
    assert list(trainer.run()) == []


def test_no_way_of_calling_takes_more_steps_than_planned() -> None:
    released: list[int] = []
    trainer = make(plan(), on_release=released.append)
    state = trainer.state()
    one, other = trainer.run(), trainer.run()
    with pytest.raises(PrivacyError, match="accounts for 8"):
        for _ in range(8):
            next(one)
            next(other)
    with pytest.raises(PrivacyError, match="has taken 8 steps"):
        trainer.restore(state)
    assert len(released) == 8


def test_a_run_that_diverged_says_so() -> None:
    with pytest.raises(PrivacyError, match="diverged"):
        list(make(plan(noise_multiplier=10.0, expected_batch_size=1), lr=3e38).run())


def test_the_average_follows_the_noised_iterates_only() -> None:
    trainer = make(plan(), seed=1, ema_decay=0.5)
    name = next(iter(trainer.parameters))
    value = trainer.parameters[name].detach().clone()
    for step in trainer.run():
        decay = min(0.5, (1 + step) / (10 + step))
        value = decay * value + (1 - decay) * trainer.parameters[name].detach()
        assert torch.allclose(trainer.average.values[name], value, atol=1e-6)


def test_the_average_is_put_back() -> None:
    trainer = make(plan(), ema_decay=0.9)
    list(trainer.run())
    live = weights(trainer)
    with trainer.average.applied():
        assert not torch.equal(weights(trainer), live)
    assert torch.equal(weights(trainer), live)


def test_an_exception_in_a_step_leaves_no_stale_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was summed before the failure must not enter the next step."""

    class Failing(Batches):
        def steps(self, draws: Iterator[Draw]) -> Iterator[Iterator[Any]]:
            def broken() -> Iterator[Any]:
                yield X, Y
                raise OSError("disk gone")

            next(draws)
            yield broken()

    class Nothing(Batches):
        def steps(self, draws: Iterator[Draw]) -> Iterator[Iterator[Any]]:
            return (iter(()) for _ in draws)

    trainer = make(plan(), batches=Failing())
    before = weights(trainer)
    with pytest.raises(OSError, match="disk gone"):
        list(trainer.run())
    assert trainer.step == 0 and torch.equal(weights(trainer), before)
    sums: list[float] = []

    def record(value: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        sums.append(sum(float(tensor.abs().sum()) for tensor in value.values()))
        return value

    monkeypatch.setattr(noise, "privatize", record)
    trainer.loader = Nothing()
    next(trainer.run())
    assert sums == [0.0]


def test_a_layer_that_keeps_statistics_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.detach().sum(0)
            return self.inner(x)

    module = Counting()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    trainer = PrivateTrainer(module, losses, plan(sample_rate=1.0), optimizer, Batches(), 20)
    with pytest.raises(PrivacyError, match="buffer"):
        next(trainer.run())


def test_batch_norm_switched_on_after_the_start_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[1].eval()
    trainer = PrivateTrainer(module, losses, plan(), torch.optim.SGD(module.parameters(), lr=0.1), Batches(), 20)
    steps = trainer.run()
    next(steps)
    module.train()
    with pytest.raises(ModelError, match="BatchNorm1d"):
        for _ in steps:
            pass


def centred(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    own = losses(module, batch)
    return own / own.detach().mean()


def test_a_users_loss_that_looks_at_the_batch_is_refused_before_its_first_step() -> None:
    released: list[int] = []
    trainer = make(plan(sample_rate=1.0), loss=centred, on_release=released.append)
    before = weights(trainer)
    with pytest.raises(ModelError, match="of one example changed"):
        next(trainer.run())
    assert released == [] and trainer.step == 0 and torch.equal(before, weights(trainer))
    with pytest.raises(ModelError, match="of one example changed"):
        make(plan(), loss=centred, probe=(X[:3], Y[-3:]))  # on made-up examples nothing has to be drawn for it


def test_one_example_at_a_time_no_loss_can_look_at_others_and_the_first_two_are_tried() -> None:
    assert list(make(plan(sample_rate=1.0), loss=centred, batches=Batches(1)).run())[-1] == 8
    assert list(make(plan(sample_rate=1.0), loss=centred, engine="microbatch").run())[-1] == 8
    batches = Batches(1)
    trainer = make(plan(sample_rate=1.0), loss=centred, batches=batches)
    with pytest.raises(ModelError, match="of one example changed"):
        for _ in trainer.run():
            batches.size = 2
    assert trainer.step == 1


def test_trying_the_loss_changes_nothing_of_the_run() -> None:
    """Not its draws, its noise or its dropout: a dataset in which it is tried at another step must not show it."""

    def dropped(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return losses(module, (F.dropout(batch[0], 0.5), batch[1]))

    ends = []
    for probe in (None, False, (X[:3], Y[-3:])):
        trainer = make(plan(), loss=dropped, seed=4, probe=probe)
        list(trainer.run())
        ends.append(weights(trainer))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_the_optimizer_must_hold_what_is_noised() -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="optimizer"):
        PrivateTrainer(module, losses, plan(), torch.optim.SGD([module.weight], lr=0.1), Batches(), 20)


@pytest.mark.parametrize("exact", [False, True])
def test_the_clip_rule_is_made_once_and_its_sensitivity_scales_the_noise(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    real = Clipping.rule
    monkeypatch.setattr(Clipping, "rule", lambda *given: (made.append(real(*given)), made[-1])[1])
    trainer = make(plan(clip_norm=0.25), exact=exact)
    assert list(trainer.run()) == list(range(1, 9))
    (rule,) = made
    assert trainer.clipped.mechanism.rule is rule and rule.sensitivity() == 0.25


def _more_trains(trainer: PrivateTrainer) -> None:
    trainer.module.add_module("new", nn.Linear(2, 2))


def _optimizer_holds_more(trainer: PrivateTrainer) -> None:
    trainer.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def _another_clip_rule(trainer: PrivateTrainer) -> None:
    trainer.clipped = ClippedSum(plan(clip_norm=5.0), trainer.module, losses)


CHANGES: dict[str, tuple[str, Any]] = {
    "a field of the plan": ("plan", lambda t: object.__setattr__(t.plan, "noise_multiplier", 0.1)),
    "more steps": ("plan", lambda t: object.__setattr__(t.plan, "steps", 100)),
    "another plan": ("plan", lambda t: setattr(t, "plan", plan(clip_norm=5.0))),
    "another clip rule": ("clip rule", _another_clip_rule),
    "a field of the clip rule": ("clip rule", lambda t: object.__setattr__(t.clipped.mechanism.rule, "clip_norm", 5.0)),
    "less noise": ("clip rule", lambda t: object.__setattr__(t.clipped.mechanism, "noise_multiplier", 0.1)),
    "the rate": ("sampler", lambda t: setattr(t.sampler, "sample_rate", 1.0)),
    "the units": ("sampler", lambda t: setattr(t.sampler, "num_units", 5)),
    "another sampler": ("sampler", lambda t: setattr(t, "sampler", t.plan.sampler(20, streams.NoiseStream(1)))),
    "seeded noise": ("noise", lambda t: setattr(t, "noise_stream", streams.NoiseStream(1))),
    "the claim of secure noise": ("noise", lambda t: setattr(t, "secure", False)),
    "another model": ("module", lambda t: setattr(t, "module", nn.Linear(3, 2))),
    "another loss": ("loss", lambda t: setattr(t, "loss_function", centred)),
    "another engine": ("loss", lambda t: setattr(t, "engine", "opacus")),
    "a frozen parameter": ("trainable", lambda t: t.module[0].weight.requires_grad_(False)),
    "a new layer": ("trainable", _more_trains),
    "another parameter": ("trainable", lambda t: setattr(t.module[0], "bias", nn.Parameter(torch.ones(8)))),
    "another optimizer": ("optimizer", lambda t: setattr(t, "optimizer", torch.optim.SGD(t.module.parameters(), 1.0))),
    "a parameter that nothing noises": ("optimizer", _optimizer_holds_more),
}  # fmt: skip


@pytest.mark.parametrize(("named", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_what_the_guarantee_was_stated_for_cannot_change_after_the_start(named: str, change: Any) -> None:
    for at in (0, 2):
        released: list[int] = []
        trainer = make(plan(), on_release=released.append)
        steps = trainer.run()
        for _ in range(at):
            next(steps)
        change(trainer)
        before = weights(trainer)
        with pytest.raises(PrivacyError, match=f"{named}.* changed after step {at}"):
            next(steps)
        assert len(released) == at and torch.equal(before, weights(trainer))


def test_a_gradient_that_somebody_left_behind_never_reaches_the_optimizer() -> None:
    clean, other = (make(plan(), seed=3) for _ in range(2))
    steps = other.run()
    for _ in clean.run():
        losses(other.module, (X, Y)).sum().backward()
        next(steps)
        assert all(p.grad is None for p in other.parameters.values())
    assert torch.equal(weights(clean), weights(other))


def test_a_resumed_run_never_repeats_its_noise() -> None:
    state = make(plan()).state()
    ends = []
    for _ in range(2):
        trainer = make(plan(sample_rate=1e-9, noise_multiplier=1.0))
        trainer.restore(state)
        next(trainer.run())
        ends.append(weights(trainer))
    assert not torch.equal(*ends)


def test_private_training_learns() -> None:
    """Many steps with little noise bring the loss down, so the sign and scale of the update are right."""
    quiet = plan(steps=300, sample_rate=1.0, noise_multiplier=0.05, clip_norm=1.0, expected_batch_size=20)
    trainer = make(quiet, lr=0.5)
    before = losses(trainer.module, (X, Y)).mean().item()
    list(trainer.run())
    assert losses(trainer.module, (X, Y)).mean().item() < 0.9 * before


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_learning_rates(name: str) -> None:
    rates = [learning_rate(name, 0.4, step, 20, warmup_steps=4, final=0.1) for step in range(20)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[-1] == pytest.approx(0.4 if name == "constant" else 0.04)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_unknown_schedule_and_decay_are_refused() -> None:
    with pytest.raises(ConfigError, match="step"):
        learning_rate("step", 0.1, 0, 10)
    with pytest.raises(ConfigError, match=r"ema\.decay"):
        MovingAverage({}, 1.0)
