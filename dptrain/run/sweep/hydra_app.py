"""``dptrain train`` on Hydra: where its presets are, how a path stands beside a preset, what its errors say.

Nothing here is registered at import, so a Hydra application that imports dptrain keeps its own ``model`` group.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...errors import ConfigError
from ...settings.keys import config_error, keys, nearest_key
from ...settings.resolve import from_omegaconf
from ...settings.schema import TrainConfig
from .breaks import NoBudget, SweepBroken, SweepRefused, lost
from .engines import extra_for
from .hydra_flags import hydra_flags
from .launch import SweepCallback, run_job

if TYPE_CHECKING:
    from .session import Sweep

FILE_GROUPS = ("model", "data")
_FILE_ENDINGS = (".pt", ".pt.age", ".pth", ".seal", ".yaml", ".yml")
_FILE_STARTS = ("/", "./", "../", "~")


def conf_dir() -> Path:
    """The presets: inside the package when installed from a wheel, at the repository's top when editable."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"the presets are missing, {package / 'conf'} has no config.yaml: install dptrain again")


def is_file_value(value: str) -> bool:
    """Whether ``model=value`` or ``data=value`` means a file; a bare name means a preset."""
    return value.lower().endswith(_FILE_ENDINGS) or value.startswith(_FILE_STARTS) or Path(value).is_absolute()


class FileValueSource(ConfigSource):
    """Makes ``model=path`` and ``data=path`` work beside the preset groups of the same names.

    Hydra takes ``model=x`` for the choice of ``model/x.yaml`` as soon as a group ``model`` exists. This source answers
    for every ``x`` that is a file, with a configuration that holds the one key.
    """

    @staticmethod
    def scheme() -> str:
        """The prefix of this source in Hydra's search path."""
        return "dptrain"

    def is_config(self, config_path: str) -> bool:
        """Whether ``config_path`` is one of the groups followed by a file."""
        group, _, value = config_path.partition("/")
        return group in FILE_GROUPS and is_file_value(value)

    def load_config(self, config_path: str) -> ConfigResult:
        """The configuration ``{group: file}``, at the top level."""
        group, _, value = config_path.partition("/")
        value = str(Path(value).expanduser()) if value.startswith("~") else value
        config = OmegaConf.create({group: value})
        return ConfigResult(
            provider=self.provider, path=self.full_path(), config=config, header={"package": "_global_"}
        )

    def is_group(self, config_path: str) -> bool:
        """Never: the groups themselves are the presets' folders."""
        return False

    def available(self) -> bool:
        """Always."""
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Nothing: files are not enumerated."""
        return []


class FileValueSearchPath(SearchPathPlugin):
    """Puts :class:`FileValueSource` first, so that ``data=../config.yaml`` never reaches into the presets' folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend the source."""
        search_path.prepend("dptrain", f"{FileValueSource.scheme()}://")


