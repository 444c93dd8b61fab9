"""The documentation builds as a site, with every link, anchor and generated page right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dptrain.settings.keys import keys

ROOT = Path(__file__).resolve().parents[2]


def test_the_site_builds_and_its_generated_pages_hold_the_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    settings = (tmp_path / "site" / "settings" / "index.html").read_text()
    assert not [key for key, _ in keys() if f"<code>{key}</code>" not in settings]
    commands = (tmp_path / "site" / "commands" / "index.html").read_text()
    assert "dptrain budget create" in commands and "--noise-multiplier" in commands
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "Guarantee" in api
    assert ":class:" not in api, "docstrings are shown without Sphinx roles"


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text()
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f" {page.name}\n" not in contents]
