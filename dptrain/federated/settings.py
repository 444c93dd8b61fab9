"""What a site is told, by a file on its own disk that the server neither sees nor changes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..errors import ConfigError
from ..privacy.plan import PrivacyPlan
from ..settings.resolve import from_kwargs, make_plan, resolve
from ..settings.schema import PRIVATE, TrainConfig
from ..support.devices import devices_of

SITE_NAME = r"[A-Za-z0-9_-]{1,40}"


@dataclass(frozen=True)
class SiteSettings:
    """The settings of a site: those of ``dptrain train``, and into how many rounds its steps are divided.

    Attributes:
        file: Where they were read; relative paths in it start from its folder.
        config: Resolved settings of the whole run, all rounds together.
        plan: The plan that they make, over all rounds, without scales.
        rounds: Number of rounds; each has ``steps_per_round`` steps.
        name: What the record of the server calls the site; declared, and public.
    """

    file: Path
    config: TrainConfig
    plan: PrivacyPlan
    rounds: int
    name: str

    @property
    def steps_per_round(self) -> int:
        return self.plan.steps // self.rounds

    @property
    def declared_size(self) -> int:
        """The declared, public number of units, by which the server weighs the site."""
        assert self.config.privacy.dataset_size is not None, "checked when it was read"
        return self.config.privacy.dataset_size


def read_settings(file: str | Path) -> SiteSettings:
    """Read the settings of a site; call it in the file's own folder.

    Raises:
        ConfigError: One line: a key, its value and the fix.
    """
    file = Path(file)
    values = read_keys(file)
    rounds, name = whole(file, values, "rounds"), values.pop("name", None)
    if not isinstance(name, str) or re.fullmatch(SITE_NAME, name) is None:
        raise ConfigError(f"{file}: name={name} is not 1 to 40 letters, digits, - or _: name the site in the record")
    values = {"workers": 0, **values}  # a site trains in a process of Flower's, for one round
    config = resolve(from_kwargs(**values))
    _refuse(file, config, values)
    plan = make_plan(config)
    if plan.steps % rounds:
        raise ConfigError(f"{file}: steps={plan.steps} is no multiple of rounds={rounds}: give one")
    return SiteSettings(file, config, plan, rounds, name)


def whole(file: Path, values: dict[str, Any], key: str, default: int | None = None) -> int:
    """Take a whole number that is 1 or more out of the values of a file.

    Raises:
        ConfigError: It is something else, or is not there and has no default.
    """
    value = values.pop(key, default)
    if type(value) is not int or value < 1:
        raise ConfigError(f"{file}: {key}={value} is not a whole number that is 1 or more: give one")
    return value


def read_keys(file: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except Exception as error:  # of the file, of YAML, of an interpolation
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{file} cannot be read ({reason}): give a YAML file of the keys of dptrain train") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} does not hold 'key: value' lines: give the keys of dptrain train")
    return {str(key): value for key, value in values.items()}


def _refuse(file: Path, config: TrainConfig, given: dict[str, Any]) -> None:
    """Refuse what a site needs and lacks, and what is not worked out for rounds."""
    if config.privacy.dataset_size is None:
        raise ConfigError(f"{file}: privacy.dataset_size is not set: declare it, the server weighs the site by it")
    if not given.get("output_dir"):
        raise ConfigError(f"{file}: output_dir is not set: name the folder that keeps the site's run between rounds")
    if config.steps is None:
        raise ConfigError(f"{file}: steps is not set: give the steps of all rounds together")
    for key, value, only in (
        ("tuning.method", config.tuning.method, "none"),
        ("privacy.noise", config.privacy.noise, "independent"),
        ("resume", config.resume, False),
        ("validation", config.validation if config.validation == PRIVATE else None, None),
    ):
        if value != only:
            raise ConfigError(f"{file}: {key}={value} is not worked out for rounds: leave it out")
    if len(devices_of(config.device)) > 1:
        raise ConfigError(f"{file}: device={config.device} is several, and a site trains on one: give one of them")


@dataclass(frozen=True)
class ServerSettings:
    """The settings of the server; of those of ``dptrain train`` it reads what makes the model and where to write.

    Attributes:
        config: Resolved: ``model``, ``data`` (its classes, and a public val split), ``trainable`` and so on.
        rounds, steps_per_round: As at every site.
        sites: How many sites the first round waits for.
        round_timeout: Seconds that a round waits for answers.
    """

    config: TrainConfig
    rounds: int
    steps_per_round: int
    sites: int
    round_timeout: int


def read_server(file: str | Path) -> ServerSettings:
    """Read the settings of the server; call it in the file's own folder.

    Raises:
        ConfigError: One line: a key, its value and the fix.
    """
    file = Path(file)
    values = read_keys(file)
    rounds, steps = whole(file, values, "rounds"), whole(file, values, "steps_per_round")
    sites, timeout = whole(file, values, "sites", 2), whole(file, values, "round_timeout", 3600)
    if private := [key for key in ("privacy", "budget", "steps", "phases") if key in values]:
        raise ConfigError(f"{file}: {private[0]} is for the sites, each of which has its own: leave it out")
    if not values.get("output_dir"):
        raise ConfigError(f"{file}: output_dir is not set: name a folder for the weights and the record")
    config = resolve(from_kwargs(**values, steps=rounds * steps))
    if config.validation == PRIVATE:
        raise ConfigError(f"{file}: validation=private is not worked out for rounds: the server's val split is public")
    return ServerSettings(config, rounds, steps, sites, timeout)
