"""Several processes that take the steps of one run together, by torch.distributed.

Per step: every process makes the same draw -> each sums the clipped gradients of its own units -> the sums are added
up in the first process, which noises the total, once -> all get the noised gradient, and take the same optimizer step.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported inside a group, its default arguments would keep that group for ever
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from ..errors import ConfigError, PrivacyError, ProcessError
from ..gradients.batches import batch_size
from ..privacy.sampling import Draw
from ..privacy.streams import NoiseStream

LONGEST_WAIT = timedelta(days=7)  # that the others wait for the first; a process that ends is noticed at once
_FINE, _FAILED = 0, 1
_READY, _STEP, _WEIGHTS, _START = range(4)  # what a row of numbers is about
_WIDTH = 6  # numbers in a row


def shares_of(identities: Sequence[bytes], count: int) -> np.ndarray:
    """Return which of ``count`` processes computes the gradient of every unit, shape (k,).

    It follows from a unit's identity alone: one unit more or less moves no other to another process, whose arithmetic
    may differ. All processes have as large a share, but for chance.
    """
    digests = (hashlib.sha256(b"dptrain share of a unit:" + identity).digest() for identity in identities)
    return np.array([int.from_bytes(digest[:16]) % count for digest in digests], dtype=np.int64)


class Group:
    """The processes that train one module together, as one of them sees it. Made by :func:`joined`.

    Formal guarantee: with the same plan, module, units and state in all processes, every unit of a draw enters the sum
    of one process, and their sums are noised once, in the first, as one process would noise the sum of all. A step
    whose units are not shared out so is refused before it is noised. What a process gets from the others is then the
    noised gradient, the same bits for all; after every step all weights are compared.

    The network between the processes carries the sampling key and sums without noise: it must be trusted as the
    machine is.

    Attributes:
        rank: Of this process; 0 is the first, which alone draws noise, and writes.
        count: Number of processes.
        device: Where this one computes.
        memory: The least that a process said that it has, in bytes.
    """

    def __init__(self, rank: int, count: int, device: torch.device, memory: int = 0) -> None:
        self.rank, self.count, self.device = rank, count, device
        self._drawn: deque[tuple[int, int]] = deque()  # of each draw to come, its size and a digest
        self._served = 0  # units of this step that this process has summed
        version = f"{import_module('dptrain').__version__} {torch.__version__}"
        rows = self._rows(_START, memory, _number(version.encode()))
        if (rows[:, 3] != rows[0, 3]).any():
            raise ProcessError("the processes have different versions of dptrain or torch: install the same everywhere")
        self.memory = int(rows[:, 2].min())
        key = bytearray(os.urandom(32) if rank == 0 else bytes(32))
        shared = torch.frombuffer(key, dtype=torch.uint8)
        self._together(dist.broadcast, shared, src=0)
        self._key = bytes(key)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that noises, writes and speaks."""
        return self.rank == 0

    def coins(self, seed: int | None = None) -> NoiseStream:
        """Return the stream of the draws, the same in every process: keyed by what the first one's system gave."""
        return NoiseStream(seed, "sampling", self._key)

    def own(self, draws: Iterator[Draw], shares: np.ndarray) -> Iterator[Draw]:
        """Yield of every draw the units that are this process's, by :func:`shares_of`."""
        self._drawn.clear()
        for draw in draws:
            self._drawn.append((len(draw.indices), _number(draw.indices.tobytes() + draw.seed.to_bytes(8))))
            yield Draw(draw.indices[shares[draw.indices] == self.rank], draw.seed)

    def counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches of a step, and count their units."""
        self._served = 0
        for batch in batches:
            self._served += batch_size(batch)
            yield batch

    def noised(
        self,
        step: int,
        total: dict[str, Tensor],
        release: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        dtype: torch.dtype,
    ) -> dict[str, Tensor]:
        """Return the noised gradient of a step, the same in every process.

        Args:
            step: Its number.
            total: The clipped sum over this process's units.
            release: Counts the step and noises the sum over all units; called in the first process only.
            dtype: In which the noised gradient is handed out.

        Raises:
            PrivacyError: The units of the draw are not shared out, each to one process.
            ProcessError: Another process failed, or is gone.
        """
        whole, digest = self._drawn.popleft()
        rows = self._rows(_STEP, step, whole, digest, self._served)
        if (rows[:, 1:5] != rows[0, 1:5]).any() or int(rows[:, 5].sum()) != whole:
            raise PrivacyError(
                f"step {step + 1} is not taken: the processes do not share its draw out, each unit to one of them"
            )
        flat = torch.cat([tensor.reshape(-1) for tensor in total.values()])
        self._together(dist.reduce, flat, dst=0)
        if self.rank == 0:
            noised = release(_like(total, flat))
            gradient = torch.cat([noised[name].to(dtype).reshape(-1) for name in total])
        else:
            gradient = torch.empty(len(flat), dtype=dtype, device=flat.device)
        self._together(dist.broadcast, gradient, src=0)
        return _like(total, gradient)

    def compare(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Refuse weights that are not the same bits in every process.

        Raises:
            ProcessError: They differ.
        """
        rows = self._rows(_WEIGHTS, step, _digest(parameters))
        for other in range(1, self.count):
            if (rows[other] != rows[0]).any():
                raise ProcessError(
                    f"the weights of process {other} are not those of process 0 after step {step}: processes of one "
                    "run need the same kind of machine and the same libraries"
                )

    def hand_out(self, value: Any = None) -> Any:
        """Return what the first process gave, on this process's device; the others give nothing."""
        self._rows(_READY)
        content = BytesIO()
        if self.rank == 0:
            torch.save(value, content)
        size = torch.tensor([content.tell()])
        self._together(dist.broadcast, size, src=0)
        data = np.frombuffer(content.getvalue(), np.uint8).copy() if self.rank == 0 else np.empty(int(size), np.uint8)
        self._together(dist.broadcast, torch.from_numpy(data), src=0)
        if self.rank == 0:
            return value
        return torch.load(BytesIO(data.tobytes()), map_location=self.device, weights_only=False)

    def fail(self, reason: str) -> None:
        """Tell the others why this process ends, when they next meet."""
        with suppress(ProcessError):
            self._rows(_READY, reason=reason or "no reason given")

    def _rows(self, *numbers: int, reason: str = "") -> np.ndarray:
        """Exchange a row of numbers, the kind first; return those of all processes, which begin at column 1."""
        mine = torch.zeros(_WIDTH, dtype=torch.int64)
        mine[0] = _FAILED if reason else _FINE
        mine[1 : 1 + len(numbers)] = torch.tensor(numbers)
        rows = [torch.empty_like(mine) for _ in range(self.count)]
        self._together(dist.all_gather, rows, mine)
        found = torch.stack(rows).numpy()
        failed = np.flatnonzero(found[:, 0] == _FAILED)
        if len(failed):
            first = int(failed[0])
            told = [reason]
            self._together(dist.broadcast_object_list, told, src=first)
            raise ProcessError(f"process {first} of {self.count} failed: {told[0]}")
        if (found[:, 1] != numbers[0]).any():
            raise ProcessError(f"the {self.count} processes of the run are not at the same place: start it again")
        return found

    def _together(self, operation: Callable[..., Any], *values: Any, **how: Any) -> None:
        try:
            operation(*values, **how)
        except RuntimeError as error:
            error.__traceback__ = None  # its frames would keep the group, and whoever forks then inherits its threads
            raise ProcessError(
                f"another of the run's {self.count} processes is gone: it was killed, or its machine was"
            ) from error


