"""A layer rule as another package would register it, and what is refused of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dptrain
from dptrain import ConfigError, ModelError
from dptrain.gradients.rules import base, outside

from .oracle import assert_same, clipped, one_at_a_time, projected_losses

losses = projected_losses()


class Scale(nn.Module):
    """A number for every channel of (n, channels, ...), and one that is added; neither has the usual name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.gain.view(shape) + self.shift.view(shape)


class Scaled(Scale):
    """Has another type, and so no rule."""


def gradients(layer: Scale, inputs: tuple[Tensor], grad_output: Tensor) -> dict[str, Tensor]:
    rows = grad_output.flatten(2)
    return {"gain": (inputs[0].flatten(2) * rows).sum(2), "shift": rows.sum(2)}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    kinds, ours = dict(base._RULES), set(outside._KINDS)
    dptrain.register_layer_rule(Scale)(gradients)
    yield
    base._RULES.clear()
    base._RULES.update(kinds)
    outside._KINDS.clear()
    outside._KINDS.update(ours)


class Net(nn.Module):
    """The layer first and last, twice, and before an activation in place."""

    def __init__(self, kind: Callable[[int], nn.Module] = Scale) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.conv, self.between, self.out = kind(3), nn.Conv2d(3, 4, 3), kind(4), nn.Linear(4, 2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.between(self.conv(self.first(x))))
        return self.out(self.between(x).mean((2, 3)))


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frozen", ["nothing", "gain", "shift"])
def test_a_registered_rule_is_right_in_a_network_by_example_and_by_unit(frozen: str) -> None:
    module, x = Net().double(), images(5)
    for layer in (module.first, module.between):
        getattr(layer, frozen, nn.Parameter(torch.zeros(1))).requires_grad_(False)
    wanted = one_at_a_time(module, losses, x)
    assert_same(dptrain.per_sample_gradients(module, losses, x), wanted, 1e-9, 1e-12)
    total, expected = dptrain.clipped_gradient_sum(module, losses, x, 0.3), clipped(wanted, 0.3)
    assert all(float((total[name] - expected[name]).norm()) <= 2e-5 * 0.3 * 5 for name in wanted)
    units = torch.tensor([0, 0, 0, 1, 1])
    by_unit = dptrain.per_sample_gradients(module, losses, x, units=units)
    assert_same(by_unit, dptrain.per_sample_gradients(module, losses, x, "microbatch", units), 1e-9, 1e-12)
    assert not any("forward" in layer.__dict__ for layer in module.modules())
    assert all(isinstance(p, nn.Parameter) for layer in module.modules() for p in layer._parameters.values())


def test_the_check_passes_a_right_rule_and_those_of_dptrain() -> None:
    dptrain.check_layer_rule(Scale(3), torch.randn(6, 3, 4))
    dptrain.check_layer_rule(nn.Linear(3, 2), torch.randn(4, 3))
    dptrain.check_layer_rule(nn.Embedding(7, 2), torch.arange(8).view(4, 2) % 7)


WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "a factor": (lambda m, i, b: {**gradients(m, i, b), "gain": 1.01 * gradients(m, i, b)["gain"]}, "'gain'.*off by"),
    "the next example's": (lambda m, i, b: {k: g.roll(1, 0) for k, g in gradients(m, i, b).items()}, "is wrong for"),
    "the batch's mean": (lambda m, i, b: {k: g - g.mean(0) for k, g in gradients(m, i, b).items()}, "is wrong for"),
    "not a number": (lambda m, i, b: {k: g * torch.nan for k, g in gradients(m, i, b).items()}, "is wrong for"),
    "the batch's sum": (lambda m, i, b: {k: g.sum(0) for k, g in gradients(m, i, b).items()}, r"\(3,\).*'gain'"),
    "one missing": (lambda m, i, b: {"gain": gradients(m, i, b)["gain"]}, "None for parameter 'shift'"),
    "nothing": (lambda m, i, b: None, "None for parameter 'gain'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_check_refuses_a_wrong_rule_by_name(name: str) -> None:
    rule, words = WRONG[name]
    dptrain.register_layer_rule(Scale)(rule)
    with pytest.raises(ModelError, match=words) as caught:
        dptrain.check_layer_rule(Scale(3), torch.randn(6, 3, 4))
    assert "Scale" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["the next example's", "the batch's mean"])
def test_training_refuses_a_rule_that_mixes_examples_though_nobody_checked_it(name: str) -> None:
    dptrain.register_layer_rule(Scale)(WRONG[name][0])
    with pytest.raises(ModelError, match="of one example changed"):
        dptrain.check_independence(Net().double(), losses, images(4))


def test_inputs_that_cannot_show_anything_are_refused() -> None:
    with pytest.raises(ModelError, match=r"four or more examples \(3 here\)"):
        dptrain.check_layer_rule(Scale(3), torch.randn(3, 3, 2))
    with pytest.raises(ModelError, match=r"\(0 here\)"):
        dptrain.check_layer_rule(Scale(3).requires_grad_(False), torch.randn(4, 3, 2))
    with pytest.raises(ModelError, match="'gain' are all zero"):
        dptrain.check_layer_rule(Scale(3), torch.zeros(4, 3, 2))


def test_what_cannot_have_a_rule_is_refused() -> None:
    for kind, words in ((nn.Linear, r"\(Linear\): dptrain has its own"), (gradients, "a subclass of torch.nn.Module")):
        with pytest.raises(ConfigError, match=words):
            dptrain.register_layer_rule(kind)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="Scaled, for which there is no"):
        dptrain.per_sample_gradients(Net(Scaled).double(), losses, images(3))

    class Pair(Scale):
        def forward(self, x: Tensor) -> Any:
            return x, super().forward(x)

    dptrain.register_layer_rule(Pair)(gradients)
    with pytest.raises(ModelError, match=r"Pair returned a tuple.*engine microbatch"):
        dptrain.per_sample_gradients(Pair(3), lambda m, x: m(x)[1].sum(1), torch.randn(4, 3))
