"""Processes for tests, forked from the test: at once there, and with every patch and planted bug that it has."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dptrain.errors import DptrainError
from dptrain.training.processes import Group, joined

_FORK = multiprocessing.get_context("fork")
_LONGEST = 240  # seconds; only a test that hangs waits so long


class Failed(Exception):
    """What a process raised, as its class and its words."""


def together(count: int, work: Callable[[Group], Any]) -> list[Any]:
    """Call ``work`` in each of ``count`` forked processes that are one group; return what each gave.

    What is given is pickled. In the place of an exception it is a :class:`Failed`, and None of a process that died.
    """
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        ends = []
        for rank in range(count):
            here, there = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_work, args=(rank, count, Path(folder) / "store", work, there))
            process.start()
            there.close()
            ends.append((process, here))
        found = []
        for process, here in ends:
            try:
                found.append(pickle.loads(here.recv_bytes()) if here.poll(_LONGEST) else Failed("it hangs"))
            except EOFError:
                found.append(None)
            process.kill()
            process.join()
    return found


def given(found: list[Any]) -> list[Any]:
    """Return what :func:`together` returned, if no process failed."""
    for value in found:
        if isinstance(value, Failed) or value is None:
            raise AssertionError(f"a process failed: {value}")
    return found


def _tell(told: Connection, value: Any) -> None:
    told.send_bytes(pickle.dumps(value))  # tensors by value: shared memory would end with the process


def _work(rank: int, count: int, file: Path, work: Callable[[Group], Any], told: Connection) -> None:
    gc.disable()  # what the test's process has left to collect may wait for threads that a fork does not have
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    try:
        store = dist.FileStore(str(file), count)
        with joined(rank, count, store, torch.device("cpu"), memory=100 + rank) as group:
            _tell(told, work(group))
    except DptrainError as error:
        _tell(told, Failed(f"{type(error).__name__}: {error}"))
    except BaseException:
        _tell(told, Failed(traceback.format_exc()))
    finally:
        told.close()
        os._exit(0)
