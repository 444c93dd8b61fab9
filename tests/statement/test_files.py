"""When the statement's files are there: a run must not count as finished before all of them are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain.statement import files, write_statement

from .runs import facts, make_run


def test_the_file_that_ends_a_run_is_written_after_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed between two of them goes on, and writes them all."""
    monkeypatch.setattr(files, "to_html", lambda *_: "a page")
    whole = {file.relative_to(tmp_path / "whole") for file in make_run(tmp_path / "whole").rglob("*.*")}
    real = files.write_text
    for cut in range(5):
        run = make_run(tmp_path / f"cut {cut}", status="running")
        left = cut

        def write(file: Path, text: str) -> None:
            nonlocal left
            if not left:
                raise OSError("killed")
            left -= 1
            real(file, text)

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_text", write)
            with pytest.raises(OSError, match="killed"):
                write_statement(run, facts())
        assert files.read_statement(run / "statement.json")["status"] == "running", f"after {cut} files"
        write_statement(run, facts())
        assert files.read_statement(run / "statement.json")["status"] == "finished"
        assert {file.relative_to(run) for file in run.rglob("*.*")} == whole
