"""Noise that is made in the background: the same numbers, each used once, or an error."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dptrain import PrivacyError
from dptrain.privacy import noise
from dptrain.privacy.banded_noise import BandedStream
from dptrain.privacy.exact import SENSITIVITY, variance
from dptrain.privacy.noise import begin_noise, privatize
from dptrain.privacy.streams import NoiseStream
from dptrain.training import trainer as loop
from dptrain.training.phases import Phase
from dptrain.training.trainer import PrivateTrainer

from ..training import test_banded, test_trainer

COUNT = 3 * 2**16 + 5  # several blocks, the last a short one


@pytest.fixture(params=[0, 1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every loop of the test makes its noise ahead with so many threads; with none, when it is asked for."""
    monkeypatch.setattr(loop, "spare_threads", lambda device: request.param)
    return int(request.param)


@pytest.mark.parametrize("several", [1, 2, 5])
def test_the_numbers_are_the_same_made_ahead_or_not(several: int) -> None:
    usual, ahead = NoiseStream(3, "noise"), NoiseStream(3, "noise")
    for count in (COUNT, 1, 0, 2**16):
        ahead.begin(count, threads=several)
        assert torch.equal(ahead.gaussian(count), usual.gaussian(count))
        assert ahead.integer() == usual.integer()  # the keystream stands at the same place
    parameter = variance(1.3, SENSITIVITY)
    ahead.begin(70_000, parameter, threads=several)
    assert torch.equal(ahead.whole(70_000, parameter), usual.whole(70_000, parameter))
    assert ahead.integer() == usual.integer()


def test_the_numbers_of_a_seed_are_those_of_earlier_versions() -> None:
    """Resumed tests, and whoever compares runs by their seed, rely on it."""
    found = NoiseStream(3, "noise").gaussian(1_000_001)
    assert torch.allclose(found[:3], torch.tensor([1.4000, 2.1194, 1.6288], dtype=torch.float64), atol=5e-5)
    assert float(found.sum()) == pytest.approx(-919.5331, abs=1e-3)


def test_correlated_noise_is_the_same_made_ahead_or_not() -> None:
    usual, ahead = BandedStream(3, 4), BandedStream(3, 4)
    for step in (0, 1, 2, 3, 7, 8):
        ahead.at(step).begin(COUNT, threads=2)
        assert torch.equal(ahead.gaussian(COUNT), usual.at(step).gaussian(COUNT))


def test_correlated_noise_begins_anew_without_what_was_begun() -> None:
    one, other = BandedStream(3, 4), BandedStream(3, 4)
    for stream in (one, other):
        stream.at(0).gaussian(9)
    one.at(1).begin(9)
    one.restart()
    other.restart()
    one.at(1).begin(9)
    assert torch.equal(one.gaussian(9), other.at(1).gaussian(9))


def test_correlated_noise_that_was_dropped_counts_as_never_drawn() -> None:
    stream = BandedStream(3)
    first = stream.at(0).gaussian(9)
    stream.at(1).begin(9)
    stream.drop()
    second = stream.at(1).gaussian(9)
    assert stream.factor[0] * second + stream.factor[1] * first == pytest.approx(
        stream.factor[0] * second + stream.factor[1] * stream._past[1]
    )
    with pytest.raises(PrivacyError, match="drawn before"):
        stream.at(1)


@pytest.mark.parametrize("whole", [False, True])
def test_the_door_adds_what_was_begun_for_it(whole: bool) -> None:
    value = {"a": torch.arange(70_000) if whole else torch.linspace(-1, 1, 70_000), "b": torch.zeros(3).long()}
    value["b"] = value["b"] if whole else value["b"].float()
    how: dict[str, Any] = {"sensitivity": SENSITIVITY if whole else 0.7, "noise_multiplier": 1.3}
    usual, ahead = NoiseStream(5, "noise"), NoiseStream(5, "noise")
    begin_noise(70_003, stream=ahead, whole=whole, threads=2, **how)
    one, other = (privatize(value, stream=stream, **how) for stream in (usual, ahead))
    assert all(torch.equal(one[name], other[name]) for name in value)


def test_a_block_is_taken_once() -> None:
    stream = NoiseStream()
    stream.begin(1000)
    one, other = stream.gaussian(1000), stream.gaussian(1000)
    assert not np.intersect1d(one.numpy(), other.numpy()).size


