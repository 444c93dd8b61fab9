"""The folder of a run that is resumed: it goes on as it was, or is refused and left as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dptrain import BudgetLedger
from dptrain.commands.evaluate import run_imgsz
from dptrain.commands.main import main
from dptrain.ledger.manifest import Picture, from_pictures
from dptrain.privacy.accounting import dp_sgd_event
from dptrain.run.charge import read_note
from dptrain.run.folder import RunFolder
from dptrain.support.files import flatten

from .harness import answer, cases, check_message, contents, damaged, edited, hostile_json, limited

SHARE = 0.1
SETTINGS: dict[str, Any] = {
    "model": "yolo26n.yaml", "steps": 10, "seed": None, "trainable": ["model.22.*"], "names": ["cat"],
    "privacy": {"epsilon": None, "sample_rate": 0.1, "noise_multiplier": 1.0, "delta": 1e-5, "unit": "image"},
}  # fmt: skip
STATEMENT = {"format": 4, "status": "stopped", "guarantee": {"epsilon": 1.0}}
EVENT = dp_sgd_event(0.1, 10, 1.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger, and beside it the folder of a run that was killed after four of its ten steps, with leave for six."""
    home = tmp_path_factory.mktemp("runs")
    run = home / "run"
    run.mkdir()
    ledger = BudgetLedger(f"sqlite:///{home / 'budget.db'}")
    manifest = from_pictures(ledger._store.key, [Picture(b"f" * 32, b"u" * 32, b"l" * 32)])
    charge = ledger.reserve(EVENT, manifest, run="a" * 32, attempt="b" * 32, leased=6)
    (run / "settings.json").write_text(json.dumps(SETTINGS))
    (run / "statement.json").write_text(json.dumps(STATEMENT))
    (run / "steps.journal").write_bytes(b"....")
    note = {"format": 1, "run": charge.run, "ledger": ledger.address, "key": None, "attempts": [charge.attempt]}
    (run / "owner").mkdir()
    (run / "owner/budget.json").write_text(json.dumps(note))
    (run / "weights").mkdir()
    ledger._store.engine.dispose()
    return home


@pytest.fixture
def run(home: Path) -> Path:
    return home / "run"


def write(file: Path, draw: Any, value: Any) -> bytes:
    """Replace a JSON file by an edited or a damaged one."""
    whole = json.dumps(value).encode()
    texts = edited(value).map(lambda found: json.dumps(found).encode())
    content = draw(st.one_of(texts, texts, damaged(whole), hostile_json().map(lambda v: json.dumps(v).encode())))
    file.write_bytes(content)
    return content


def plain(value: Any) -> dict[str, Any]:
    return {key: item for key, item in flatten(value).items() if item is not None}


@cases(SHARE * 0.5, 150)
@given(data=st.data())
def test_a_folder_is_resumed_under_its_own_settings_only(run: Path, data: st.DataObject) -> None:
    (run / "settings.json").write_text(json.dumps(SETTINGS))
    (run / "statement.json").write_text(json.dumps(STATEMENT))
    content = write(run / "settings.json", data.draw, SETTINGS)
    before = contents(run)

    def resume() -> int:
        folder = RunFolder(run, resume=True)
        folder.check()
        with folder.opened("", SETTINGS) as opened:
            return opened.journal.steps

    steps, _ = answer(resume, run, "settings.json")
    assert contents(run) == before
    if steps is not None:
        assert steps == 4
        assert plain(json.loads(content)) == plain(SETTINGS)


@cases(SHARE * 0.15, 80)
@example(content=b"[" * 100_000)
@example(content=b'{"status": "fin\xff"}')
@given(content=st.one_of(
    damaged(json.dumps(STATEMENT).encode()), edited(STATEMENT).map(lambda v: json.dumps(v).encode()),
    hostile_json().map(lambda v: json.dumps(v).encode()),
))  # fmt: skip
def test_a_finished_run_is_told_from_an_unfinished_one_or_the_file_is_named(run: Path, content: bytes) -> None:
    (run / "statement.json").write_bytes(content)
    _, refused = answer(RunFolder(run, resume=True).check, run)
    try:
        finished = json.loads(content)["status"] == "finished"
    except (ValueError, TypeError, KeyError, RecursionError):
        finished = False
    assert not finished or refused is not None


@cases(SHARE * 0.2, 40)
@given(data=st.data())
def test_the_note_of_a_charge_is_followed_or_refused(home: Path, data: st.DataObject) -> None:
    folder = home.with_name("settled")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home, folder)
    note = json.loads((home / "run/owner/budget.json").read_text()) | {"ledger": f"sqlite:///{folder / 'budget.db'}"}
    write(folder / "run/owner/budget.json", data.draw, note)
    known, _ = answer(lambda: read_note(folder / "run"), folder)
    before = contents(folder / "run")
    ledgers = {path.name for path in folder.iterdir()}
    status, message = command(["budget", "settle", str(folder / "run")])
    after = contents(folder / "run")
    assert {**after, "steps.journal": before["steps.journal"]} == before
    assert status in (0, 2), message
    assert len(after["steps.journal"] or b"") == (6 if status == 0 else 4)
    if status == 0:
        assert known is not None and known["run"] == note["run"] and set(known["attempts"]) >= set(note["attempts"])
        key = folder / "budget.db.key"
        assert BudgetLedger(note["ledger"], key).history()[0].charged == 6
    else:
        check_message(message)
    assert {path.name for path in folder.iterdir()} - ledgers <= {"budget.db-wal", "budget.db-shm"}


def command(arguments: list[str]) -> tuple[int, str]:
    """Run the command and return its exit status and the line it ends with on stderr."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    lines = err.getvalue().splitlines()
    assert "Traceback" not in err.getvalue()
    return status, lines[-1].removeprefix("dptrain: error: ") if lines else ""


@cases(SHARE * 0.15, 60)
@example(text="imgsz: ${gone}")
@example(text="- imgsz")
@example(text="imgsz: true")
@given(text=st.one_of(
    st.text(max_size=20), st.sampled_from(["imgsz: 64", "imgsz: 64.5", "imgsz: [64]", "imgsz:", "imgsz: &a [*a]",
    "[", ""]),
    st.tuples(st.just("imgsz: "), st.text(max_size=8)).map("".join),
))  # fmt: skip
def test_the_image_size_beside_weights_is_a_number_or_refused(run: Path, text: str) -> None:
    (run / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    size, _ = answer(lambda: run_imgsz(run / "weights" / "last.pt"), run / "config.yaml")
    (run / "config.yaml").unlink()
    assert size is None or type(size) is int


@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize("name", ["steps.journal", "settings.json", "statement.json", "owner/budget.json"])
def test_a_record_that_is_no_ordinary_file_is_refused_at_once(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    import os

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "statement.json").write_text(json.dumps(STATEMENT))
    (folder / name).unlink()
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).mkdir()

    def resume() -> None:
        found = RunFolder(folder, resume=True)
        found.check()
        with found.opened("", SETTINGS):
            read_note(folder)

    assert answer(resume, folder / name)[1] is not None
