"""The processes of one run: dptrain starts one for each of several devices, or torchrun has started them all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from ..datasets.contents import files_held
from ..datasets.identity import picture_in
from ..datasets.own import is_own
from ..datasets.silence import silence_process
from ..detection.memory import memory_of
from ..errors import ConfigError, DataError, DptrainError, ProcessError
from ..sealing.archive import is_sealed_dataset
from ..settings.left_open import steps_are_open
from ..settings.schema import TrainConfig
from ..support.devices import usable_device
from ..support.launched import NAMES, Launch, launched
from ..support.threads import in_threads
from ..training.processes import LONGEST_WAIT, Group, joined, shares_of
from .task import Task

_GRACE = 10.0  # seconds in which a process that dptrain started may end by itself
_DEVICES = "devices"

_used = False  # whether a run has used the processes that torchrun started


def refuse_unshared(config: TrainConfig) -> None:
    """Refuse what only one process does, where there are several.

    Raises:
        ConfigError: It names the key, its value and the fix.
    """
    several = launched() is not None
    if several and "," in config.device:
        raise ConfigError(f"device={config.device} under torchrun: it has started the processes, so leave device out")
    if not several and "," not in config.device:
        return
    alone = {
        f"tuning.method={config.tuning.method}": config.tuning.method != "none",
        f"engine={config.engine}": config.engine == "opacus",
        f"privacy.noise={config.privacy.noise}": config.privacy.noise == "banded",
        f"data={config.data}, which is sealed,": is_sealed_dataset(config.data),
        f"data={config.data}, which is in the memory of one,": is_own(config.data),
    }
    for name, given in alone.items():
        if given:
            raise ConfigError(f"{name} and several processes are not worked out: give one device, without torchrun")
    if steps_are_open(config) and config.epochs is None and not config.resume:
        raise ConfigError(
            "steps is not set, and several processes are not timed: give steps (and privacy.expected_batch_size) or "
            "epochs, or let one process choose them"
        )


@contextmanager
def gathered(config: TrainConfig) -> Iterator[Group | None]:
    """Be the first of the run's processes inside the block; None where it is the only one.

    Raises:
        ConfigError: A device cannot be used, or torchrun's processes have served a run already.
        ProcessError: Another process does not start, or is gone.
    """
    global _used
    launch, devices = launched(), config.device.split(",")
    with ExitStack() as stack:
        if launch is not None:
            if _used:
                raise ConfigError("the processes of torchrun serve one run, and have: start torchrun again")
            _used = True
            found = [_meeting_place(launch)]
            found[0].set(_DEVICES, config.device)
            device = _device_of(config.device, launch)
        elif len(devices) > 1:
            for name in devices:
                usable_device(name)
            children = stack.enter_context(_started(devices))
            launch, found, device = children.launch, children.stores, torch.device(devices[0])
        else:
            yield None
            return
        yield stack.enter_context(joined(0, launch.count, found.pop(), device, _memory(device, launch)))


def follow(launch: Launch) -> NoReturn:
    """Take part in the run of process 0, as another one, in silence; the end of the run ends this process.

    Raises:
        SystemExit: Always.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process finishes its step, and needs this one for it
        signal.signal(number, signal.SIG_IGN)
    store = _meeting_place(launch)
    store.set(f"here {launch.rank}", "")
    device = _device_of(store.get(_DEVICES).decode(), launch)
    try:
        with files_held(), joined(launch.rank, launch.count, store, device, _memory(device, launch)) as group:
            silence_process()
            try:
                _take_part(group)
            except ProcessError:
                raise
            except Exception as error:
                kind = "" if isinstance(error, DptrainError) else f"{type(error).__name__}: "
                group.fail(kind + " ".join(str(error).split()))
                raise SystemExit(1) from error
    except ProcessError:  # the first process says so, also by its exit status
        raise SystemExit(0) from None
    raise SystemExit(0)


def _take_part(group: Group) -> None:
    task: Task = group.hand_out()
    _refuse_other_pictures(task, group)
    trainer = task.trainer(group.device, group)
    state, step = group.hand_out()
    trainer.restore(state, step)
    for _ in trainer.run():
        pass


def _refuse_other_pictures(task: Task, group: Group) -> None:
    """What this process reads must be what the first one has checked and charged; each looks at its own images."""
    assert task.identities is not None
    own = np.flatnonzero(shares_of(task.identities, group.count) == group.rank)
    images = (
        own if task.units is None else np.concatenate([own[:0], *(task.units.examples(unit) for unit in own.tolist())])
    )
    files = [task.dataset.image_files[image] for image in images]
    for image, file, picture in zip(images, files, in_threads(picture_in, files), strict=True):
        if picture != task.pictures[image]:
            raise DataError(f"{file}: is another picture there than where the run was started; give all the same files")


