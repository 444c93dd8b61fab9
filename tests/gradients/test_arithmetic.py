"""What a pass computes of an image does not depend on its place in the pass, nor on how a GPU is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dptrain
from dptrain.detection import load_model
from dptrain.detection.loss import PerImageLoss
from dptrain.errors import ConfigError
from dptrain.gradients import ENGINES
from dptrain.gradients.arithmetic import blank_of, everywhere_alike
from dptrain.gradients.autotune import by_rule
from dptrain.gradients.rules.conv_forms import Geometry, GhostConvRecord
from dptrain.support.devices import refuse_single_precision

from ..detectors import stock_detector, write_checkpoint

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("function", [torch.sigmoid, nn.functional.silu])
def test_an_elementwise_function_rounds_alike_in_every_place(function: Any) -> None:
    x = torch.randn(31_000, generator=torch.Generator().manual_seed(0)) * 4
    together = everywhere_alike(function, x)
    torch.testing.assert_close(together, function(x))
    for before in (1, 13, 40_001):
        assert torch.equal(everywhere_alike(function, torch.cat((torch.zeros(before), x)))[before:], together)
    few = torch.cat([everywhere_alike(function, part) for part in x.split(15)])  # left over, all of them
    assert torch.equal(few, together)


def test_all_threads_get_whole_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 2, 3, 12, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for count in (0, 1, 64, 720, 32_767, 32_769, 81_920, 1_000_001):
            size = count + blank_of(torch.zeros(0), count)
            parts = 1 if size < 32768 else min(threads, -(-size // 32768))
            assert size % (64 * parts) == 0 and size - count < 64 * threads * 2


class Watch(PerImageLoss):
    """The loss, which keeps what was predicted, the losses and how the GPU is set."""

    def __call__(self, model: Any, batch: Any) -> Tensor:
        self.seen: list[Tensor] = []
        hook = model.model[-1].register_forward_hook(lambda _module, _inputs, output: self._keep(output))
        try:
            losses = super().__call__(model, batch)
        finally:
            hook.remove()
        self.seen.append(losses.detach())
        cudnn = torch.backends.cudnn
        self.flags = (
            cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
        )  # fmt: skip
        return losses

    def _keep(self, output: Any) -> None:
        for value in output.values():
            if isinstance(value, dict):
                self._keep(value)
            elif isinstance(value, Tensor):
                self.seen.append(value.detach().clone())


# At 96 px the maps are 3 x 3: attention, activations and the last convolutions then lie at odd places in memory.
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("name", "norm"), [("yolo26n.yaml", "group"), ("yolov8n.yaml", "group"), ("yolo26n.yaml", "frozen_bn")]
)
def test_what_is_predicted_for_an_image_is_the_same_to_the_last_bit_in_every_place_of_a_pass(
    name: str, norm: str, threads: int, tmp_path: Path
) -> None:
    side, size = 96, 5
    torch.manual_seed(0)
    if norm == "frozen_bn":
        name = str(write_checkpoint(stock_detector(name.removesuffix(".yaml"), "a"), tmp_path / "start.pt"))
    model = load_model(name, 1, norm=norm)
    pixels = torch.rand((size, 3, side, side), generator=torch.Generator().manual_seed(1))
    boxes = [torch.rand((count, 4), generator=torch.Generator().manual_seed(count)) * 0.4 + 0.2 for count in (1, 9, 2)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for shift in (0, 1, 3):  # three images and two blank ones
            own = [boxes[(i + shift) % 3] for i in range(3)]
            images = [pixels[(i + shift) % 3] for i in range(3)]
            counts = torch.tensor([len(rows) for rows in own])
            watch = Watch()
            batch = {
                "img": torch.stack(images),
                "batch_idx": torch.arange(3).repeat_interleave(counts).float(),
                "cls": torch.zeros(int(counts.sum()), 1),
                "bboxes": torch.cat(own),
            }
            with by_rule():
                dptrain.clipped_gradient_sum(model, watch, batch, 1.0, examples_at_once=size)
            found.append([torch.cat((tensor[3 - shift % 3 : 3], tensor[: 3 - shift % 3])) for tensor in watch.seen])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, moved in zip(found[0][:-1], other[:-1], strict=True):
            assert torch.equal(one, moved), "a prediction depends on the place"
        torch.testing.assert_close(found[0][-1], other[-1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_pass_is_in_full_precision_and_settings_are_put_back(engine: str) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision
    try:
        cudnn.benchmark, cudnn.deterministic = True, False
        cudnn.conv.fp32_precision = matmul.fp32_precision = "tf32"
        flags: list[Any] = []

        def losses(module: nn.Module, x: Tensor) -> Tensor:
            flags.append((cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision))
            return module(x).square().sum(1)

        dptrain.clipped_gradient_sum(nn.Linear(3, 2), losses, torch.ones(2, 3), 1.0, engine, examples_at_once=4)
        assert set(flags) == {(False, True, "ieee", "ieee")}
        assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
        assert cudnn.conv.fp32_precision == matmul.fp32_precision == "tf32"
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision = before


def _ten_bits(x: Tensor) -> Tensor:
    """Round as TF32 does: to 10 bits after the first."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


