"""How long an image takes on this machine, measured on made-up images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from ultralytics.nn.tasks import DetectionModel

_BOXES = 5  # an image, of the random ones that are timed
_REPEATS = 3


def measure_seconds_per_image(
    model: str | Path, imgsz: int = 640, *, physical_batch_size: int = 8, trainable: str = "all", device: str = "cpu"
) -> float:
    """Return what :func:`seconds_per_image` measures of a detector that is loaded for it.

    Raises:
        DptrainError: The model cannot be trained.
    """
    from . import load_model

    return seconds_per_image(load_model(model, trainable=trainable).to(device), imgsz, physical_batch_size)


def seconds_per_image(detector: DetectionModel, imgsz: int, at_once: int = 8, engine: str = "fused") -> float:
    """Return the time of one image in a private step on this machine, with random images and boxes.

    It is the median of three of forward, backward, clip and sum; loading images, the noise and the optimizer's step
    come on top.
    """
    from ..gradients import clipped_gradient_sum
    from .loss import PerImageLoss

    batch, loss = _made_up(detector, imgsz, at_once), PerImageLoss()
    return _seconds(lambda: clipped_gradient_sum(detector, loss, batch, 1.0, engine), detector) / at_once


def seconds_per_prediction(detector: DetectionModel, imgsz: int, at_once: int = 8) -> float:
    """Return the time that one random image takes through the detector, as in :func:`seconds_per_image`."""
    import torch

    batch = _made_up(detector, imgsz, at_once)["img"]
    with torch.inference_mode():
        return _seconds(lambda: detector(batch), detector) / at_once


def _seconds(call: Callable[[], object], detector: DetectionModel) -> float:
    import torch

    cuda = next(detector.parameters()).device.type == "cuda"
    times = []
    for _ in range(1 + _REPEATS):  # the first warms up
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _made_up(detector: DetectionModel, imgsz: int, n: int) -> Mapping[str, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(0)  # of its own: the run's random numbers stay as they are
    device, count = next(detector.parameters()).device, n * _BOXES

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    return {
        "img": random(n, 3, imgsz, imgsz),
        "batch_idx": torch.arange(n, device=device).repeat_interleave(_BOXES).float(),
        "cls": torch.zeros(count, 1, device=device),
        "bboxes": torch.cat([0.3 + 0.4 * random(count, 2), 0.1 + 0.3 * random(count, 2)], 1),
    }
