"""A SuperLink and SuperNodes on this machine, as docs/federated.md starts them; one node is killed and started again.

    python -m tests.federated.deployed FOLDER

It takes minutes, of which most go to Python's imports: Flower starts a process for every message. So it is no test of
the suite; it prints what it saw, and fails where steps, ledgers and statements do not add up.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from dptrain.federated.settings import read_settings
from dptrain.training.journal import steps_started

from .sites import spent, write_site, write_start

ROUNDS, STEPS, WAIT = 6, 24, 900
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(folder: Path, name: str, *command: str) -> subprocess.Popen[bytes]:
    log = (folder / f"{name}.log").open("ab")
    return subprocess.Popen([str(BIN / command[0]), *command[1:]], stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started, as a power cut does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until(what: str, true: object, seconds: float = WAIT) -> None:
    began = time.monotonic()
    while not true():  # type: ignore[operator]
        if time.monotonic() - began > seconds:
            raise TimeoutError(what)
        time.sleep(0.2)
    print(f"{time.monotonic() - began:6.1f} s until {what}", flush=True)


def main(folder: Path) -> None:
    from .test_flower import write_server

    folder.mkdir(parents=True)
    os.environ.update(FLWR_HOME=str(folder / "flwr"), FLWR_TELEMETRY_ENABLED="0", OMP_NUM_THREADS="1")
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # Flower starts its own commands by name
    weights = write_start(folder)
    changes = {"rounds": ROUNDS, "steps": STEPS}
    sites = {name: write_site(folder / name, weights, pictures=i, **changes) for i, name in enumerate("ab")}
    server = write_server(
        folder / "server", weights, rounds=ROUNDS, steps_per_round=STEPS // ROUNDS, tracking={"enabled": False}
    )
    subprocess.run(
        [sys.executable, "-m", "dptrain", "federate", "init", str(folder / "app"), "--server", str(server)], check=True
    )
    port = free_port()
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "hospitals"\n\n[superlink.hospitals]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    running = {"link": start(folder, "superlink", "flower-superlink", "--insecure", "--port", str(port))}

    def node(name: str) -> subprocess.Popen[bytes]:
        return start(
            folder, f"node_{name}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}",
            "--port", str(free_port()), "--node-config", f'site="{sites[name]}"',
        )  # fmt: skip

    try:
        running |= {name: node(name) for name in sites}
        time.sleep(10)
        subprocess.run([str(BIN / "flwr"), "run", str(folder / "app"), "hospitals"], check=True)
        out = {name: file.parent / "out" for name, file in sites.items()}
        until("site b is inside its second round", lambda: steps_started(out["b"]) >= STEPS // ROUNDS + 1)
        kill(running.pop("b"))
        print(f"site b is killed after {steps_started(out['b'])} steps", flush=True)
        running["b"] = node("b")
        record = folder / "server" / "out" / "federation.json"
        until("all rounds are done", lambda: json.loads(record.read_text())["rounds_done"] == ROUNDS)
    finally:
        for process in running.values():
            kill(process)
    told = json.loads(record.read_text())
    print((folder / "server" / "out" / "federation.md").read_text())
    for name, file in sites.items():
        steps, plan = steps_started(out[name]), read_settings(file).plan
        statement = json.loads((out[name] / "statement.json").read_text())
        print(f"{name}: journal {steps}, ledger {spent(file)}, rounds {told['sites'][name]['rounds']}")
        assert spent(file) == [steps] and steps == told["sites"][name]["steps"] <= STEPS
        assert statement["guarantee"]["epsilon"] == plan.epsilon() == told["sites"][name]["epsilon"]
    assert steps_started(out["a"]) == STEPS


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