@pytest.mark.parametrize("coarse", [False, True])
def test_a_gradient_summed_in_coarser_numbers_than_it_was_measured_in_is_longer_than_the_clip_norm(
    coarse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF32 on a CPU: why it is off. What is measured and what is summed must be the same numbers."""
    module = nn.Conv2d(4, 4, 1, bias=False)
    x, b = (torch.full((1, 4, 1, 1), 1 + 0.6 * 2**-10) for _ in range(2))
    record = GhostConvRecord.make(Geometry(module, [0, 0], [0, 0]), x, b, module.weight.detach(), None, "gram")
    factor = dptrain.FlatClip(1.0).weights(record.squared_norms().unsqueeze(1))[:, 0]
    if coarse:
        real = Geometry.weight_gradient
        monkeypatch.setattr(
            Geometry, "weight_gradient", lambda self, b, x, w: real(self, _ten_bits(b), _ten_bits(x), w)
        )
    # The factor is put on the output gradient before it is rounded; a power of two leaves the mantissa alone.
    scale = 2.0 ** torch.floor(factor.log2())
    length = float(record.weighted_sum(scale)["weight"].norm() * (factor / scale))
    assert (length > 1.0005) if coarse else (length <= 1.0)


@needs_cuda
def test_on_a_gpu_a_clipped_gradient_is_no_longer_than_the_clip_norm_and_alike_in_every_place() -> None:
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    model = load_model("yolo26n.yaml", 2, norm="group").cuda()
    pixels = torch.rand(4, 3, 64, 64, device="cuda")
    box = torch.tensor([[0.5, 0.5, 0.3, 0.3]], device="cuda")
    seen = []
    for place in range(4):
        watch = Watch()
        batch = {"img": pixels.roll(place, 0), "batch_idx": torch.arange(4.0, device="cuda"),
                 "cls": torch.zeros(4, 1, device="cuda"), "bboxes": box.repeat(4, 1)}  # fmt: skip
        dptrain.clipped_gradient_sum(model, watch, batch, 1.0, examples_at_once=4)
        seen.append([tensor.roll(-place, 0) for tensor in watch.seen])
    for other in seen[1:]:
        assert all(torch.equal(one, moved) for one, moved in zip(seen[0][:-1], other[:-1], strict=True))
    one = {name: value[:1] for name, value in batch.items()}
    total = dptrain.clipped_gradient_sum(model, PerImageLoss(), one, 1e-2, examples_at_once=4)
    assert float(torch.cat([value.flatten().double() for value in total.values()]).norm()) <= 1e-2


def test_apples_gpus_are_refused_before_anything_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and noise are made in double precision; a step that fails for the want of it has been counted."""
    from types import SimpleNamespace

    from dptrain.training import trainer

    from ..training.test_trainer import make, plan

    with pytest.raises(ConfigError, match=r"device=mps: .*double precision.*; use device=cpu"):
        refuse_single_precision("mps")
    monkeypatch.setattr(trainer, "parameters_of", lambda *_: {"w": SimpleNamespace(device=torch.device("mps"))})
    with pytest.raises(ConfigError, match="device=mps"):
        make(plan())
