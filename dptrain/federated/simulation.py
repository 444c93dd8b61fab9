"""A federation on one machine: Flower's simulation engine runs every site as it would run anywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flwr.simulation import run_simulation

from .client import simulated
from .server import server_app


def simulate(server: str | Path, sites: Sequence[str | Path], cpus: int = 1) -> None:
    """Play all rounds on this machine; each site keeps its own folder and ledger, as its settings say.

    Args:
        server: The settings of the server.
        sites: Those of the sites.
        cpus: CPU cores of a site; as many sites run side by side as there are cores for.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    run_simulation(
        server_app(server),
        simulated(sites),
        num_supernodes=len(sites),
        backend_config={"client_resources": {"num_cpus": cpus, "num_gpus": 0.0}},
    )
