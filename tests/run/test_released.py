"""Released checkpoints: fetched from a server of this machine, refused in one line, and known in the statement."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import dptrain
from dptrain.commands.main import main
from dptrain.detection.model import load_model, save_weights
from dptrain.errors import ModelError
from dptrain.run.public_start import declared_start
from dptrain.support import released
from dptrain.support.environment import is_offline
from dptrain.support.released import CHECKPOINTS, Checkpoint, found_start, made_from

from ..conftest import SMALL, MakeDataset, run_options

NAME = "yolo26n.pt"
CONTENT = bytes(range(256)) * 1000
MADE_FROM = "Objects365 v1, then COCO 2017 train, by Ultralytics' release v8.4.0 of yolo26n.pt"
PLAN = {"noise_multiplier": 1.0, "sample_rate": 0.5, "expected_batch_size": 3, "delta": 1e-3}


@dataclass
class Server:
    """What it answers, and what it was asked."""

    content: bytes = CONTENT
    says: int | None = None  # Content-Length; None: that of the content
    status: int = 200
    waits: float = 0.0
    asked: list[str] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A release on this machine with one pinned file, an empty working directory, and leave to fetch."""
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            time.sleep(found.waits)
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(found.content) if found.says is None else found.says))
            self.end_headers()
            self.wfile.write(found.content)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        found.address = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setattr(released, "ADDRESS", found.address)
        pin(monkeypatch, CONTENT)
        monkeypatch.setenv("YOLO_OFFLINE", "false")
        monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        yield found
        http.shutdown()
        thread.join()


def pin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(CHECKPOINTS, NAME, Checkpoint(len(content), sha256))


def refusal(**options: Any) -> str:
    """The one line that says why there is no file; nothing is left behind."""
    with pytest.raises(ModelError) as caught:
        found_start(NAME, **options)
    assert "\n" not in str(caught.value) and f"model={NAME}" in str(caught.value)
    assert f"/{NAME}" in str(caught.value), "where to get it"
    assert not list(Path().iterdir())
    return str(caught.value)


def test_a_released_name_that_is_not_here_is_fetched_once_with_one_line(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    assert found_start(NAME) == NAME
    assert Path(NAME).read_bytes() == CONTENT
    assert [record.getMessage() for record in caplog.records if record.name.startswith("dptrain")] == [
        f"fetching {NAME} from {server.address}/{NAME} (0.3 MB)"
    ]
    assert found_start(NAME) == NAME and server.asked == [f"/{NAME}"]
    assert list(Path().iterdir()) == [Path(NAME)]


def test_only_a_bare_name_is_looked_for_elsewhere(server: Server, tmp_path: Path) -> None:
    for start in ("yolo26n.yaml", f"./weights/{NAME}", str(tmp_path / NAME), "start.pt", "yolo26n.pt.age", ""):
        assert found_start(start) == start
    (tmp_path / "Ultralytics").mkdir()
    (tmp_path / "Ultralytics/settings.json").write_text(json.dumps({"weights_dir": str(tmp_path / "kept")}))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / NAME).write_bytes(b"theirs")
    assert found_start(NAME) == str(tmp_path / "kept" / NAME)
    Path(NAME).write_bytes(b"mine")
    assert found_start(NAME) == NAME and Path(NAME).read_bytes() == b"mine"
    assert server.asked == []


def test_another_content_than_the_pinned_one_is_not_kept(server: Server) -> None:
    server.content = CONTENT[:-1] + b"?"
    assert "sha256" in refusal()
    server.content = CONTENT + b"more"
    assert "sha256" in refusal()


def test_a_download_that_is_cut_short_is_not_kept(server: Server) -> None:
    server.content, server.says = CONTENT[:1000], len(CONTENT)
    assert "broke off" in refusal()
    server.says = None  # a proxy that takes it for whole
    assert f"1000 of {len(CONTENT)} bytes" in refusal()


def test_an_answer_that_is_no_file_is_told(server: Server) -> None:
    server.status, server.content = 404, b"<html>no such page</html>"
    assert "answered 404 Not Found" in refusal()