def _memory(device: torch.device, launch: Launch) -> int:
    """Bytes for this process; those of one machine share its memory, and have a GPU each."""
    return memory_of(device) // (launch.local_count if device.type == "cpu" else 1)


def _device_of(names: str, launch: Launch) -> torch.device:
    """Where this process computes, by the device or devices of the run."""
    devices = names.split(",")
    if len(devices) > 1:
        return torch.device(usable_device(devices[launch.rank]))
    name = usable_device(names)
    if ":" in name:
        raise ConfigError(f"device={names} under torchrun is one GPU for all: give device=cuda, and each has its own")
    return torch.device(f"cuda:{launch.local_rank}" if name == "cuda" else name)


def _meeting_place(launch: Launch) -> Store:
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun, or dptrain, keeps it
    host, port = launch.address
    try:
        store = _store(host, port, launch.rank == 0 and not agent)
    except RuntimeError as error:
        raise ProcessError(f"the run's meeting place {host}:{port} cannot be reached: start all of it anew") from error
    return PrefixStore(f"dptrain {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _store(host: str, port: int, keeps: bool) -> Any:
    return dist.TCPStore(host, port, is_master=keeps, timeout=LONGEST_WAIT, wait_for_workers=False)  # type: ignore[attr-defined]


class _Children:
    """The other processes of a run, on this machine."""

    def __init__(self, devices: list[str]) -> None:
        server = _store("127.0.0.1", 0, keeps=True)
        self.launch = Launch(0, len(devices), 0, len(devices), ("127.0.0.1", server.port))
        self.stores: list[Store] = [PrefixStore("dptrain 0", server)]  # one, until the group has it
        self.stores[0].set(_DEVICES, ",".join(devices))
        self._started: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []

    def start(self, threads: int) -> None:
        """Start them, and wait until each is there.

        Raises:
            ProcessError: One of them ended; with the last line that it said.
        """
        host, port = self.launch.address
        for rank in range(1, self.launch.count):
            count = str(self.launch.count)
            places = dict(zip(NAMES, (str(rank), count, str(rank), count, host, str(port)), strict=True))
            path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
            said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
            process = subprocess.Popen(
                [sys.executable, "-m", "dptrain", "train"],
                env={
                    **os.environ, **places, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads),
                    "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
                },
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
            )  # fmt: skip
            self._started.append((process, said))
        here = [f"here {rank}" for rank in range(1, self.launch.count)]
        while not self.stores[0].check(here):
            if (ended := self.ended()) is not None:
                rank, words = ended
                self._started[rank - 1][1].seek(0)
                lines = self._started[rank - 1][1].read().decode(errors="replace").strip().splitlines()
                raise ProcessError(
                    f"process {rank} of {self.launch.count} {words}: {(lines or ['it said nothing'])[-1]}"
                )
            time.sleep(0.05)

    def ended(self, wait: float = 0.0) -> tuple[int, str] | None:
        """Return the first of them that has ended in failure, and how; wait so many seconds for one."""
        until = time.monotonic() + wait
        while True:
            for rank, (process, _) in enumerate(self._started, 1):
                status = process.poll()
                if status:
                    return rank, f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            if time.monotonic() >= until:
                return None
            time.sleep(0.02)

    def end(self, grace: float) -> None:
        """Wait so many seconds for each to end, then kill it."""
        until = time.monotonic() + grace
        for process, said in self._started:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            said.close()
        self.stores.clear()


@contextmanager
def _started(devices: list[str]) -> Iterator[_Children]:
    """Start a process for every device but the first; those on CPUs share the threads of this one."""
    before = torch.get_num_threads()
    threads = max(1, before // len(devices)) if devices[0] == "cpu" else before
    # Processes of one machine talk inside it.
    inside = "GLOO_SOCKET_IFNAME" if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ else None
    children, grace = _Children(devices), 0.0  # one that waits for a step that is not taken has nothing to lose
    try:
        if inside is not None:
            os.environ[inside] = "lo"
        torch.set_num_threads(threads)
        children.start(threads)
        yield children
        grace = _GRACE
    except ProcessError as error:
        if (ended := children.ended(wait=2.0)) is not None and "signal" in ended[1]:
            error.add_note(f"process {ended[0]} {ended[1]}")
        raise
    finally:
        torch.set_num_threads(before)
        if inside is not None:
            del os.environ[inside]
        children.end(grace)