@pytest.mark.parametrize("ask", [lambda s: s.gaussian(999), lambda s: s.gaussian(3000), lambda s: s.whole(1000, 64)])
def test_a_block_serves_the_request_it_was_made_for_and_no_other(ask: Callable[[NoiseStream], Tensor]) -> None:
    stream = NoiseStream()
    stream.begin(1000)
    with pytest.raises(PrivacyError, match="made ahead"):
        ask(stream)
    begin_noise(1000, sensitivity=1.0, noise_multiplier=1.0, stream=stream, whole=False, threads=1)
    with pytest.raises(PrivacyError, match="made ahead"):
        privatize({"a": torch.zeros(1000).long()}, sensitivity=1.0, noise_multiplier=1.0, stream=stream)


def test_nothing_else_is_drawn_while_a_block_is_made() -> None:
    stream = NoiseStream()
    stream.begin(COUNT)
    for draw in (stream.integer, lambda: stream.uniform(3), lambda: stream.begin(5)):
        with pytest.raises(PrivacyError, match="begun"):
            draw()
    stream.drop()
    assert stream.gaussian(5).shape == (5,)


def test_what_is_dropped_is_drawn_no_further() -> None:
    stream, seen, wait = NoiseStream(), [], threading.Event()
    real = stream.words
    stream.words = lambda count: (seen.append(count), wait.wait(), real(count))[2]  # type: ignore[method-assign]
    stream.begin(100 * 2**16)
    dropping = threading.Thread(target=stream.drop)
    dropping.start()
    while stream._ahead is not None:
        pass
    wait.set()
    dropping.join()
    assert len(seen) < 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_not_the_block_of_its_parent() -> None:
    stream = NoiseStream()
    stream.begin(64)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            os.write(writing, stream.gaussian(64).numpy().tobytes())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = np.frombuffer(pipe.read(), dtype=np.float64)
    os.waitpid(child, 0)
    assert len(theirs) == 64 and not np.intersect1d(theirs, stream.gaussian(64).numpy()).size


def _failing(real: Any, after: int) -> Any:
    calls: list[int] = []

    def words(self: NoiseStream, count: int) -> np.ndarray:
        calls.append(count)
        if len(calls) > after:
            raise MemoryError("no room for noise")
        return real(self, count)  # type: ignore[no-any-return]

    return words


def test_a_thread_that_fails_is_an_error_and_never_missing_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = NoiseStream()
    monkeypatch.setattr(NoiseStream, "words", _failing(NoiseStream.words, 2))
    stream.begin(COUNT)
    with pytest.raises(PrivacyError, match=r"could not be made \(MemoryError: no room for noise\)"):
        privatize({"a": torch.zeros(COUNT)}, sensitivity=1.0, noise_multiplier=1.0, stream=stream)


