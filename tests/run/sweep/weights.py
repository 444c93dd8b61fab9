"""The weights of a run, to be compared with those of another one."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weights_hash(folder: Path) -> str:
    import torch

    state = torch.load(folder / "checkpoint.pt", weights_only=True)["parameters"]
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
