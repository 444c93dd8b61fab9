"""``dptrain register``: a run's weights in MLflow's model registry, to be served with their statement."""

from __future__ import annotations

import argparse

from ..errors import ConfigError
from ..support.environment import tracking_address
from .options import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("register", help="put a run's weights into MLflow's model registry")
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its MLflow run id")
    parser.add_argument("--name", required=True, help="of the registered model; one that exists gets a new version")
    parser.add_argument("--tracking-uri", help="MLflow store; default $MLFLOW_TRACKING_URI or sqlite:///mlflow.db")
    parser.set_defaults(command=_register)


def _register(options: argparse.Namespace) -> int:
    name = options.name.strip()
    if not name or set(name) & set("/:"):
        raise ConfigError(f"--name={options.name!r} must be a name without / and :")
    from ..run.registry import register_run
    from ..statement.tracked import fetched, is_run_id

    uri = tracking_address(options.tracking_uri)
    if is_run_id(options.run):
        with fetched(options.run, uri) as folder:
            made = register_run(folder, name, uri, options.run)
    else:
        made = register_run(options.run, name, uri)
    claim = f"epsilon {made.epsilon:.4g}" if made.valid else "its statement is VOID, and its tags say so"
    print(f"registered models:/{made.name}/{made.version} in {uri}: epsilon {claim}")
    print(
        f"serve it: MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/{made.name}/{made.version} "
        "--env-manager local -p 5001"
    )
    return 0