@contextmanager
def joined(rank: int, count: int, store: Store, device: torch.device, memory: int = 0) -> Iterator[Group]:
    """Join the group of ``count`` processes that meet at ``store``, and leave it at the end of the block.

    Args:
        rank: Of this process, from 0; the group goes on for as long as all of them stay.
        count: Number of processes.
        store: Where they tell each other their addresses.
        device: Where this process computes; of one kind in all of them.
        memory: Bytes that this process may use.

    Raises:
        ConfigError: This process is in a group already.
        ProcessError: Another process is gone, or has other versions.
    """
    if dist.is_initialized():
        raise ConfigError("this process is in a torch.distributed group already: leave it before dptrain.train")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST_WAIT)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ProcessError(f"the {count} processes do not find each other ({reason})") from error
    del store  # an error on its way would keep it
    try:
        yield Group(rank, count, device, memory)
    finally:
        dist.destroy_process_group()


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], signed=True)


def _digest(parameters: Mapping[str, Tensor]) -> int:
    """A number of 64 bits that another bit anywhere makes another."""
    found = hashlib.sha256()
    for tensor in parameters.values():
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(found.digest()[:8], signed=True)


def _like(total: dict[str, Tensor], flat: Tensor) -> dict[str, Tensor]:
    """The flat tensor in the shapes of ``total``."""
    parts = flat.split([tensor.numel() for tensor in total.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(total.items(), parts, strict=True)}
