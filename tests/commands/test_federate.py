"""``dptrain federate``: what it writes, and what it refuses in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from dptrain.commands.main import main

SERVER = "rounds: 2\nsteps_per_round: 3\nmodel: start.pt\ndata: data.yaml\noutput_dir: out\n"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    file = tmp_path / "server.yaml"
    file.write_text(SERVER)
    return file


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["federate", *arguments]) == 2
    return capsys.readouterr().err


def test_the_folder_names_the_apps_and_the_servers_settings_and_says_how_it_is_started(
    tmp_path: Path, server: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flwr")
    assert main(["federate", "init", str(tmp_path / "app"), "--server", str(server)]) == 0
    assert f"flwr run {tmp_path / 'app'}" in capsys.readouterr().out
    project = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert project["config"] == {"settings": str(server)}
    assert project["components"] == {"serverapp": "federation.server:app", "clientapp": "federation.site:app"}
    assert "exists already" in refused(capsys, "init", str(tmp_path / "app"), "--server", str(server))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("rounds: 0\n", "rounds=0 is not a whole number that is 1 or more"),
        (SERVER + "privacy: {epsilon: 8}\n", "privacy is for the sites"),
        (SERVER.replace("output_dir: out\n", ""), "output_dir is not set"),
        (SERVER + "modle: x\n", "modle"),
        ("- a list\n", "does not hold 'key: value' lines"),
    ],
)
def test_settings_of_a_server_that_cannot_be_are_refused(
    tmp_path: Path, server: Path, capsys: pytest.CaptureFixture[str], settings: str, words: str
) -> None:
    pytest.importorskip("flwr")
    server.write_text(settings)
    assert words in refused(capsys, "init", str(tmp_path / "app"), "--server", str(server))
    assert not (tmp_path / "app").exists()


def test_without_flower_and_without_files_a_line_says_so(
    server: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dptrain.commands.federate.find_spec", lambda _: None)
        assert "pip install 'dptrain[federated]'" in refused(capsys, "simulate", "--server", str(server), "site.yaml")
    pytest.importorskip("flwr")
    assert "site.yaml does not exist" in refused(capsys, "simulate", "--server", str(server), "site.yaml")
