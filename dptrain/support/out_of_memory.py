"""Running out of memory: how it shows, and what is said of it.

Nothing goes on in smaller batches by itself. What does not fit depends on the images, and the size of a batch shows in
the last digits of all that is computed from it: the image that did not fit would change the gradients of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import DptrainError, ModelError

# What torch, CUDA's libraries and oneDNN say where they raise nothing more telling than RuntimeError.
_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed", "bad_alloc", "could not create a ")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a computation says that there was no memory for it, on the CPU or a GPU."""
    if isinstance(error, DptrainError):
        return False
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@contextmanager
def in_memory(device: torch.device, count: int) -> Iterator[None]:
    """Turn an error of the block that says that ``count`` examples do not fit into one that says what to do.

    Raises:
        ModelError: There was no memory for them.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what, fix = f"{count} examples at a time", f"take physical_batch_size={max(1, count // 2)}"
        if count == 1:
            what, fix = "a single example", "free memory, or use a device that has more"
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"out of memory on {device} with {what} ({reason}): {fix}") from error
