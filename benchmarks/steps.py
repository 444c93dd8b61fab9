"""One gradient step by every method, in a process of its own: seconds, interleaved, and peak memory.

Run by ``python -m benchmarks``; by hand ``python -m benchmarks.steps yolo26n.yaml 320 8 time`` prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

METHODS = ("plain", "fused", "microbatch", "opacus", "ultralytics")
BOXES = 6  # an image


def random_batch(images: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """Random images with random boxes of two classes."""
    random = torch.Generator().manual_seed(0)
    count = images * BOXES
    batch = {
        "img": torch.rand((images, 3, size, size), generator=random),
        "batch_idx": torch.arange(images).repeat_interleave(BOXES).float(),
        "cls": torch.randint(0, 2, (count, 1), generator=random).float(),
        "bboxes": torch.cat(
            (
                torch.rand((count, 2), generator=random) * 0.6 + 0.2,
                torch.rand((count, 2), generator=random) * 0.3 + 0.05,
            ),
            1,
        ),
    }
    return {name: value.to(device) for name, value in batch.items()}


def steps(name: str, images: int, size: int, device: str) -> dict[str, Callable[[], object]]:
    """Return what each method does in one step; all on the same batch.

    ``plain`` is forward and backward of the same model and per-image loss, without per-image gradients; ``ultralytics``
    its own training step: batch norm in train mode and the loss over the batch.
    """
    import dptrain
    from dptrain.detection import load_model, per_image_losses

    batch = random_batch(images, size, device)
    model = load_model(name, num_classes=2, norm="group").to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def plain() -> object:
        return torch.autograd.grad(per_image_losses(model, batch).sum(), parameters)

    def private(method: str) -> Callable[[], object]:
        return lambda: dptrain.clipped_gradient_sum(model, per_image_losses, batch, clip_norm=1.0, method=method)

    return {
        "plain": plain,
        **{method: private(method) for method in ("fused", "microbatch", "opacus")},
        "ultralytics": _ultralytics(name, batch, device),
    }


def _ultralytics(name: str, batch: dict[str, torch.Tensor], device: str) -> Callable[[], object]:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import LOGGER

    LOGGER.setLevel("ERROR")
    model = DetectionModel(name, nc=2, verbose=False).to(device).train()
    model.args = get_cfg()
    parameters = [p for n, p in model.named_parameters() if ".dfl." not in n]

    def step() -> object:
        return torch.autograd.grad(model.loss(batch)[0].sum(), parameters)

    return step


def measure_time(
    name: str, images: int, size: int, device: str, methods: list[str], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every repeat, the methods taking turns, so that a slow spell of the machine meets all of them."""
    todo = {method: step for method, step in steps(name, images, size, device).items() if method in methods}
    seconds: dict[str, list[float]] = {method: [] for method in todo}
    for repeat in range(repeats + 1):  # the first one warms up
        for method, step in todo.items():
            began = _now(device)
            step()
            if repeat:
                seconds[method].append(_now(device) - began)
    return seconds


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_memory(name: str, images: int, size: int, device: str, method: str) -> float:
    """Peak MiB that two steps need on top of model and batch."""
    step = steps(name, images, size, device)[method]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(), step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with _PeakMemory() as peak:
        step(), step()
    return peak.mebibytes


class _PeakMemory:
    """Samples the resident memory of this process every few milliseconds."""

    def __enter__(self) -> _PeakMemory:
        self._done = threading.Event()
        self._before = self._highest = _resident()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.004):
            self._highest = max(self._highest, _resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.mebibytes = (self._highest - self._before) / 2**20


def _resident() -> int:
    with Path("/proc/self/statm").open() as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """``python -m benchmarks.steps MODEL PIXELS IMAGES time|METHOD [DEVICE]``: one line of JSON."""
    name, size, images, what = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    device = sys.argv[5] if len(sys.argv) > 5 else "cpu"
    if what == "time":
        methods = sys.argv[6].split(",")
        print(json.dumps(measure_time(name, images, size, device, methods, int(sys.argv[7]))))
    else:
        print(json.dumps(measure_memory(name, images, size, device, what)))


if __name__ == "__main__":
    main()
