"""How long an image takes in a private step on this machine."""

from __future__ import annotations

from pathlib import Path
from statistics import median

_BOXES = 5  # an image, of the random ones that are timed
_REPEATS = 3


def measure_seconds_per_image(
    model: str | Path, imgsz: int = 640, *, physical_batch_size: int = 8, trainable: str = "all", device: str = "cpu"
) -> float:
    """Return the time of one image in a private step on this machine, with random images and boxes.

    It is the median of three of forward, backward, clip and sum; loading images, the noise and the optimizer's step
    come on top.

    Raises:
        DptrainError: The model cannot be trained.
    """
    import time

    import torch

    from ..gradients import clipped_gradient_sum
    from . import load_model
    from .loss import PerImageLoss

    detector = load_model(model, trainable=trainable).to(device)
    generator = torch.Generator().manual_seed(0)
    count, n = physical_batch_size * _BOXES, physical_batch_size

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    batch = {
        "img": random(n, 3, imgsz, imgsz),
        "batch_idx": torch.arange(n, device=device).repeat_interleave(_BOXES).float(),
        "cls": torch.zeros(count, 1, device=device),
        "bboxes": torch.cat([0.3 + 0.4 * random(count, 2), 0.1 + 0.3 * random(count, 2)], 1),
    }
    loss = PerImageLoss()
    times = []
    for _ in range(1 + _REPEATS):  # the first warms up
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        clipped_gradient_sum(detector, loss, batch, clip_norm=1.0)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:]) / n
