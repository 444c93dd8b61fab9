"""How many images fit in memory at once, found from public quantities only.

The number of objects in the images must not decide it: it would show in the run time. What is measured is one random
image with as many boxes as an image may have.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..gradients import clipped_gradient_sum
from ..gradients.autotune import by_rule
from .loss import PerImageLoss

MOST_ON_CPU, MOST_ON_GPU = 32, 256  # beyond these a larger batch gains no speed
_BOXES = 300
_SHARE = 0.5  # of the memory there is: the rest is for the model, its optimizer, evaluation and other programs
# A pass takes as long as (this / side of an image) ** 2 images more than it has: 40 of 64 px, 1.6 of 320 on a CPU.
_FIXED_ON_CPU, _FIXED_ON_GPU = 400, 3000  # the second is an estimate
_MOST_BLANK = 0.05  # of the examples of a step, where a draw is large enough
_OVERHEAD = 2.0  # what a pass needs at its peak over what it saves for its backward pass


def physical_batch_size(
    model: nn.Module,
    imgsz: int,
    expected_batch_size: int,
    device: torch.device,
    *,
    sample_rate: float = 0.0,
    most_of_a_unit: int = 1,
    memory: int | None = None,
) -> int:
    """Return how many images of ``imgsz`` pixels to hold at once: the number that makes a step of a draw shortest.

    Every pass is filled up with blank images to this number. It depends on the model, the image size, the declared size
    of a draw, its spread and the memory of the device, on nothing else.

    Args:
        sample_rate: The plan's, from which the spread of a draw follows.
        most_of_a_unit: Most examples that one unit can be in a step.
        memory: Bytes that there are; None: all that ``device`` has.
    """
    memory = memory_of(device) if memory is None else memory
    fits = int(_SHARE * memory / (_OVERHEAD * bytes_of_one(model, imgsz, device)))
    most = max(1, min(fits, MOST_ON_GPU if device.type == "cuda" else MOST_ON_CPU))
    fixed = ((_FIXED_ON_GPU if device.type == "cuda" else _FIXED_ON_CPU) / imgsz) ** 2
    spread = most_of_a_unit * math.sqrt(expected_batch_size * (1.0 - sample_rate))
    expected = most_of_a_unit * expected_batch_size
    sizes = [size for size in (1, 2, *range(4, most + 1, 4)) if size <= most]
    if device.type == "cpu":  # where a pass of 16 already is about as fast an image as a larger one
        few_blank = [n for n in sizes if n >= 16 and _passes(expected, spread, n) * n <= (1 + _MOST_BLANK) * expected]
        sizes = few_blank or sizes
    return min(sizes, key=lambda n: _passes(expected, spread, n) * (n + fixed))


def _passes(expected: float, spread: float, size: int) -> float:
    """Return the mean number of passes of ``size`` images that a draw takes, of a size that is about normal."""
    if spread == 0.0:
        return math.ceil(expected / size)
    reach = range(max(0, int(expected - 5 * spread)), int(expected + 5 * spread) + 2, max(1, int(spread / 20)))
    weights = [math.exp(-(((n - expected) / spread) ** 2) / 2) for n in reach]
    return sum(w * math.ceil(n / size) for w, n in zip(weights, reach, strict=True)) / sum(weights)


def bytes_of_one(model: nn.Module, imgsz: int, device: torch.device) -> int:
    """Return the bytes that one random image of ``imgsz`` pixels saves for the backward pass."""
    generator = torch.Generator().manual_seed(0)  # of its own: the run's random numbers stay as they are
    image = torch.rand((1, 3, imgsz, imgsz), generator=generator)
    batch = {
        "img": image,
        "batch_idx": torch.zeros(_BOXES),
        "cls": torch.zeros(_BOXES, 1),
        "bboxes": torch.rand((_BOXES, 4), generator=generator) * 0.5 + 0.25,
    }
    batch = {name: value.to(device) for name, value in batch.items()}
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with by_rule(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        clipped_gradient_sum(model, PerImageLoss(), batch, clip_norm=1.0)
    return sum(sizes.values())


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory that this process may use on ``device``: the machine's, or its container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)
