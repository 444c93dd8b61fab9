"""The process that measures one case: ``python -m benchmarks.worker '<case as JSON>'`` prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cases import Case
from .machine import processor

_ROLE = ("time", "memory", "modules time", "modules memory")  # kinds whose methods are those of benchmarks.steps


def _kinds() -> dict[str, Callable[[Case], dict[str, Any]]]:
    from . import memory, steps, training

    return {
        "time": steps.measure_time,
        "memory": memory.measure_memory,
        "modules time": steps.measure_time,
        "modules memory": memory.measure_memory,
        "whole": training.measure_whole,
        "loader": training.measure_loader,
        "logical": training.measure_logical,
        "logical memory": training.measure_logical_memory,
        "noise": training.measure_noise,
    }


def measure(case: Case) -> dict[str, Any]:
    """Measure a case; what would not fit in the memory that is free is left out, and says so."""
    from .memory import too_large

    left_out = too_large(case) if case.kind in _ROLE else {}
    methods = tuple(method for method in case.methods if method not in left_out)
    if not methods or ("plain" in case.methods and "plain" not in methods):
        return {"left_out": left_out}
    return {**_kinds()[case.kind](replace(case, methods=methods)), "left_out": left_out}


def machine(device: str) -> dict[str, Any]:
    """Say what is measured on."""
    import platform

    import torch

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() and device.startswith("cuda") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.cuda.is_available(),
    }


def _die_first() -> None:
    """If memory does run out, let it be this process that the kernel ends."""
    file = Path("/proc/self/oom_score_adj")
    if file.exists():
        file.write_text("1000")


def main() -> None:
    """Measure the case of the first argument; ``machine DEVICE`` describes the machine instead."""
    if sys.argv[1] == "machine":
        print(json.dumps(machine(sys.argv[2])))
        return
    _die_first()
    print(json.dumps(measure(Case.of(json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
