"""What is on the disk after a run, a crash, or a tampering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dptrain import DataError, PrivacyError, PrivacyPlan
from dptrain.support.files import write_atomically
from dptrain.training.checkpoint import CHECKPOINT_FORMAT, load_checkpoint, save_checkpoint
from dptrain.training.journal import StepJournal

PLAN = PrivacyPlan(0.1, 10, 1.0, 1.0, 1e-5, 8)
STATE: dict[str, Any] = {
    "step": 3, "phases": [[10, ["w"], None]], "parameters": {"w": torch.ones(2)}, "frozen": {},
    "average": {"w": torch.zeros(2)},
    "optimizer": {"state": {}, "param_groups": [{"params": [0], "lr": 0.1}]},
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


def test_a_flipped_bit_of_a_weight_is_refused(tmp_path: Path) -> None:
    """torch reads past the checksums of its own files."""
    file = tmp_path / "c.pt"
    save_checkpoint(file, {**STATE, "parameters": {"w": torch.full((2,), 0.123)}}, PLAN, None)
    data = bytearray(file.read_bytes())
    data[data.index(torch.full((2,), 0.123).numpy().tobytes())] ^= 1
    file.write_bytes(data)
    assert torch.load(file, weights_only=True)["parameters"]["w"][0] != 0.123
    with pytest.raises(PrivacyError, match="damaged"):
        load_checkpoint(file, PLAN, None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"plan": [1]}, "plan"),
        ({"plan": {"steps": torch.zeros(2)}}, "sample_rate"),
        ({"seed": torch.zeros(2)}, "seed"),
        ({"format": 1}, "format 1"),
        ({"step": 11}, "step=11"),
        ({"step": "3"}, "step='3'"),
        ({"phases": torch.zeros(2)}, "phases is not a list"),
        ({"phases": [[10, "w", None]]}, "phases is not a list"),
        ({"parameters": [1]}, "parameters is not a table"),
        ({"parameters": {"w": torch.full((2,), torch.nan)}}, "finite"),
        ({"frozen": {"statistics": torch.full((2,), torch.nan)}}, r"frozen\.statistics is not made of finite numbers"),
        ({"frozen": {"b": torch.zeros(1).expand(10**12)}}, "fewer numbers"),
        ({"average": {}}, "average"),
        ({"optimizer": {"state": {}}}, "optimizer"),
        ({"optimizer": {"state": {0: {"m": torch.zeros(5)}}, "param_groups": [{"params": [0]}]}}, "another shape"),
    ],
)
def test_a_checkpoint_of_strange_parts_is_one_line(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    payload = {"format": CHECKPOINT_FORMAT, "plan": PLAN.to_dict(), "seed": None, **STATE, **changes}
    torch.save(payload, tmp_path / "c.pt")
    with pytest.raises(PrivacyError, match=named) as caught:
        load_checkpoint(tmp_path / "c.pt", PLAN, None)
    assert "c.pt" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["step", "optimizer", "plan", "format"])
def test_a_checkpoint_without_a_part_is_one_line(tmp_path: Path, missing: str) -> None:
    payload = {"format": CHECKPOINT_FORMAT, "plan": PLAN.to_dict(), "seed": None, **STATE}
    del payload[missing]
    torch.save(payload, tmp_path / "c.pt")
    with pytest.raises(PrivacyError, match=r"c\.pt"):
        load_checkpoint(tmp_path / "c.pt", PLAN, None)


def test_an_error_of_the_content_is_not_taken_for_one_of_the_file(tmp_path: Path) -> None:
    def fail(stream: Any) -> None:
        try:
            (tmp_path / "source").read_bytes()
        except OSError as error:
            raise DataError("the source is not there") from error

    with pytest.raises(DataError, match=r"^the source is not there$"):
        write_atomically(tmp_path / "file", fail)