def test_a_block_that_one_of_its_threads_could_not_make_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that fails is not the one that hands the block over."""
    stream, real, other = NoiseStream(), NoiseStream.words, threading.Event()
    makers: set[int] = set()

    def words(self: NoiseStream, count: int) -> np.ndarray:
        makers.add(threading.get_ident())
        if threading.get_ident() != own[0]:
            other.set()
            raise MemoryError("no room for noise")
        return real(self, count)

    own: list[int] = []
    made = NoiseStream._made

    def first(self: NoiseStream, *how: Any) -> Tensor:
        own.append(threading.get_ident())
        return made(self, *how)

    monkeypatch.setattr(NoiseStream, "words", words)
    monkeypatch.setattr(NoiseStream, "_made", first)
    monkeypatch.setattr("dptrain.privacy.streams._box_muller", lambda words, block: other.wait())
    stream.begin(COUNT, threads=2)
    with pytest.raises(PrivacyError, match="could not be made"):
        stream.gaussian(COUNT)
    assert len(makers) == 2


def test_a_run_whose_noise_cannot_be_made_takes_no_step(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = test_trainer.make(test_trainer.plan())
    before = test_trainer.weights(trainer).clone()
    monkeypatch.setattr(trainer.noise_stream, "words", lambda count: np.empty(-1))
    with pytest.raises(PrivacyError if threads else ValueError):
        next(trainer.run())
    assert trainer.step == 0 and torch.equal(before, test_trainer.weights(trainer))


def added(trainer: PrivateTrainer, patch: pytest.MonkeyPatch) -> list[Tensor]:
    """The noise of every step that is taken from now on."""
    real, found = noise.privatize, []

    def door(value: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
        noised = real({name: torch.zeros_like(tensor) for name, tensor in value.items()}, **how)
        found.append(torch.cat([noised[name].flatten() for name in value]))
        return {name: tensor + noised[name] for name, tensor in value.items()}

    patch.setattr(noise, "privatize", door)
    return found


def test_no_step_has_the_noise_of_another(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = test_trainer.make(test_trainer.plan())
    found = added(trainer, monkeypatch)
    list(trainer.run())
    alike = torch.corrcoef(torch.stack(found).double()) - torch.eye(8)
    assert float(alike.abs().max()) < 0.95  # of noise that is scaled anew too; 58 numbers a step


def test_a_failed_step_leaves_no_noise_for_the_next(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise that was begun for a sum that failed serves no other one, in a seeded run neither."""

    def loss(module: Any, batch: Any) -> Tensor:
        if failing:
            raise RuntimeError("no")
        return test_trainer.losses(module, batch)

    failing: list[int] = []
    made: list[Tensor | None] = []
    real = NoiseStream._made

    def note(self: NoiseStream, *how: Any) -> Tensor:
        number = len(made)
        made.append(None)
        block = real(self, *how)
        made[number] = block.clone()
        return block

    monkeypatch.setattr(NoiseStream, "_made", note)
    trainer = test_trainer.make(test_trainer.plan(sample_rate=0.9), loss=loss)
    found = added(trainer, monkeypatch)
    next(trainer.run())
    failing.append(1)
    with pytest.raises(RuntimeError, match="no"):
        next(trainer.run())
    failing.clear()
    next(trainer.run())
    assert len(found) == 2 and len(made) == (3 if threads else 2)
    assert torch.equal(0.5 * made[-1], found[1])  # type: ignore[operator]


@pytest.mark.parametrize("exact", [False, True])
def test_a_seeded_run_is_the_same_with_and_without_threads(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is cut and resumed, and whose phases have noise of other scales and sizes."""
    found = []
    phases = (Phase(3, ("0.weight", "0.bias"), 0.2), Phase(5, ("3.weight", "3.bias")))
    for several in (0, 1, 3):
        monkeypatch.setattr(loop, "spare_threads", lambda device, several=several: several)
        for cut in (None, 4):
            trainer = test_trainer.make(test_trainer.plan(), seed=7, exact=exact, phases=phases_of(phases))
            if cut:
                list(trainer.run(cut))
                state, trainer = (
                    copy.deepcopy(trainer.state()),
                    test_trainer.make(test_trainer.plan(), seed=7, exact=exact, phases=phases_of(phases)),
                )
                trainer.restore(state)
            list(trainer.run())
            found.append(test_trainer.weights(trainer))
    assert all(torch.equal(found[0], other) for other in found[1:])


def phases_of(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The norm layer trains in the second of them."""
    return (phases[0], Phase(phases[1].steps, (*phases[1].names, "1.weight", "1.bias")))


def test_correlated_runs_have_noise_of_the_law_made_ahead(threads: int) -> None:
    trainer = test_banded.make(test_banded.plan(steps=6))
    assert list(trainer.run()) == [1, 2, 3, 4, 5, 6]
    assert isinstance(trainer.noise_stream, BandedStream) and trainer.noise_stream._step == 5


def test_a_door_that_takes_no_noise_leaves_none_behind(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever records or replaces what goes out need not call the real door."""
    monkeypatch.setattr(noise, "privatize", lambda value, **_: value)
    trainer = test_trainer.make(test_trainer.plan())
    assert len(list(trainer.run())) == 8 and trainer.noise_stream._ahead is None


def test_a_step_is_counted_before_its_sum_is_noised(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise on its way is no release: what is counted is the sum that meets it."""
    told: list[str] = []
    real = noise.privatize
    monkeypatch.setattr(noise, "privatize", lambda value, **how: (told.append("noised"), real(value, **how))[1])
    trainer = test_trainer.make(test_trainer.plan(), on_release=lambda step: told.append(f"counted {step}"))
    next(trainer.run())
    assert told == ["counted 1", "noised"]
