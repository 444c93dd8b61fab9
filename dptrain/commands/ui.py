"""``dptrain ui``: MLflow's pages, on the store that the runs wrote to."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ..errors import ConfigError
from ..support.environment import tracking_address
from .options import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("ui", help="open MLflow on the store that the runs wrote to")
    parser.add_argument("--tracking-uri", help="MLflow store; default $MLFLOW_TRACKING_URI or sqlite:///mlflow.db")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, default=5000)
    parser.set_defaults(command=_ui)


def _ui(options: argparse.Namespace) -> int:
    uri = tracking_address(options.tracking_uri)
    if not 0 < options.port < 65536:
        raise ConfigError(f"--port={options.port} is not a port: give a number from 1 to 65535")
    if uri.startswith(("http://", "https://")):
        print(f"the runs are on a server: open {uri}")
        return 0
    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).is_file():
        raise ConfigError(f"{uri} is not there: train first, or give the store that the runs wrote to (--tracking-uri)")
    print(f"MLflow on {uri}: open http://{options.host}:{options.port} (stop with Ctrl-C)", flush=True)
    command = ["server", "--backend-store-uri", uri, "--host", options.host, "--port", str(options.port)]
    return subprocess.run([sys.executable, "-m", "mlflow", *command], check=False).returncode
