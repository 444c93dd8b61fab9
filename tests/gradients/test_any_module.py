"""``microbatch`` trains any module: plain autograd needs no layer rule. What mixes examples is refused all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dptrain
from dptrain import ModelError, PrivacyError, PrivacyPlan, PrivateTrainer

from .oracle import assert_same, clipped, one_at_a_time, projected_losses, squared_norms

losses = projected_losses()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x.transpose(1, 2))[0][:, -1])


class Tied(nn.Module):
    """One weight in two layers, and once more as a plain matrix; a scale that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.scale = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.ones(3, 1))
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x * self.scale))) @ self.one.weight


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x)[0]


class Words(nn.Module):
    """Gradients that torch keeps as sparse tensors, in which a word that comes twice has two entries."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table((x[:, 0] * 2).long().abs() % 4).sum(1) * x.mean((1, 2)).view(-1, 1)


NETS: dict[str, Callable[[], nn.Module]] = {
    "Conv1d": lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)),
    "LSTM": Recurrent,
    "PReLU": lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 6), nn.PReLU(6), nn.Linear(6, 2)),
    "tied": Tied,
    "attention": Attention,
    "weight norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(24, 3))),
    "instance norm": lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.InstanceNorm1d(4, affine=True)),
    "sparse": Words,
}


def series(n: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


@pytest.mark.parametrize("name", NETS)
def test_gradients_and_clipped_sums_are_those_of_one_example_at_a_time(name: str) -> None:
    module, x = seeded(NETS[name]), series(4)
    assert dptrain.check_independence(module, losses, x, "microbatch")
    wanted = {key: g.to_dense() for key, g in one_at_a_time(module, losses, x).items()}
    assert_same(dptrain.per_sample_gradients(module, losses, x, "microbatch"), wanted, 1e-9, 1e-12)
    for clip_norm in (1e-3, 1.0, 1e6):
        total, expected = (
            dptrain.clipped_gradient_sum(module, losses, x, clip_norm, "microbatch"), clipped(wanted, clip_norm)
        )  # fmt: skip
        scale = sum(min(clip_norm, float(norm)) for norm in squared_norms(wanted).sqrt())
        assert all(float((total[key] - expected[key]).norm()) <= 2e-5 * scale for key in wanted)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_no_example_ever_adds_more_than_the_clip_norm(name: str, kind: torch.dtype) -> None:
    module = seeded(NETS[name]).to(kind)
    longest = 0.0
    for seed, scale in enumerate((1e-6, 0.1, 1.0, 30.0, 1e4)):
        x = series(1, seed, scale).to(kind)
        for clip_norm in (1e-3, 0.3, 1.0):
            total = dptrain.clipped_gradient_sum(module, losses, x, clip_norm, "microbatch")
            share = float(torch.cat([g.double().flatten() for g in total.values()]).norm()) / clip_norm
            assert share <= 1.0, (scale, clip_norm)
            longest = max(longest, share)
    assert longest > 0.9999, "nothing was clipped"


class Batches:
    """Every draw in batches of three."""

    def steps(self, draws: Iterator[Any]) -> Iterator[Iterator[Tensor]]:
        for draw in draws:
            yield iter(series(12)[torch.as_tensor(draw.indices)].split(3) if len(draw.indices) else ())


def trainer(module: nn.Module, loss: Any = losses, probe: Any = None) -> PrivateTrainer:
    plan = PrivacyPlan(sample_rate=0.5, steps=3, noise_multiplier=1.0, clip_norm=1.0, delta=1e-3, expected_batch_size=6)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    return PrivateTrainer(module, loss, plan, optimizer, Batches(), 12, engine="microbatch", probe=probe)


@pytest.mark.parametrize("name", NETS)
def test_the_trainer_takes_its_steps_and_resumes(name: str) -> None:
    module = seeded(NETS[name])
    before = [p.detach().clone() for p in module.parameters()]
    own = trainer(module, probe=series(3, 7))
    assert list(own.run(2)) == [1, 2]
    assert all(bool((p != old).any()) for p, old in zip(module.parameters(), before, strict=True))
    again = trainer(seeded(NETS[name]), probe=series(3, 7))
    again.restore(own.state())
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), again.module.parameters(), strict=True))
    assert list(again.run()) == [3]


def refused(module: nn.Module, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        trainer(module, probe=series(3))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_what_mixes_examples_is_refused_though_each_has_a_pass_of_its_own() -> None:
    refused(nn.Sequential(nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(24, 2)).double(), "'0'", "BatchNorm1d")
    refused(nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True), nn.Conv1d(3, 2, 3)).double(), "'0'")
    refused(nn.Sequential(nn.Embedding(9, 2, max_norm=1.0), nn.Linear(2, 2)).double(), "'0'", "max_norm=None")
    refused(nn.Sequential(nn.Embedding(9, 2, max_norm=1.0).requires_grad_(False), nn.Linear(2, 2)), "max_norm=None")
    refused(nn.Linear(8, 2, dtype=torch.complex128), "'weight' is complex")


class KeepsState(nn.Module):
    """A recurrent network that goes on from where the example before it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.hidden = nn.GRU(3, 4, batch_first=True), None

    def forward(self, x: Tensor) -> Tensor:
        out, hidden = self.cell(x.transpose(1, 2), self.hidden)
        self.hidden = hidden.detach()
        return out


def test_a_state_that_one_example_leaves_for_the_next_is_refused() -> None:
    refused(seeded(KeepsState), "of one example changed", "keep")
    with pytest.raises(ModelError, match="keep"):
        list(trainer(seeded(KeepsState)).run())


class Renormalises(nn.Module):
    """Shortens in place the rows that an example looks up, as an embedding with ``max_norm`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Parameter(torch.ones(4, 3), requires_grad=False), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        words = (x[:, 0, 0] * 2).long().abs() % 4
        with torch.no_grad():
            self.table[words] *= 0.5
        return self.out(F.embedding(words, self.table))


def test_a_parameter_that_the_pass_itself_changes_is_refused() -> None:
    own = trainer(seeded(Renormalises), probe=False)
    with pytest.raises(PrivacyError, match="buffer or parameter"):
        list(own.run())
