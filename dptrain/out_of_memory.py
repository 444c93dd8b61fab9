"""Running out of memory: how it shows, and what gives it back."""

from __future__ import annotations

import gc

import torch

from .errors import DptrainError

# What torch, CUDA's libraries and oneDNN say where they raise nothing more telling than RuntimeError.
_SIGNS = ("out of memory", "can't allocate memory", "alloc_failed", "bad_alloc", "could not create a ")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a computation says that there was no memory for it, on the CPU or a GPU."""
    if isinstance(error, DptrainError):
        return False
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def give_back() -> None:
    """Return what nobody holds any more to the device. Call it when the error is gone: its traceback holds tensors."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