def test_without_a_server_one_line_says_where_to_get_the_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "ADDRESS", "http://127.0.0.1:9")  # nobody listens there
    message = refusal()
    assert "no connection" in message and f"put it into {Path.cwd()}" in message


def test_nothing_is_fetched_offline_or_where_it_is_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "download=false" in refusal(download=False)
    monkeypatch.setenv("YOLO_OFFLINE", "True")
    assert "YOLO_OFFLINE is set" in refusal()
    assert server.asked == []


def test_a_checkpoint_that_is_not_pinned_is_not_fetched(server: Server) -> None:
    with pytest.raises(ModelError, match=rf"model=yolo12n\.pt.*only.*{server.address}/yolo12n\.pt and put it into"):
        found_start("yolo12n.pt")
    assert server.asked == []


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert "cannot be written (Permission denied)" in refusal()
    assert server.asked == []


def test_two_processes_at_once_both_find_a_whole_file(server: Server) -> None:
    server.waits = 0.5
    code = (
        "from dptrain.support import released\n"
        f"released.ADDRESS = {server.address!r}\n"
        f"released.CHECKPOINTS[{NAME!r}] = released.{CHECKPOINTS[NAME]!r}\n"
        f"print(released.found_start({NAME!r}))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [NAME, NAME]
    assert [process.returncode for process in both] == [0, 0]
    assert Path(NAME).read_bytes() == CONTENT and list(Path().iterdir()) == [Path(NAME)]


def test_ultralytics_is_kept_offline_and_that_is_not_the_users_word() -> None:
    """The variable that dptrain sets for Ultralytics, also in the processes it starts, does not forbid the fetch."""
    code = "import dptrain.detection, os; from dptrain.support.environment import is_offline; print(is_offline())"
    again = f"import subprocess, sys; {code}; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    unset = {key: value for key, value in os.environ.items() if key != "YOLO_OFFLINE"}
    said = subprocess.run([sys.executable, "-c", again], env=unset, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]
    code = "from dptrain.detection import quiet; from ultralytics.utils import ONLINE; print(ONLINE)"
    said = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False"]


@pytest.mark.parametrize(
    ("value", "offline"), [("true", True), (" YES ", True), ("1", True), ("0", False), ("", False)]
)
def test_offline_is_read_as_ultralytics_reads_it(value: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import env_bool

    monkeypatch.setenv("YOLO_OFFLINE", value)
    assert is_offline() is env_bool("YOLO_OFFLINE") is offline


def test_every_pinned_checkpoint_says_what_it_was_trained_on() -> None:
    assert sorted(CHECKPOINTS) == sorted(
        f"{family}{size}.pt" for family in ("yolov8", "yolo11", "yolo26") for size in "nsmlx"
    )
    assert len({known.sha256 for known in CHECKPOINTS.values()}) == 15
    assert made_from(CHECKPOINTS[NAME].sha256) == MADE_FROM
    assert made_from(CHECKPOINTS["yolo11x.pt"].sha256) == (
        "COCO 2017 train, by Ultralytics' release v8.4.0 of yolo11x.pt"
    )
    assert made_from("0" * 64) is None


@pytest.fixture
def small_release(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A detector of the names that the tests' images have is the released file."""
    file = save_weights(load_model(SMALL, names={0: "green", 1: "blue"}), tmp_path / "released.pt")
    server.content = file.read_bytes()
    pin(monkeypatch, server.content)
    monkeypatch.setenv("DPTRAIN_BUDGET_URL", f"sqlite:///{tmp_path / 'own.db'}")
    return server


def arguments(data: Path, *more: str) -> list[str]:
    options = {**run_options(Path("runs"), model=NAME), "data": data, "tracking.enabled": "false", "steps": 1}
    privacy = [f"privacy.{key}={value}" for key, value in PLAN.items()]
    return ["train", *(f"{key}={value}" for key, value in options.items()), *privacy, *more]


def test_a_run_from_a_released_name_fetches_it_and_states_what_it_was_trained_on(
    small_release: Server, make_dataset: MakeDataset, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset()
    assert main(arguments(data)) == 0
    assert small_release.asked == [f"/{NAME}"]
    assert capfd.readouterr().err.splitlines() == [
        f"dptrain: fetching {NAME} from {small_release.address}/{NAME} ({CHECKPOINTS[NAME].size / 1e6:.1f} MB)"
    ]
    statement = json.loads(Path("runs/out/statement.json").read_text())
    assert statement["public_data"]["declared"] == MADE_FROM
    assert statement["public_data"]["sha256"] == CHECKPOINTS[NAME].sha256
    assert MADE_FROM in Path("runs/out/statement.md").read_text().replace("\\", "")

    Path(NAME).rename("other.pt")  # known by its content
    assert declared_start("other.pt") == MADE_FROM
    assert main(arguments(data, "model=other.pt", "output_dir=again", 'public_data="my own words"')) == 0
    assert json.loads(Path("again/statement.json").read_text())["public_data"]["declared"] == "my own words"


def test_a_start_that_cannot_be_fetched_costs_nothing(
    small_release: Server, make_dataset: MakeDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small_release.status = 404
    data = make_dataset()
    sweep = ["-m", "privacy.noise_multiplier=1.0,2.0", "output_dir=sweep"]
    for more in ([], ["download=false"], sweep):
        assert main([*(a for a in arguments(data) if "-m" not in more or "noise_m" not in a), *more]) == 2
        assert len(capfd.readouterr().err.strip().splitlines()) <= 2  # the fetch, and why it failed
    assert not list(Path().iterdir()) and not (tmp_path / "own.db").exists()


def test_a_sweep_fetches_its_start_once(small_release: Server, make_dataset: MakeDataset) -> None:
    given = [argument for argument in arguments(make_dataset()) if "noise_multiplier" not in argument]
    assert main([*given, "-m", "privacy.noise_multiplier=1.0,2.0", "output_dir=sweep"]) == 0
    assert small_release.asked == [f"/{NAME}"]


def test_of_several_processes_only_the_first_fetches(small_release: Server, make_dataset: MakeDataset) -> None:
    data = make_dataset()
    assert main(arguments(data, "device=cpu,cpu")) == 0
    assert small_release.asked == [f"/{NAME}"]


def test_a_follower_under_torchrun_fetches_nothing(
    small_release: Server, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(launch: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("dptrain.run.train.follow", follow)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 9}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(SystemExit):
        dptrain.train(data=str(make_dataset()), privacy=PLAN, steps=1, **run_options(Path("runs"), model=NAME))
    assert small_release.asked == [] and not list(Path().iterdir())


def test_pretraining_and_evaluation_fetch_too(
    small_release: Server, make_dataset: MakeDataset, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset()
    assert main(["evaluate", "--weights", NAME, "--data", str(data), "--imgsz", "64", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["images"] == 3
    Path(NAME).unlink()
    pretrained = ["pretrain", f"model={NAME}", f"data={data}", "imgsz=64", "epochs=1", "batch_size=4", "workers=0"]
    assert main([*pretrained, "output_dir=start"]) == 0
    record = json.loads(Path("start/weights/pretraining.json").read_text())
    assert record["public_data"].endswith(f"from {NAME}: {MADE_FROM}")
    assert small_release.asked == [f"/{NAME}"] * 2


def test_a_rehearsal_fetches_too(small_release: Server, make_dataset: MakeDataset) -> None:
    small_release.status = 404
    given = [f"model={NAME}", f"data={make_dataset()}", "imgsz=64", "steps=2", "output_dir=rehearsed", "workers=0"]
    privacy = ["privacy.epsilon=8", "privacy.dataset_size=1000", "privacy.expected_batch_size=100"]
    assert main(["rehearse", *given, *privacy]) == 2
    assert small_release.asked == [f"/{NAME}"] and not Path("rehearsed").exists()
