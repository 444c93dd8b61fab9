"""Whole runs in several processes: the files of one, one charge, and a line that says how to resume if one dies.

Starting a process takes seconds, so that there are few of these runs.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dptrain
from dptrain import BudgetLedger, ConfigError
from dptrain.commands.console import described
from dptrain.errors import ProcessError
from dptrain.run import processes
from dptrain.run.job import Run
from dptrain.settings.resolve import from_kwargs, resolve
from dptrain.support.files import flatten
from dptrain.support.launched import NAMES, Launch, launched
from dptrain.training.journal import steps_started
from dptrain.training.processes import Group, shares_of

from ..conftest import SMALL, dataset_maker

STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    dataset_maker(folder)(train=16, val=2)
    return folder


def options(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A run of few steps whose weights repeat to the last bit, whatever sums them."""
    return {
        "model": SMALL,
        "data": str(folder / "data.yaml"),
        "imgsz": 64,
        "trainable": "head",
        "workers": 0,
        "steps": STEPS,
        "privacy": {
            "sample_rate": 0.5, "noise_multiplier": 1.0, "delta": 1e-3, "expected_batch_size": 8, "dataset_size": 16,
        },
        "optimizer": {"lr": 0.01},
        "noise": {"exact": True},
        "seed": 3,
        "evaluate_every": 3,
        "checkpoint_every": 1,
        "tracking": {"enabled": False},
        "budget": {"url": f"sqlite:///{folder / 'budget.db'}"},
        "output_dir": str(folder / name),
        **changes,
    }  # fmt: skip


def weights(file: Path) -> list[torch.Tensor]:
    model = torch.load(file, map_location="cpu", weights_only=False)
    return list((model["ema"] or model["model"]).state_dict().values())


def equal(one: Path, other: Path) -> bool:
    pairs = [(one / "weights" / name, other / "weights" / name) for name in ("last.pt", "last_raw.pt")]
    return all(torch.equal(a, b) for pair in pairs for a, b in zip(*map(weights, pair), strict=True))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    return dptrain.train(**options(folder, "alone", physical_batch_size=4)).output_dir


