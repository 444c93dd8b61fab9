"""What a run writes, sealed or not, and the dataset that it reads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import ConfigError
from ..sealing.age import SUFFIX, decrypted, write_sealed
from ..sealing.archive import is_open, is_sealed_dataset, open_dataset
from ..sealing.keys import Keys, find_keys, recipients_of
from ..sealing.weights import is_sealed_weights, open_weights
from ..support.files import write_atomically

if TYPE_CHECKING:
    from ..settings.schema import SealConfig, TrainConfig


class OutputFiles:
    """How a run writes weights and checkpoints: as they are or, with recipients, only ever sealed, as ``NAME.age``.

    ``contents`` has the sha256 of what each sealed file holds, by its unsealed name: whoever unseals one can compare.

    Args:
        config: The settings ``seal``.

    Raises:
        ConfigError: A recipient is no public key.
    """

    def __init__(self, config: SealConfig) -> None:
        self._config = config
        self.contents: dict[str, str] = {}
        self._recipients = recipients_of(config.recipients) if config.recipients else []

    def place(self, file: Path) -> Path:
        """Where a file lies that a run would call ``file``."""
        return file.with_name(file.name + SUFFIX) if self._recipients else file

    def write(self, file: Path, write: Callable[[IO[bytes]], object]) -> None:
        """As :func:`dptrain.support.files.write_atomically`, at :meth:`place`."""
        if self._recipients:
            self.contents[file.name] = write_sealed(self.place(file), write, self._recipients)
        else:
            write_atomically(file, write)

    def read(self, file: Path) -> IO[bytes] | None:
        """The content of a sealed file, in memory; None where this run does not seal.

        Raises:
            SealError: There is no key, or it does not open the file.
        """
        return decrypted(self.place(file), keys_of(self._config)) if self._recipients else None


def keys_of(config: SealConfig) -> Keys:
    """The keys that a run's settings name, else those of the environment."""
    return find_keys(config.identity, None, config.keyring)


def unlock(config: TrainConfig) -> TrainConfig:
    """Open a sealed start and a sealed dataset, to be read from memory; return the settings to go on with.

    Raises:
        SealError: It cannot be opened.
        ConfigError: It is not there.
    """
    start = Path(config.model)
    if is_sealed_weights(start) and start.is_file():  # one that is not there is told of with the unsealed ones
        open_weights(start, lambda: keys_of(config.seal))
    if not is_sealed_dataset(config.data):
        return config
    place = Path(config.data).expanduser().absolute()
    open_dataset(config.data, None if place.is_file() and is_open(place) else keys_of(config.seal))
    if config.workers and multiprocessing.get_start_method() != "fork":
        raise ConfigError(
            f"workers={config.workers} and a sealed dataset cannot be combined here: a worker process would not see "
            "this one's memory; give workers=0"
        )
    return config
