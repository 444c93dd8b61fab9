"""How many images fit in memory at once, found from public quantities only.

The number of objects in the images must not decide it: it would show in the run time. What is measured is one random
image with as many boxes as an image may have.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..gradients import clipped_gradient_sum
from ..gradients.tuning import by_rule
from .loss import PerImageLoss

MOST_ON_CPU, MOST_ON_GPU = 32, 256  # beyond these a larger batch gains no speed
_BOXES = 300
_SHARE = 0.5  # of the memory there is: the rest is for the model, its optimizer, evaluation and other programs
_OVERHEAD = 2.0  # what a pass needs at its peak over what it saves for its backward pass


def physical_batch_size(model: nn.Module, imgsz: int, expected_batch_size: int, device: torch.device) -> int:
    """Return how many images of ``imgsz`` pixels to hold at once, a power of two or ``expected_batch_size``.

    It depends on the model, the image size, the expected batch size and the memory of the device, on nothing else.
    """
    most = min(expected_batch_size, MOST_ON_GPU if device.type == "cuda" else MOST_ON_CPU)
    fits = int(_SHARE * memory_of(device) / (_OVERHEAD * bytes_of_one(model, imgsz, device)))
    size = 1
    while 2 * size <= min(most, fits):
        size *= 2
    return most if size * 2 > most and most <= fits else size


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
