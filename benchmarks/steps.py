"""One gradient step by every method on the same batch, and what it needs of time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import modules
from .cases import Case

BOXES = 6  # an image
CLASSES = 2

Step = Callable[[], object]


def random_batch(images: int, pixels: int, device: str = "cpu") -> dict[str, Tensor]:
    """Return random images with ``BOXES`` random boxes each, as a detector takes them."""
    random = torch.Generator().manual_seed(0)
    count = images * BOXES
    batch = {
        "img": torch.rand((images, 3, pixels, pixels), generator=random),
        "batch_idx": torch.arange(images).repeat_interleave(BOXES).float(),
        "cls": torch.randint(0, CLASSES, (count, 1), generator=random).float(),
        "bboxes": torch.cat(
            (
                torch.rand((count, 2), generator=random) * 0.6 + 0.2,
                torch.rand((count, 2), generator=random) * 0.3 + 0.05,
            ),
            1,
        ),
    }
    return {name: value.to(device) for name, value in batch.items()}


def subject(case: Case) -> tuple[nn.Module, Callable[[Any, Any], Tensor], Any]:
    """Return the module, its per-example losses and a batch."""
    if case.model in modules.MODULES:
        torch.manual_seed(0)
        module = modules.MODULES[case.model](case.pixels).to(case.device)
        return module, _cast(modules.losses, case), modules.random_batch(case.images, case.pixels, case.device)
    from dptrain.detection import PerImageLoss

    batch = random_batch(case.images, case.pixels, case.device)
    return detector(case), PerImageLoss(precision=case.precision), batch


def detector(case: Case) -> nn.Module:
    """Return the detector that the private methods and the plain step share."""
    from dptrain.detection import load_model

    torch.manual_seed(0)
    name = f"{case.model}.yaml"
    if case.norm != "frozen_bn":
        return load_model(name, num_classes=CLASSES, norm=case.norm).to(case.device)
    with tempfile.TemporaryDirectory() as folder:  # frozen statistics come from a checkpoint
        file = Path(folder) / "start.pt"
        stock = _stock(case)
        stock.args = {"task": "detect"}
        torch.save({"model": stock, "ema": None, "train_args": {"task": "detect"}}, file)
        return load_model(file, num_classes=CLASSES, norm="frozen_bn").to(case.device)


def _cast(losses: Callable[[Any, Any], Tensor], case: Case) -> Callable[[Any, Any], Tensor]:
    if case.precision == "fp32":
        return losses

    def in_bf16(module: Any, batch: Any) -> Tensor:
        with torch.autocast(torch.device(case.device).type, torch.bfloat16):
            return losses(module, batch)

    return in_bf16


def _stock(case: Case) -> Any:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import LOGGER

    import dptrain.detection  # noqa: F401 - keeps Ultralytics quiet and off the network

    LOGGER.setLevel("ERROR")
    model = DetectionModel(f"{case.model}.yaml", nc=CLASSES, verbose=False)
    model.args = get_cfg()
    return model


def steps(case: Case) -> dict[str, Step]:
    """Return what each of the case's methods does in one step.

    ``plain`` is forward and backward of the same module and per-example losses; ``fused``, ``microbatch`` and
    ``opacus`` also clip and sum; ``ultralytics`` is its own training step, with batch norm in train mode and the loss
    over the batch.
    """
    import dptrain

    made: dict[str, Step] = {}
    module, losses, batch = subject(case)
    for method in case.methods:
        if method == "plain":
            made[method] = _plain(module, losses, batch)
        elif method == "ultralytics":
            made[method] = _ultralytics(case, batch)
        else:

            def private(method: str = method) -> object:
                return dptrain.clipped_gradient_sum(module, losses, batch, clip_norm=1.0, engine=method)

            made[method] = private
    return made


def _plain(module: nn.Module, losses: Callable[[Any, Any], Tensor], batch: Any) -> Step:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return lambda: torch.autograd.grad(losses(module, batch).sum(), parameters)


def _ultralytics(case: Case, batch: dict[str, Tensor]) -> Step:
    model = _stock(case).to(case.device).train()
    parameters = [p for n, p in model.named_parameters() if ".dfl." not in n]

    def loss(own: Any, own_batch: Any) -> Tensor:
        return own.loss(own_batch)[0].sum()

    cast = _cast(loss, case)
    return lambda: torch.autograd.grad(cast(model, batch), parameters)


def measure_time(case: Case) -> dict[str, Any]:
    """Return the seconds of every repeat of every method."""
    return {"seconds": take_turns(steps(case), case.repeats, case.device)}


def take_turns(
    todo: dict[str, Step], repeats: int, device: str = "cpu", warm_up: Iterable[str] | None = None
) -> dict[str, list[float]]:
    """Time each step ``repeats`` times, after each of ``warm_up`` (all of them by default) was taken once.

    They take turns, and another one begins each round: a slow spell of the machine then meets all of them.
    """
    for name in todo if warm_up is None else warm_up:
        todo[name]()
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    order = list(todo)
    for _ in range(repeats):
        for name in order:
            began = now(device)
            todo[name]()
            seconds[name].append(now(device) - began)
        order = [*order[1:], order[0]]
    return seconds


def now(device: str = "cpu") -> float:
    """Return the time when everything asked of the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
