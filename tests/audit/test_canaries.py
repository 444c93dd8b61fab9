"""Dirac canaries: whatever the layer and the engine, one coordinate and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dptrain import clipped_gradient_sum, per_sample_gradients
from dptrain.audit.canaries import DiracLoss, WithCanaries, choose_sites, read_sites
from dptrain.audit.scenes import draw_scene
from dptrain.audit.small import SceneExamples, SmallNet, class_losses
from dptrain.detection.data import collate, to_device
from dptrain.errors import ConfigError


class OddConvolutions(nn.Module):
    """Strides, dilations, groups, paddings and biases that a detector may have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, (3, 5), stride=(2, 3), padding=(4, 1), bias=True)
        self.second = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.third = nn.Conv2d(6, 6, 2, stride=2, groups=6, bias=False)
        self.last = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.third(self.second(self.first(images))).mean((2, 3)))


def batch_of(examples: WithCanaries, indices: list[int]) -> dict[str, Tensor]:
    return to_device(collate([examples.sample(index) for index in indices]), "cpu")


def examples_with(count: int, size: int = 32) -> WithCanaries:
    rng = np.random.default_rng(0)
    return WithCanaries(SceneExamples([draw_scene(size, rng) for _ in range(3)]), np.ones(count, bool))


@pytest.mark.parametrize("engine", ["fused", "microbatch", "opacus"])
@pytest.mark.parametrize("make", [SmallNet, OddConvolutions])
def test_a_canarys_gradient_is_one_coordinate_of_its_own(make: type[nn.Module], engine: str) -> None:
    torch.manual_seed(0)
    module, count = make(), 24
    sites = choose_sites(module, count)
    examples = examples_with(count)
    batch = batch_of(examples, [0, *range(3, 3 + count), 1])
    gradients = per_sample_gradients(module, DiracLoss(class_losses, sites, 0.5), batch, engine)
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)[1:-1]
    assert (flat != 0).sum(1).tolist() == [1] * count
    assert flat.max(1).values.tolist() == [5.0] * count  # ten clip norms
    assert len(set(flat.argmax(1).tolist())) == count
    for site in sites:
        held = gradients[f"{site.layer}.weight"].flatten(1)[1 + site.first : 1 + site.first + len(site.entries)]
        assert held.argmax(1).tolist() == site.entries.tolist()


def test_canaries_leave_the_gradients_of_other_rows_alone() -> None:
    torch.manual_seed(0)
    module = SmallNet()
    examples = examples_with(8)
    loss = DiracLoss(class_losses, choose_sites(module, 8), 1.0)
    mixed = per_sample_gradients(module, loss, batch_of(examples, [0, 4, 1, 9, 2]))
    plain = per_sample_gradients(module, class_losses, batch_of(examples, [0, 1, 2]))
    for name, gradient in plain.items():
        torch.testing.assert_close(mixed[name][[0, 2, 4]], gradient, rtol=1e-4, atol=1e-6)


def test_a_canary_adds_the_clip_norm_to_the_sum_where_it_is_read() -> None:
    torch.manual_seed(0)
    module, count, clip = SmallNet(), 30, 0.25
    sites = choose_sites(module, count)
    batch = batch_of(examples_with(count), [3, 5, 32])
    total = clipped_gradient_sum(module, DiracLoss(class_losses, sites, clip), batch, clip)
    before = read_sites(module, sites)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter += total[name]
    expected = np.zeros(count)
    expected[[0, 2, 29]] = clip
    np.testing.assert_allclose(read_sites(module, sites) - before, expected, atol=1e-5)


def test_a_detectors_canaries_are_spread_over_its_depth() -> None:
    from dptrain.detection import load_model, per_image_losses

    torch.manual_seed(0)
    model = load_model("yolo26n.yaml", 3, trainable="head")
    sites = choose_sites(model, 50)
    assert len(sites) > 5 and all(site.layer.startswith("model.23.") for site in sites)
    batch = batch_of(examples_with(50, 64), [0, 3, 30, 52])
    gradients = per_sample_gradients(model, DiracLoss(per_image_losses, sites, 1.0), batch)
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
    assert (flat[1:] != 0).sum(1).tolist() == [1, 1, 1] and flat[1:].max(1).values.tolist() == [10.0] * 3
    assert (flat[0] != 0).sum() > 1000


def test_more_canaries_than_weights_are_refused() -> None:
    assert sum(len(site.entries) for site in choose_sites(SmallNet(), 12_544)) == 12_544
    with pytest.raises(ConfigError, match="canaries=12545"):
        choose_sites(SmallNet(), 12_545)
