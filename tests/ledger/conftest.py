"""Ledgers to test: an SQLite file, and a PostgreSQL server of our own where one is installed."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dptrain import BudgetLedger

KEY = "11" * 32
_NAMES = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power; a killed process loses nothing that it has written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dptrain.ledger.store.SYNCHRONOUS", "OFF")
        yield


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'budget.db'}"


@pytest.fixture
def ledger(url: str) -> BudgetLedger:
    return BudgetLedger(url)


def _program(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or next(map(str, places), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a throw-away server, without its database; it runs as another user where we are root."""
    pytest.importorskip("psycopg")
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no PostgreSQL server (initdb, postgres) on this machine")
    folder = Path(tempfile.mkdtemp(prefix="dptrain-pg-"))
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    if os.getuid() == 0:
        os.chown(folder, user.pw_uid, user.pw_gid)
    options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    data = folder / "data"
    try:
        made = subprocess.run(
            [initdb, "-D", str(data), "-U", "dptrain", "-A", "trust", "-N", "--locale=C", "-E", "UTF8"],
            capture_output=True,
            text=True,
            cwd=folder,
            **options,  # type: ignore[call-overload]
        )
        if made.returncode:
            pytest.skip(f"initdb does not work here: {made.stderr.strip().splitlines()[-1]}")
        settings = ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "max_connections=60")
        arguments = [word for setting in settings for word in ("-c", setting)]
        server = subprocess.Popen(
            [postgres, "-D", str(data), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **options,  # type: ignore[call-overload]
        )
        try:
            yield _until_it_answers(server, str(folder))
        finally:
            server.send_signal(signal.SIGINT)  # at once, whoever is still connected
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _until_it_answers(server: subprocess.Popen[bytes], folder: str) -> str:
    import time

    import psycopg

    for _ in range(200):
        try:
            psycopg.connect(host=folder, user="dptrain", dbname="postgres").close()
            return folder
        except psycopg.OperationalError:
            if server.poll() is not None:
                pytest.skip("the PostgreSQL server does not start here")
            time.sleep(0.1)
    raise AssertionError("the PostgreSQL server does not answer")


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The address of a fresh database."""
    import psycopg

    name = f"ledger{next(_NAMES)}"
    with psycopg.connect(host=postgres_server, user="dptrain", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://dptrain@/{name}?host={postgres_server}"


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture
def any_ledger(any_url: str) -> BudgetLedger:
    return BudgetLedger(any_url, KEY)


Opener = Callable[[], BudgetLedger]
