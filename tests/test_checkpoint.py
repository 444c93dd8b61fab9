"""What is on the disk after a run, a crash, or a tampering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dptrain import PrivacyError, PrivacyPlan
from dptrain.checkpoint import StepJournal, load_checkpoint, save_checkpoint
from dptrain.files import write_atomically

PLAN = PrivacyPlan(0.1, 10, 1.0, 1.0, 1e-5, 8)
STATE: dict[str, Any] = {
    "step": 3, "parameters": {"w": torch.ones(2)}, "frozen": {}, "average": {"w": torch.zeros(2)},
    "optimizer": {"state": {}},
}  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", STATE, PLAN, None)
    assert load_checkpoint(tmp_path / "c.pt", PLAN, None)["step"] == 3


def test_only_the_whitelist_is_written(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="losses"):
        save_checkpoint(tmp_path / "c.pt", {**STATE, "losses": [1.0]}, PLAN, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("plan", "seed", "named"),
    [(PrivacyPlan(0.1, 10, 0.5, 1.0, 1e-5, 8), None, "noise_multiplier"), (PLAN, 7, "seed")],
)
def test_another_plan_is_refused(tmp_path: Path, plan: PrivacyPlan, seed: int | None, named: str) -> None:
    save_checkpoint(tmp_path / "c.pt", STATE, PLAN, None)
    with pytest.raises(PrivacyError, match=named):
        load_checkpoint(tmp_path / "c.pt", plan, seed)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="not there"):
        load_checkpoint(tmp_path / "none.pt", PLAN, None)
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(PrivacyError, match=r"c\.pt"):
        load_checkpoint(tmp_path / "c.pt", PLAN, None)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomically(file, lambda stream: stream.write(b"old"))

    def fail(stream: Any) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_journal_counts_and_survives(tmp_path: Path) -> None:
    journal = StepJournal(tmp_path / "j")
    journal.record(1)
    journal.record(3)
    journal.record(2)
    journal.close()
    again = StepJournal(tmp_path / "j", new=False)
    assert again.steps == 3
    again.close()


def test_journal_of_another_process_and_of_another_run_is_left_alone(tmp_path: Path) -> None:
    journal = StepJournal(tmp_path / "j")
    with pytest.raises(PrivacyError, match="another process"):
        StepJournal(tmp_path / "j", new=False)
    with pytest.raises(FileExistsError):
        StepJournal(tmp_path / "j")
    journal.close()
