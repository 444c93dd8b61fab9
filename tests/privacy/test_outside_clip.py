"""A clip rule as another package would register it, what it is held to, and what is refused of one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dptrain
from dptrain import Clipping, ConfigError, PrivacyError, PrivacyPlan
from dptrain.gradients import ENGINES
from dptrain.privacy import outside_clip

NAME = "acme.smooth"


@dataclass(frozen=True)
class Smooth:
    """g C / sqrt(|g|^2 + C^2): close to g while it is short, and shorter than C."""

    clip_norm: float
    groups = None

    def weights(self, squared_norms: Tensor) -> Tensor:
        return self.clip_norm / (squared_norms + self.clip_norm**2).sqrt()

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        return self.clip_norm


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(outside_clip, "_MAKERS", {})
    outside_clip.held_rule.cache_clear()
    yield
    outside_clip.held_rule.cache_clear()


def plan(clip_norm: float = 0.5) -> PrivacyPlan:
    return PrivacyPlan(0.5, 3, 1.0, clip_norm, 1e-3, 8, clipping=Clipping(NAME))


def losses(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).square().sum(1)


class Batches:
    """Every draw in batches of three."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def steps(self, draws: Iterator[Any]) -> Iterator[Iterator[Tensor]]:
        for draw in draws:
            yield iter(self.rows[torch.as_tensor(draw.indices)].split(3) if len(draw.indices) else ())


def trainer(made: PrivacyPlan, scale: float = 1.0) -> dptrain.PrivateTrainer:
    torch.manual_seed(0)
    module, rows = nn.Linear(4, 2).double(), scale * torch.randn(20, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    return dptrain.PrivateTrainer(module, losses, made, optimizer, Batches(rows), 20)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_no_unit_passes_what_an_outside_rule_states(engine: str) -> None:
    dptrain.register_clip_rule(NAME)(Smooth)
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    for clip_norm in (1e-3, 0.5, 1e4):
        rule = plan(clip_norm).mechanism(["weight", "bias"]).rule
        assert rule.sensitivity() == clip_norm and rule.sensitivity("replace_one") == 2 * clip_norm
        for scale in (0.0, 1e-6, 1.0, 1e3, math.nan, math.inf):
            x = scale * torch.randn(3, 4)
            for row in (x, x[:1], x[:0]):
                whole = dptrain.clipped_gradient_sum(module, losses, row, rule, engine)
                length = float(torch.cat([g.double().flatten() for g in whole.values()]).norm())
                assert length <= len(row) * clip_norm
                if not math.isfinite(scale):
                    assert length == 0.0
    squared = torch.tensor([[0.0], [0.25], [1e8], [math.inf], [math.nan], [1e300]]).double()
    got, wanted = plan().mechanism(["w"]).rule.weights(squared), Smooth(0.5).weights(squared)
    torch.testing.assert_close(got[:3], wanted[:3], rtol=1e-5, atol=0.0)
    assert got[3:].abs().max() == 0.0


@pytest.mark.parametrize("exact", [False, True])
def test_the_trainer_follows_it_and_scales_the_noise_to_its_sensitivity(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dptrain.privacy import noise
    from dptrain.privacy.exact import SENSITIVITY

    @dptrain.register_clip_rule(NAME)
    class Twice(Smooth):
        def __init__(self, clip_norm: float) -> None:
            super().__init__(2.0 * clip_norm)

    told: list[float] = []
    real = noise.privatize

    def note(value: Any, *, sensitivity: float, **rest: Any) -> Any:
        told.append(sensitivity)
        return real(value, sensitivity=sensitivity, **rest)

    monkeypatch.setattr(noise, "privatize", note)
    own = trainer(plan())
    own._exact = exact
    own._agreed = [own._terms()]
    assert list(own.run()) == [1, 2, 3]
    assert told == [float(SENSITIVITY) if exact else 1.0] * 3
    assert plan().clipping.longest(0.5) == 1.0
    assert plan().epsilon() == PrivacyPlan(0.5, 3, 1.0, 0.5, 1e-3, 8).epsilon()


def test_a_statement_names_it_as_not_dptrains_own_and_is_read_where_nobody_registered_it() -> None:
    assert "acme.smooth, which is not one of dptrain's own rules" in Clipping(NAME).words()
    assert Clipping.from_dict(json.loads(json.dumps(Clipping(NAME).to_dict()))) == Clipping(NAME)
    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan().to_dict()))) == plan()


class Leaky(Smooth):
    """States less than it lets through, for long gradients."""

    def weights(self, squared_norms: Tensor) -> Tensor:
        return torch.where(squared_norms > 25.0 * self.clip_norm**2, 1.0, super().weights(squared_norms))


class Beside(Smooth):
    """Weighs a unit by the longest of the batch."""

    def weights(self, squared_norms: Tensor) -> Tensor:
        return (self.clip_norm / squared_norms.sqrt().max().clamp(min=self.clip_norm)).expand(squared_norms.shape)


