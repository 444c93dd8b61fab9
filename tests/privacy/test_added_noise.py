"""The noise that training really added, at the optimizer, against what the plan promises; and that none is used twice.

Here one process trains; ``test_processes.py`` has several that train together. Every p-value is compared with 1e-9,
which is how often a test here fails by bad luck.
"""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dptrain import PrivacyPlan
from dptrain.detection.data import DetectionDataset, StepLoader, load_data
from dptrain.detection.loss import PerImageLoss
from dptrain.privacy.streams import NoiseStream
from dptrain.training.clipped_sum import ClippedSum
from dptrain.training.trainer import PrivateTrainer

from .datasets import SIZE, detector, write_neighbours

SIGNIFICANCE = 1e-9
PLAN = PrivacyPlan(0.6, 6, 1.7, 0.3, 1e-3, 4)
STEPS = 3
SIZES = (1, 2, 6)

MakeTrainer = Callable[..., PrivateTrainer]


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory: pytest.TempPathFactory) -> MakeTrainer:
    """Return a function that makes a trainer of a small detector on six image files."""
    folder = tmp_path_factory.mktemp("noise")
    kinds = ["ordinary", "no boxes", "one box", "all black", "tiny boxes"]
    file = write_neighbours(folder, kinds, "300 boxes", 5).larger

    def make(physical_batch_size: int = 2) -> PrivateTrainer:
        model = detector("end2end group", folder)
        dataset = DetectionDataset(load_data(file), "train", SIZE)
        loader = StepLoader(dataset, physical_batch_size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return PrivateTrainer(model, PerImageLoss(), PLAN, optimizer, loader, len(dataset))

    return make


def added_noise(trainer: PrivateTrainer, patch: pytest.MonkeyPatch, steps: int) -> dict[str, np.ndarray]:
    """Take steps; return what the optimizer was given above the clipped sums, {parameter name: (steps, entries)}."""
    parts: list[dict[str, Tensor]] = []
    rows: dict[str, list[np.ndarray]] = {name: [] for name in trainer.parameters}
    real = ClippedSum.over

    def over(clipped: ClippedSum, batch: Any) -> dict[str, Tensor]:
        parts.append(real(clipped, batch))
        return parts[-1]

    def look(*_: Any) -> None:
        for name, parameter in trainer.parameters.items():
            assert parameter.grad is not None
            total = sum((part[name].double() for part in parts), torch.zeros(parameter.shape, dtype=torch.float64))
            noised = parameter.grad.double() * PLAN.expected_batch_size
            rows[name].append((noised - total).flatten().numpy())
        parts.clear()

    patch.setattr(ClippedSum, "over", over)
    trainer.optimizer.register_step_pre_hook(look)
    for step in trainer.run():
        if step == steps:
            break
    return {name: np.stack(added) for name, added in rows.items()}


@pytest.fixture(scope="module")
def added(make_trainer: MakeTrainer) -> dict[int, dict[str, np.ndarray]]:
    """What was added in three steps of a run, by its physical batch size."""
    found = {}
    for size in SIZES:
        with pytest.MonkeyPatch.context() as patch:
            found[size] = added_noise(make_trainer(size), patch, STEPS)
    return found


Added = dict[int, dict[str, np.ndarray]]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_added_is_gaussian_of_the_plans_scale_and_no_other(size: int, added: Added) -> None:
    sample = np.concatenate([rows.ravel() for rows in added[size].values()])
    assert len(sample) > 70_000
    scale = PLAN.noise_multiplier * PLAN.clip_norm
    assert stats.kstest(sample, stats.norm(0, scale).cdf).pvalue > SIGNIFICANCE
    for wrong in (0.9, 1.1):
        assert stats.kstest(sample, stats.norm(0, wrong * scale).cdf).pvalue < SIGNIFICANCE


def test_every_parameter_has_its_full_noise(added: Added) -> None:
    """A tensor of eight entries would hide in the sample of all."""
    scale = PLAN.noise_multiplier * PLAN.clip_norm
    for name in added[1]:
        sample = np.concatenate([added[size][name].ravel() for size in SIZES])
        squares = float((sample**2).sum()) / scale**2
        chances = stats.chi2.cdf(squares, len(sample)), stats.chi2.sf(squares, len(sample))
        assert min(chances) > SIGNIFICANCE / len(added[1]), name
        assert stats.kstest(sample, stats.norm(0, scale).cdf).pvalue > SIGNIFICANCE / len(added[1]), name


def test_no_two_steps_runs_or_parameters_share_their_noise(added: Added) -> None:
    """The normalised product of two independent rows of n entries is a standard Gaussian over the root of n."""
    most = stats.norm.isf(SIGNIFICANCE / 1e5)
    whole = [np.concatenate([rows[step] for rows in added[size].values()]) for size in SIZES for step in range(STEPS)]
    by_shape: dict[int, list[np.ndarray]] = {}
    for size in SIZES:
        for rows in added[size].values():
            by_shape.setdefault(rows.shape[1], []).extend(rows)
    for group in (whole, *(rows for count, rows in by_shape.items() if count >= 64)):
        table = np.stack(group)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        products = np.abs(np.triu(table @ table.T, 1)).max() * math.sqrt(table.shape[1])
        assert products < most


# --- the streams -----------------------------------------------------------------------------------------------------


def repeated(words: np.ndarray) -> int:
    """Return how many 64-bit words are there twice; by chance one, once in 10^7 tests of a million words."""
    return len(words) - len(np.unique(words))


def test_no_word_of_the_keystream_is_used_twice_across_steps_and_resumes(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where several resumes start from one and the same checkpoint."""
    used: list[np.ndarray] = []
    real = NoiseStream.words
    monkeypatch.setattr(NoiseStream, "words", lambda self, count: (used.append(real(self, count)), used[-1])[1])
    first = make_trainer()
    state = first.state()
    for step in first.run():
        if step == 1:
            state = first.state()
        if step == 3:
            break
    for _ in range(2):
        again = make_trainer()
        again.restore(copy.deepcopy(state))
        next(again.run())
    words = np.concatenate(used)
    parameters = sum(p.numel() for p in first.parameters.values())
    assert len(words) >= 5 * parameters, "the noise of five steps comes from elsewhere"
    assert repeated(words) == 0


_PROCESS = """
import json, os, sys
from dptrain.privacy.streams import NoiseStream
import torch
streams = [NoiseStream(None, purpose) for purpose in ("noise", "noise", "sampling")]
words = [str(stream.at(step).integer()) for stream in streams for step in range(3000)]
added = [stream.gaussian(2000).tolist() for stream in streams]
print(json.dumps([words, added]))
"""


def test_processes_share_no_noise() -> None:
    commands = [[sys.executable, "-c", _PROCESS] for _ in range(2)]
    told = [json.loads(subprocess.run(c, capture_output=True, text=True, check=True).stdout) for c in commands]
    words = np.array([int(word) for one, _ in told for word in one], dtype=np.uint64)
    assert len(words) == 18_000 and repeated(words) == 0
    numbers = np.array([added for _, added in told]).reshape(-1, 2000)
    assert repeated(numbers.ravel()) == 0
    assert stats.kstest(numbers.ravel(), "norm").pvalue > SIGNIFICANCE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_repeat_its_parents_noise() -> None:
    """Two halves of a forked run would release the same noise on two sums, and the difference of the sums bare."""
    stream = NoiseStream()
    stream.gaussian(10)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        try:
            os.write(writing, b"".join(stream.integer().to_bytes(8, "little") for _ in range(500)))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = np.frombuffer(pipe.read(), dtype="<u8")
    os.waitpid(child, 0)
    ours = np.array([stream.integer() for _ in range(500)], dtype=np.uint64)
    assert len(theirs) == 500 and repeated(np.concatenate((ours, theirs))) == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_a_stream_cannot_be_duplicated(duplicate: Callable[[NoiseStream], object]) -> None:
    with pytest.raises(TypeError):
        duplicate(NoiseStream())


def test_the_tails_reach_as_far_as_their_bits() -> None:
    """A Gaussian that ends at 5.9, as 24 bits give it, is none for a delta of 1e-9: far words must give far numbers."""
    stream = NoiseStream()
    stream.words = lambda count: np.zeros(count, dtype="<u8")  # type: ignore[method-assign]
    assert float(stream.gaussian(2).abs().max()) > 8.2