def run_hydra(
    arguments: list[str], job: Callable[[TrainConfig], None], report: Callable[[str, Exception], None]
) -> Sweep | None:
    """Compose the configuration of ``dptrain train ARGUMENTS`` and call ``job`` with it, once for every run of a sweep.

    Args:
        arguments: Overrides and Hydra's own flags.
        job: The work; what it raises in a sweep does not stop the other jobs. A launcher with processes of its own
            calls it there.
        report: Told of a sweep's failed job, as a description and its exception, where and when it fails.

    Returns:
        The sweep, which the caller is to end; None after a single run.

    Raises:
        ConfigError: What Hydra or OmegaConf refused, in one line.
        SweepBroken: A sweep that had begun broke off; it carries the sweep and the cause.
        Exception: What ``job`` raised, outside a sweep.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins

    ConfigStore.instance().store(name="dptrain_schema", node=TrainConfig, provider="dptrain")
    for plugin in (FileValueSource, FileValueSearchPath):
        Plugins.instance().register(plugin)
    failures: list[Exception] = []

    def task(config: Any) -> float | NoBudget | None:
        context = HydraConfig.get()
        if context.mode.name == "MULTIRUN":
            return run_job(config, context, job, report)
        try:
            job(from_omegaconf(config))
        except Exception as error:
            failures.append(error)  # not raised through Hydra, which would print lines of its own
        return None

    program, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["dptrain train", *_flags_first(arguments)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed over many lines
    SweepCallback.take()
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except BaseException as error:
        cause = error.error if isinstance(error, SweepRefused) else error
        if isinstance(cause, (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OverflowError)):
            cause = hydra_error(cause)
        sweep = SweepCallback.take()
        if sweep is not None:
            raise SweepBroken(sweep, lost(cause, sweep) or cause) from cause
        raise cause from error
    finally:
        sys.argv = program
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
    if failures:
        raise failures[0]
    return SweepCallback.take()


def _as_key(flag: str) -> str:
    """How a flag of other commands is written here, empty where there is no such key."""
    key = flag.lstrip("-").replace("-", "_")
    found = next((name for name, _ in keys() if key in (name, name.rpartition(".")[2])), None)
    return "" if found is None else f": settings are written key=value, {found}=..."


def _flags_first(arguments: list[str]) -> list[str]:
    """Flags, then overrides with their values quoted: Hydra's parser takes overrides in one stretch only."""
    parser, known = hydra_flags()
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, _ = argument.partition("=")
        action = known.get(name)
        if action is None:
            raise ConfigError(f"unknown option {name}{_as_key(name) or nearest_key(name, list(known))}")
        if "--experimental-rerun" in action.option_strings:
            raise ConfigError(f"option {name} is refused: it unpickles a file, which can run any code")
        flags.append(argument)
        if action.nargs != 0 and not equals:
            if not rest:
                raise ConfigError(f"option {name} needs a value")
            flags.append(rest.pop(0))
    found = [*flags, *quote_values(overrides)]

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message} (dptrain train --help)")

    parser.error = refuse  # type: ignore[method-assign]  # Hydra's own would print its whole usage
    parser.parse_args(found)
    return found


def quote_values(arguments: list[str]) -> list[str]:
    """Quote the text values that Hydra's grammar would stumble over, such as ``data=/photos (1)/pets.yaml``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    texts = {name for name, item in keys() if str(item.type).startswith("str")}
    groups = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    parser = OverridesParser.create()
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in groups and re.fullmatch(r"null|true|false|[-+\d.e]+", value.strip(), re.IGNORECASE):
            raise ConfigError(f"{argument}: {key} is chosen by the name of a preset; ~{key} takes the preset out")
        if equals and key in texts:
            try:
                # A comma makes a sweep, unless a file of that very name exists, or it is between devices of one run.
                one_value = Path(value).exists() or (key == "device" and "(" not in value)
                needs_quotes = parser.parse_override(argument).is_sweep_override() and one_value
            except HydraException:
                needs_quotes = True
            if needs_quotes:
                # In Hydra's quotes a backslash is itself, unless quotes follow it.
                escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value)
                argument = f"{key}='{escaped}'"
        quoted.append(argument)
    return quoted


def hydra_error(error: BaseException) -> ConfigError:
    """Say in one line what Hydra said in many: which key, which value, and the nearest valid one."""
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException):
        return _missing_preset(error, text)
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"cannot read {error.override!r}: give key=value; a value with special characters needs quotes, "
            "such as \"output_dir='runs/a,b'\""
        )
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, OverflowError):
        return ConfigError(f"a number has too many digits ({text})")
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        described = config_error(cause)
        place = re.match(r"In '(.+?)'", text)
        return ConfigError(f"{described} (in {place.group(1)})") if place else described
    if isinstance(error, ConfigCompositionException) and text.startswith("Ambiguous value"):
        argument = text.split("'")[1]
        return ConfigError(f"{argument} is several values: add -m to sweep over them, or use a list, key=[a,b]")
    return ConfigError(text)


def _missing_preset(error: MissingConfigException, text: str) -> ConfigError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return ConfigError(text)
    if (extra := extra_for(group, name)) is not None:
        return ConfigError(f"{group}={name} is not installed: pip install 'dptrain[{extra}]'")
    options = sorted(error.options or [])
    file_hint = " (a file ends in .yaml or .pt)" if group in FILE_GROUPS else ""
    return ConfigError(
        f"{group}={name} names no preset{nearest_key(name, options) or ';'} "
        f"{group} has {', '.join(options) or 'none'}{file_hint}"
    )
