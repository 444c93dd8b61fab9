"""The place of this process among those that were started together, by torchrun or by dptrain itself."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import ConfigError

# torchrun's; RANK and WORLD_SIZE decide whether there are several.
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """One of several processes that were started together.

    Attributes:
        rank: Its number among all of them, from 0.
        count: Number of processes.
        local_rank: Its number among those on its machine.
        local_count: Number of processes on its machine.
        address: Machine and port at which they meet.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int
    address: tuple[str, int]


def launched() -> Launch | None:
    """Return the place of this process by torchrun's variables; None if it was started by itself.

    Raises:
        ConfigError: The variables are there and make no sense.
    """
    values = {name: os.environ.get(name) for name in NAMES}
    if values["RANK"] is None or values["WORLD_SIZE"] in (None, "1"):
        return None
    try:
        rank, count, local_rank, local_count = (int(values[name] or "") for name in NAMES[:4])
        place = Launch(
            rank, count, local_rank, local_count, (values["MASTER_ADDR"] or "", int(values["MASTER_PORT"] or ""))
        )
        if 0 <= rank < count and 0 <= local_rank < local_count <= count:
            return place
    except ValueError:
        pass
    found = ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)
    raise ConfigError(f"{found} are not what torchrun sets: start with torchrun, or unset RANK and WORLD_SIZE")
