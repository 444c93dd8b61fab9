"""Phases of one run: what trains in a step, what its noise is scaled to, and that only the step's number decides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from dptrain import Clipping, ConfigError, ModelError, Phase, PrivacyError, PrivacyPlan
from dptrain.privacy import noise
from dptrain.privacy.exact import SENSITIVITY
from dptrain.run.optimizers import make_optimizer
from dptrain.settings.schema import OPTIMIZERS, OptimizerConfig
from dptrain.training.checkpoint import load_checkpoint, save_checkpoint
from dptrain.training.trainer import PrivateTrainer

from .test_trainer import Batches, X, Y, centred, losses, plan

HEAD = ("3.weight", "3.bias")
BODY = ("0.weight", "0.bias", "1.weight", "1.bias")
TWO = (Phase(3, HEAD), Phase(5, BODY))
THREE = (Phase(2, HEAD), Phase(3, (*BODY, *HEAD), 0.125), Phase(3, BODY))


def make(
    phases: Any = TWO, *, how: PrivacyPlan | None = None, units: int = 20, optimizer: Any = None, **options: Any
) -> PrivateTrainer:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 2))
    made = torch.optim.Adam(module.parameters(), lr=0.1) if optimizer is None else optimizer(module.parameters())
    own = tuple(map(dataclasses.replace, phases))  # tests change them
    loss, batches = options.pop("loss", losses), options.pop("batches", Batches())
    return PrivateTrainer(module, loss, how or plan(), made, batches, units, phases=own, **options)


def values(trainer: PrivateTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_the_parameters_that_do_not_train_in_a_phase_keep_every_bit() -> None:
    trainer = make()
    now = values(trainer)
    for step in trainer.run():
        before, now = now, values(trainer)
        assert moved(before, now) == set(HEAD if step <= 3 else BODY)
    assert trainer.step == 8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_neither_weight_decay_nor_momentum_moves_what_is_frozen(name: str) -> None:
    config = OptimizerConfig(name, lr=0.1, momentum=0.9, weight_decay=0.5)
    trainer = make(THREE, optimizer=lambda parameters: make_optimizer(config, parameters))
    now = values(trainer)
    for step in trainer.run():
        before, now = now, values(trainer)
        wanted = HEAD if step <= 2 else BODY if step > 5 else (*BODY, *HEAD)
        assert moved(before, now) == set(wanted), (name, step)


@pytest.mark.parametrize("exact", [False, True])
def test_the_noise_of_a_step_is_scaled_to_the_sensitivity_of_its_own_phase(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the optimizer gets of empty draws is noise alone, of noise multiplier x that phase's clip norm."""
    how = plan(sample_rate=1e-9, steps=600, noise_multiplier=2.0, clip_norm=0.5, expected_batch_size=1)
    phases = (Phase(200, HEAD, 0.125), Phase(200, BODY), Phase(200, (*BODY, *HEAD), 3.0))
    got: list[dict[str, Tensor]] = []
    trainer = make(phases, how=how, exact=exact, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    trainer.optimizer.register_step_pre_hook(
        lambda *_: got.append({n: p.grad.double().clone() for n, p in trainer.parameters.items() if p.grad is not None})
    )
    list(trainer.run())
    for number, (names, norm) in enumerate(((HEAD, 0.125), (BODY, 0.5), ((*BODY, *HEAD), 3.0))):
        steps = got[200 * number : 200 * number + 200]
        assert all(set(step) == set(names) for step in steps)
        numbers = np.concatenate([tensor.flatten().numpy() for step in steps for tensor in step.values()])
        assert stats.kstest(numbers / (2.0 * norm), "norm").pvalue > 1e-6
        assert numbers.std() == pytest.approx(2.0 * norm, rel=0.05)


@pytest.mark.parametrize("exact", [False, True])
def test_one_example_moves_the_sum_of_a_step_by_at_most_the_sensitivity_of_its_phase(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newcomer's coin comes last, so all else is drawn alike; the door is frozen, so that both runs stay alike."""
    runs: list[list[tuple[dict[str, Tensor], float]]] = []
    for units in (19, 20):
        seen: list[tuple[dict[str, Tensor], float]] = []

        def door(value: dict[str, Tensor], seen: Any = seen, **stated: Any) -> dict[str, Tensor]:
            seen.append((value, stated["sensitivity"]))
            return {name: torch.full_like(tensor, len(seen)) for name, tensor in value.items()}

        monkeypatch.setattr(noise, "privatize", door)
        entered: list[int] = []
        trainer = make(THREE, how=plan(clip_norm=0.01), units=units, seed=2, exact=exact, before_step=entered.append)
        ends = []
        for _ in trainer.run():
            ends.append([name for name, p in trainer.module.named_parameters() if p.requires_grad])
        runs.append(seen)
        if units == 19:
            sets = ends
    assert sets == ends, "the newcomer changed what trains"
    apart = []
    for step, ((one, stated), (other, same)) in enumerate(zip(*runs, strict=True)):
        assert stated == same == (SENSITIVITY if exact else 0.125 if 2 <= step < 5 else 0.01)
        assert one.keys() == other.keys() == set(sets[step])
        apart.append(float(torch.cat([(other[name] - one[name]).double().flatten() for name in one]).norm()) / stated)
    assert 0.99 < max(apart) <= 1.0


def test_all_phases_are_the_event_of_one_phase_with_as_many_steps() -> None:
    whole, parts = plan(steps=8), make().plan
    assert parts == whole and parts.event() == whole.event() and parts.epsilon() == whole.epsilon()
    released: list[int] = []
    trainer = make(THREE, on_release=released.append)
    list(trainer.run())
    assert released == list(range(1, 9)) and trainer.step == whole.steps


def test_one_phase_of_everything_is_a_run_without_phases() -> None:
    one, none = make((Phase(8, (*BODY, *HEAD)),), seed=4), make((), seed=4)
    list(one.run())
    list(none.run())
    assert not moved(values(one), values(none))


@pytest.mark.parametrize("cut", range(1, 8))
@pytest.mark.parametrize("phases", [TWO, THREE], ids=["two", "three"])
def test_a_run_cut_at_any_step_of_any_phase_ends_as_the_uncut_one(phases: Any, cut: int, tmp_path: Any) -> None:
    whole, first, second = (make(phases, seed=2, ema_decay=0.9) for _ in range(3))
    list(whole.run())
    for step in first.run():
        if step == cut:
            break
    save_checkpoint(tmp_path / "c.pt", first.state(), first.plan, 2)
    second.restore(load_checkpoint(tmp_path / "c.pt", second.plan, 2))
    phase = phases[sum(cut >= end for end in second._ends)]
    assert {name for name, p in second.module.named_parameters() if p.requires_grad} == set(phase.names)
    assert second.clipped.mechanism.names == set(phase.names)
    assert list(second.run()) == list(range(cut + 1, 9))
    assert not moved(values(whole), values(second))
    for name, value in whole.average.values.items():
        assert torch.equal(value, second.average.values[name])


def test_steps_that_a_crash_lost_count_in_their_phase() -> None:
    """The boundary is a step's number, not a number of steps that were seen."""
    trainer = make()
    trainer.restore(make().state(), step=4)
    before = values(trainer)
    next(trainer.run())
    assert moved(before, values(trainer)) == set(BODY)


OTHERS = {
    "one phase": (),
    "another boundary": (Phase(4, HEAD), Phase(4, BODY)),
    "another order": (Phase(5, BODY), Phase(3, HEAD)),
    "another clip norm": (Phase(3, HEAD, 0.25), Phase(5, BODY)),
    "another set": (Phase(3, (*HEAD, "0.bias")), Phase(5, BODY)),
}


@pytest.mark.parametrize("phases", OTHERS.values(), ids=OTHERS.keys())
def test_a_checkpoint_of_other_phases_is_refused(phases: Any) -> None:
    with pytest.raises(PrivacyError, match="other phases than this one"):
        make(phases).restore(make().state())


def _frozen_trains(trainer: PrivateTrainer) -> None:
    trainer.module[0].weight.requires_grad_(True)


CHANGES: dict[str, tuple[str, Any]] = {
    "a frozen parameter trains": ("trainable", _frozen_trains),
    "a trained one is frozen": ("trainable", lambda t: t.module[3].bias.requires_grad_(False)),
    "a boundary": ("phases", lambda t: object.__setattr__(t.phases[0], "steps", 1)),
    "another clip norm": ("phases", lambda t: object.__setattr__(t.phases[1], "clip_norm", 9.0)),
    "a longer end": ("phases", lambda t: setattr(t, "_ends", (8, 8))),
    "the rule of now": ("clip rule", lambda t: object.__setattr__(t.clipped.mechanism.rule, "clip_norm", 9.0)),
}


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize(("named", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_what_trains_changes_at_a_boundary_and_nowhere_else(named: str, change: Any, at: int) -> None:
    """After step 3 comes a boundary, which must not repair in silence what was changed before it."""
    released: list[int] = []
    trainer = make(on_release=released.append)
    steps = trainer.run()
    for _ in range(at):
        next(steps)
    change(trainer)
    before = values(trainer)
    with pytest.raises(PrivacyError, match=f"{named}.* changed after step {at}"):
        next(steps)
    assert len(released) == at and not moved(before, values(trainer))


def test_the_clip_rule_of_a_later_phase_cannot_be_changed_before_it() -> None:
    trainer = make()
    object.__setattr__(trainer._sums[1].mechanism, "noise_multiplier", 0.1)
    with pytest.raises(PrivacyError, match="clip rule changed after step 3"):
        list(trainer.run())


def test_a_gradient_left_behind_in_the_phase_before_never_reaches_the_optimizer() -> None:
    clean, other = make(seed=3), make(seed=3)
    steps = other.run()
    for step in clean.run():
        if step == 4:  # the head has just trained for the last time
            losses(other.module, (X, Y)).sum().backward()
            assert other.module[3].weight.grad is not None
        next(steps)
    assert not moved(values(clean), values(other))


def test_a_loss_that_looks_at_the_batch_is_tried_in_every_phase() -> None:
    trainer = make(how=plan(sample_rate=1.0))
    steps = trainer.run()
    next(steps)
    assert trainer._tried == [True, False]
    list(steps)
    assert trainer._tried == [True, True]
    with pytest.raises(ModelError, match="of one example changed"):
        make(loss=centred, probe=(X[:3], Y[-3:]))


SCALES = (("0", 4.0), ("1", 2.0), ("3", 0.5))


@pytest.mark.parametrize("clipping", [Clipping("scaled", scales=SCALES), Clipping("groups", groups=("0", "1|3"))],
                         ids=["scaled", "groups"])  # fmt: skip
def test_the_rule_of_a_phase_has_the_scales_and_groups_of_its_own_layers(clipping: Clipping) -> None:
    trainer = make(how=plan(clipping=clipping))
    head, body = (trainer._sums[number].mechanism.rule for number in (0, 1))
    assert head.groups is not None and body.groups is not None
    assert set(head.groups) == set(HEAD) and set(body.groups) == set(BODY)
    if clipping.name == "scaled":
        assert head.scales == (0.5,) and body.scales == (4.0, 2.0)  # type: ignore[attr-defined]
    else:
        assert len(head.norms) == 1 and len(body.norms) == 2  # type: ignore[attr-defined]
    assert head.sensitivity() == pytest.approx(0.5) == body.sensitivity()
    assert len(list(trainer.run())) == 8
    with pytest.raises(ConfigError, match="'nothing' is the first to match no trainable layer"):
        pattern = {"scaled": {"scales": (*SCALES, ("nothing", 1.0))}, "groups": {"groups": ("0", "nothing")}}
        make(how=plan(clipping=dataclasses.replace(clipping, **pattern[clipping.name])))  # type: ignore[arg-type]


REFUSED: dict[str, tuple[str, Any]] = {
    "too few steps": ("7 steps in all, and the plan has steps=8", (Phase(3, HEAD), Phase(4, BODY))),
    "too many steps": ("9 steps in all, and the plan has steps=8", (Phase(4, HEAD), Phase(5, BODY))),
    "an unknown name": ("'4.weight', which is not a parameter", (Phase(3, ("4.weight",)), Phase(5, BODY))),
    "a parameter in no phase": ("'3.bias' is trainable and in no phase", (Phase(3, ("3.weight",)), Phase(5, BODY))),
}


@pytest.mark.parametrize(("message", "phases"), REFUSED.values(), ids=REFUSED.keys())
def test_phases_that_do_not_fit_plan_and_module_are_refused(message: str, phases: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        make(phases)


@pytest.mark.parametrize(
    "fields", [(0, HEAD), (True, HEAD), (1.5, HEAD), (3, "3.weight"), (3, ()), (3, HEAD, 0.0), (3, HEAD, float("inf"))]
)
def test_a_phase_that_is_none_is_refused(fields: Any) -> None:
    with pytest.raises(ConfigError):
        Phase(*fields)


def test_an_optimizer_holds_what_trains_in_any_phase() -> None:
    with pytest.raises(ConfigError, match="optimizer"):
        make(optimizer=lambda parameters: torch.optim.SGD(list(parameters)[:2], lr=0.1))


def test_a_layer_without_a_gradient_rule_is_refused_before_the_first_phase() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2))
    phases = (Phase(3, ("2.weight", "2.bias", "0.weight", "0.bias")), Phase(5, ("1.weight",)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ModelError, match="PReLU"):
        PrivateTrainer(module, losses, plan(), optimizer, Batches(), 20, phases=phases)


def test_a_loader_serves_the_same_draws_in_every_phase() -> None:
    """Sampling knows nothing of phases: the draws are those of a run without."""
    served: list[list[list[int]]] = []
    for phases in (TWO, ()):
        batches = Batches()
        steps: Iterator[int] = make(phases, seed=6, batches=batches).run()
        list(steps)
        served.append(batches.served)
    assert served[0] == served[1]
