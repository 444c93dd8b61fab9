"""``dptrain federate``: hospitals that never share an image train one detector, by Flower."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError
from .options import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    federate = commands.add_parser("federate", help="several sites, one detector, no image leaves its site (Flower)")
    actions = federate.add_subparsers(title="actions", metavar="ACTION", required=True)
    init = actions.add_parser("init", help="write the Flower app of a federation, and say how to start it")
    init.add_argument("folder", help="where the app goes; a new folder")
    init.add_argument("--server", required=True, metavar="FILE", help="the settings of the server (server.yaml)")
    init.set_defaults(command=_init)
    simulate = actions.add_parser("simulate", help="try a federation on this machine, by Flower's simulation engine")
    simulate.add_argument("--server", required=True, metavar="FILE", help="the settings of the server (server.yaml)")
    simulate.add_argument("--cpus", type=int, default=1, help="CPU cores of a site; sites that fit run side by side")
    simulate.add_argument("sites", nargs="+", metavar="SITE", help="the settings of a site (site.yaml), two or more")
    simulate.set_defaults(command=_simulate)


def _need_flower() -> None:
    if find_spec("flwr") is None:
        raise ConfigError("dptrain federate needs Flower, which is not installed: pip install 'dptrain[federated]'")


def _init(options: argparse.Namespace) -> int:
    _need_flower()
    from ..federated.app_folder import started_by, write_app

    write_app(Path(options.folder), Path(options.server))
    print(started_by(Path(options.folder)))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    _need_flower()
    if options.cpus < 1:
        raise ConfigError(f"--cpus={options.cpus} must be 1 or more")
    for file in (options.server, *options.sites):
        if not Path(file).is_file():
            raise ConfigError(f"{file} does not exist: give the settings of the server, and of each site")
    from ..federated.simulation import simulate

    simulate(options.server, options.sites, options.cpus)
    return 0
