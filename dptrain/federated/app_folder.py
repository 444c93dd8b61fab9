"""The folder that ``flwr run`` takes: it names the apps of dptrain, and the settings of the server."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path

from ..errors import ConfigError
from ..support.files import write_text
from .settings import read_server

_PROJECT = """\
[project]
name = "dptrain-federation"
version = "1.0.0"
description = "Several sites train one detector, each with its own guarantee"
license = "AGPL-3.0-only"
dependencies = []  # every site has installed dptrain[federated] itself

[tool.flwr.app]
publisher = "dptrain"

[tool.flwr.app.components]
serverapp = "federation.server:app"
clientapp = "federation.site:app"

[tool.flwr.app.config]
settings = {settings}
"""
_MODULES = {
    "__init__.py": '"""The apps are those of dptrain, as it is installed."""\n',
    "server.py": "from dptrain.federated import server\n\napp = server.app\n",
    "site.py": "from dptrain.federated import client\n\napp = client.app\n",
}


def write_app(folder: Path, server: Path) -> None:
    """Write the app into a new folder.

    Raises:
        ConfigError: The folder is not new, or the settings of the server cannot be read.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose a new folder")
    if not server.is_file():
        raise ConfigError(f"--server={server} does not exist: give the settings of the server")
    with chdir(server.absolute().parent):
        read_server(server.absolute())
    (folder / "federation").mkdir(parents=True)
    write_text(folder / "pyproject.toml", _PROJECT.format(settings=json.dumps(str(server.absolute()))))
    for name, text in _MODULES.items():
        write_text(folder / "federation" / name, text)


def started_by(folder: Path) -> str:
    """Return how the federation is started, terminal by terminal."""
    return f"""\
{folder} is written. On one machine, to try it (docs/federated.md has TLS and keys, which real sites need):

  server:    flower-superlink --insecure
  each site: flower-supernode --insecure --superlink 127.0.0.1:8000 --port PORT --node-config 'site="/path/site.yaml"'
  then, with [superlink.hospitals] address = "127.0.0.1:8000" and insecure = true in ~/.flwr/config.toml:
             flwr run {folder} hospitals --stream"""