@dataclass(frozen=True)
class Adapts(Smooth):
    """Follows the lengths it has seen, as adaptive clipping does."""

    seen: list[float] = field(default_factory=list)

    def weights(self, squared_norms: Tensor) -> Tensor:
        self.seen.append(float(squared_norms.max()))
        return super().weights(squared_norms) * 0.9 ** len(self.seen)


class Shape(Smooth):
    def weights(self, squared_norms: Tensor) -> Tensor:
        return super().weights(squared_norms).squeeze(1)


class Negative(Smooth):
    def weights(self, squared_norms: Tensor) -> Tensor:
        return -super().weights(squared_norms)


class NotANumber(Smooth):
    def weights(self, squared_norms: Tensor) -> Tensor:
        return super().weights(squared_norms) * math.nan


class InGroups(Smooth):
    groups = {"weight": 0}  # type: ignore[assignment] # noqa: RUF012


class States(Smooth):
    what: Any = math.inf

    def sensitivity(self, relation: str = "add_or_remove_one") -> float:
        return self.what  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Leaky, "add more than the sensitivity 0.5"),
        (Beside, "weighs a unit by others"),
        (Adapts, "weighs a unit by others"),
        (Shape, r"weights of shape \(1,\)"),
        (Negative, "no such weight"),
        (NotANumber, "no such weight"),
        (InGroups, "has groups"),
        (States, "states the sensitivity inf"),
        (type("Zero", (States,), {"what": 0.0}), "states the sensitivity 0.0"),
        (type("Yes", (States,), {"what": True}), "states the sensitivity True"),
        (type("Text", (States,), {"what": "1"}), "states the sensitivity '1'"),
    ],
)
def test_a_rule_that_fails_on_made_up_norms_is_refused_before_any_data(make: Callable[..., Any], words: str) -> None:
    dptrain.register_clip_rule(NAME)(make)
    with pytest.raises(ConfigError, match=words) as caught:
        trainer(plan())
    assert f"clipping='{NAME}'" in str(caught.value) and "\n" not in str(caught.value)


class LeaksSometimes(Smooth):
    """Right at every length that is tried, and wrong in between."""

    def weights(self, squared_norms: Tensor) -> Tensor:
        wrong = (squared_norms > 17.5) & (squared_norms < 48.0)
        return torch.where(wrong, 1.0, super().weights(squared_norms))


class RemembersLater(Smooth):
    """Starts to adapt once training has begun."""

    def weights(self, squared_norms: Tensor) -> Tensor:
        calls[0] += 1
        return super().weights(squared_norms) * (1.0 if calls[0] < 200 else 1.0 / calls[0])


class RemembersTheLongest(Smooth):
    """Clips harder once a long gradient was seen, in this batch or in an earlier one."""

    def weights(self, squared_norms: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > 120 and float(squared_norms.max()) > 20.0:
            harder.append(True)
        return super().weights(squared_norms) * (0.5 if harder and float(squared_norms.max()) < 1.0 else 1.0)


calls = [0]
harder: list[bool] = []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (LeaksSometimes, "add more than"),
        (RemembersLater, "others that it saw"),
        (RemembersTheLongest, "others that it saw"),
    ],
)
def test_a_rule_that_fails_on_private_norms_ends_the_run_before_the_step_is_released(make: Any, words: str) -> None:
    """The message says nothing of the norm."""
    calls[0] = 0
    harder.clear()
    dptrain.register_clip_rule(NAME)(make)
    released: list[int] = []
    own = trainer(PrivacyPlan(1.0, 40, 1.0, 1.37, 1e-3, 20, clipping=Clipping(NAME)), scale=1.5)
    own._on_release = released.append
    with pytest.raises(PrivacyError, match=words) as caught:
        list(own.run())
    assert "of norm" not in str(caught.value)
    assert len(released) == own.step


def test_names_have_a_dot_and_stand_for_one_rule() -> None:
    for name in ("smooth", "acme.", ".smooth", "acme smooth", "acme.smooth\n", "a." + "b" * 100, None):
        with pytest.raises(ConfigError, match="give a name with a dot"):
            dptrain.register_clip_rule(name)  # type: ignore[arg-type]
    dptrain.register_clip_rule(NAME)(Smooth)
    with pytest.raises(ConfigError, match="taken"):
        dptrain.register_clip_rule(NAME)
    with pytest.raises(ConfigError, match="clip_groups has no effect"):
        Clipping(NAME, groups=("a",))


def test_a_rule_that_nobody_registered_is_refused_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    from dptrain.commands.main import main

    with pytest.raises(ConfigError, match=r"clipping='acme\.smooth' is not registered in this process: import"):
        trainer(plan())
    assert main(f"train model=a.pt data=b.yaml privacy.epsilon=1 privacy.clipping={NAME}".split()) == 2
    assert "privacy.clipping='acme.smooth' is not registered in this process" in capsys.readouterr().err
    assert main("train model=a.pt data=b.yaml privacy.epsilon=1 privacy.clipping=smooth".split()) == 2
    assert "privacy.clipping=smooth is not one of flat, scaled" in capsys.readouterr().err