@pytest.fixture(scope="module")
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that runs of this module have started."""
    found: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    class Noted(real):  # type: ignore[valid-type, misc]
        def __init__(self, *rest: Any, **how: Any) -> None:
            super().__init__(*rest, **how)
            found.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.subprocess, "Popen", Noted)
        yield found


def test_a_killed_process_ends_the_run_in_a_line_and_one_process_resumes_it_to_the_same_weights(
    folder: Path, alone: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    real = Run._lease

    def lease(run: Run) -> None:
        if run.trainer.step == 3:
            assert [process.poll() for process in started] == [None, None]
            started[0].kill()
        real(run)

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ProcessError) as error:
        patch.setattr(Run, "_lease", lease)
        dptrain.train(**options(folder, "killed", device="cpu,cpu,cpu"))
    out = folder / "killed"
    assert described(error.value) == (
        "another of the run's 3 processes is gone: it was killed, or its machine was; "
        f"3 of {STEPS} steps are taken and kept: resume with the same command and output_dir={out} resume=true; "
        "process 1 was ended by signal 9"
    )
    assert all(process.poll() is not None for process in started), "a process was left behind"
    assert not torch.distributed.is_initialized()
    threads_left = {(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()}
    assert not any(name.startswith(("pt_", "gloo")) for name in threads_left), "a fork would inherit them"
    assert torch.get_num_threads() == threads
    assert steps_started(out) == 3
    ledger = BudgetLedger(f"sqlite:///{folder / 'budget.db'}")
    killed = [run for run in ledger.history() if run.name == "killed"]
    assert [(run.charged, run.status) for run in killed] == [(3, "failed")]
    dptrain.train(**options(folder, "killed", device="cpu", physical_batch_size=4, resume=True))
    assert equal(out, alone)
    assert {file.name for file in out.iterdir()} == {file.name for file in alone.iterdir()}
    rows = [list(csv.reader((run / "results.csv").open())) for run in (out, alone)]
    assert rows[0] == rows[1]


def test_a_run_under_torchrun_has_the_files_of_one_process(folder: Path) -> None:
    """Of groups, each image seen twice: a group is whole in one process."""
    files = sorted((folder / "images" / "train").iterdir())
    table = "".join(f"train/{file.name},patient {number // 3}\n" for number, file in enumerate(files))
    (folder / "groups.csv").write_text(f"image,group\n{table}")
    privacy = {**options(folder, "")["privacy"], "unit": "group", "images_per_group": 2, "dataset_size": 6}
    changes: dict[str, Any] = {
        "privacy": {**privacy, "expected_batch_size": 3, "groups": {"csv": str(folder / "groups.csv")}},
        "validation": "off",
        "augment": {"fliplr": 0.5, "multiplicity": 2},
        "budget": {"url": f"sqlite:///{folder / 'groups.db'}"},
    }
    alone = dptrain.train(**options(folder, "alone_groups", physical_batch_size=5, **changes)).output_dir
    given = flatten(options(folder, "torchrun", workers=1, **changes))
    arguments = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]
    root = str(Path(dptrain.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "dptrain", "train", *arguments],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}, cwd=folder,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes on cpu" in done.stdout
    assert done.stdout.count("done: epsilon") == done.stdout.count("parameters train") == 1, "a second process spoke"
    out = folder / "torchrun"
    assert equal(out, alone)
    assert {file.name for file in out.iterdir()} == {file.name for file in alone.iterdir()}
    ledger = BudgetLedger(f"sqlite:///{folder / 'groups.db'}")
    assert [(run.charged, run.status) for run in ledger.history() if run.name == "torchrun"] == [(STEPS, "finished")]


def test_a_picture_that_is_another_where_it_is_read_ends_the_run_before_its_first_step(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """As on a second machine with other files under the same names."""
    dataset_maker(tmp_path)(train=6, val=1)
    real, changed = Group.hand_out, []

    def hand_out(group: Group, value: Any = None) -> Any:
        if group.is_first and not changed:
            shares = shares_of(value.identities, 2)
            image = int(np.flatnonzero(shares == 1)[0])
            changed.append(value.dataset.image_files[image])
            other = tmp_path / "images" / "val" / "000.png"
            changed[0].write_bytes(other.read_bytes())
        return real(group, value)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ProcessError) as error:
        patch.setattr(Group, "hand_out", hand_out)
        dptrain.train(**options(tmp_path, "other", device="cpu,cpu"))
    assert described(error.value) == (
        f"process 1 of 2 failed: {changed[0]}: is another picture there than where the run was started; "
        "give all the same files"
    )
    assert not (tmp_path / "other").exists(), "a run without a step left something behind"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tuning": {"method": "random_stopping"}}, "tuning.method=random_stopping and several processes"),
        ({"engine": "opacus"}, "engine=opacus and several processes"),
        ({"privacy": {"noise": "banded", "bands": 2, "sample_rate": 0.1, "noise_multiplier": 1.0, "delta": 1e-3}},
         "privacy.noise=banded and several processes"),
        ({"data": "pets.seal"}, "data=pets.seal, which is sealed, and several processes"),
        ({"steps": None, "privacy": {"epsilon": 8.0, "dataset_size": 16}}, "give steps (and privacy.expected_batch"),
    ],
)  # fmt: skip
def test_what_one_process_alone_does_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    if "data" in changes:
        changes = {"data": str(tmp_path / changes["data"])}
        Path(changes["data"]).write_bytes(b"")
        words = words.replace("pets.seal", changes["data"])
    usual = options(tmp_path, "out", device="cpu,cpu")
    if changes.get("engine") != "opacus":
        del usual["noise"]
    config = resolve(from_kwargs(**{**usual, **changes}))
    with pytest.raises(ConfigError, match=re.escape(words)):
        processes.refuse_unshared(config)
    config.device = "cpu"
    processes.refuse_unshared(config)


def as_torchrun(patch: pytest.MonkeyPatch, *values: str) -> None:
    for name, value in zip(NAMES, values, strict=True):
        patch.setenv(name, value)


def test_torchruns_variables_place_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    as_torchrun(monkeypatch, "0", "1", "0", "1", "localhost", "29500")
    assert launched() is None
    as_torchrun(monkeypatch, "3", "4", "1", "2", "node0", "29500")
    assert launched() == Launch(3, 4, 1, 2, ("node0", 29500))
    for wrong in (("4", "4", "1", "2", "node0", "29500"), ("0", "2", "0", "", "node0", "29500")):
        as_torchrun(monkeypatch, *wrong)
        with pytest.raises(ConfigError, match="are not what torchrun sets: start with torchrun, or unset RANK"):
            launched()


def test_devices_and_sweeps_under_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dptrain.commands.train import train

    as_torchrun(monkeypatch, "0", "2", "0", "2", "localhost", "29500")
    config = resolve(from_kwargs(**options(tmp_path, "out", device="cpu,cpu")))
    with pytest.raises(ConfigError, match="device=cpu,cpu under torchrun: it has started the processes"):
        processes.refuse_unshared(config)
    for flag in ("-m", "--multirun"):
        with pytest.raises(ConfigError, match="a sweep under torchrun"):
            train([flag, "seed=1,2"], debug=False)
    monkeypatch.setattr(processes, "_used", True)
    with pytest.raises(ConfigError, match="serve one run, and have"), processes.gathered(config):
        pass


def test_devices_on_the_command_line_are_those_of_one_run_and_no_sweep() -> None:
    from dptrain.run.sweep.hydra_app import quote_values

    assert quote_values(["device=cpu,cpu", "device=0,1", "device=cuda"]) == [
        "device='cpu,cpu'",
        "device='0,1'",
        "device=cuda",
    ]
