"""The device of a run or a command: how it is written, and whether torch can use it."""

from __future__ import annotations

import re

from ..errors import ConfigError


def parse_device(value: str, key: str = "device") -> str:
    """Return ``value`` as torch spells it (Ultralytics' ``0`` is ``cuda:0``).

    Raises:
        ConfigError: It is no device, or several; :func:`devices_of` takes those.
    """
    device = f"cuda:{value}" if value.isdecimal() else value.lower()
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(f"{key}={value} is not one of auto, cpu, mps, cuda, cuda:0 (or, to train, several: 0,1)")
    return device


def devices_of(value: str, key: str = "device") -> tuple[str, ...]:
    """Return the devices of a training run, one for each of its processes, as torch spells them; mostly it is one.

    Raises:
        ConfigError: One of them is no device; or several are not all ``cpu``, or GPUs by their numbers, each once.
    """
    if "," not in value:
        return (parse_device(value, key),)
    parts = [part.strip() for part in value.lower().split(",")]
    devices = tuple(f"cuda:{part}" if part.isdecimal() else part for part in parts)
    gpus = all(re.fullmatch(r"cuda:\d+", device) for device in devices) and len(set(devices)) == len(devices)
    if set(devices) != {"cpu"} and not gpus:
        raise ConfigError(
            f"{key}={value} must be cpu for each process, or the numbers of different GPUs: cpu,cpu or 0,1"
        )
    return devices


def usable_device(name: str, key: str = "device") -> str:
    """Turn ``auto`` into the accelerator that is there, and refuse one that is not.

    Raises:
        ConfigError: Torch cannot use it.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fix = f"{key} cpu" if key.startswith("--") else f"{key}=cpu"
        raise ConfigError(f"{key}={name} cannot be used ({reason[:120]}): try {fix}") from error
    return name


def refuse_single_precision(device: str) -> None:
    """Refuse a kind of device to train on that has no double precision.

    Raises:
        ConfigError: It is ``mps``.
    """
    if device == "mps":
        raise ConfigError(
            "device=mps: norms, sums and noise are made in double precision, which Apple's GPUs lack; use device=cpu"
        )
