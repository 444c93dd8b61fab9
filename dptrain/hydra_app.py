"""``dptrain train`` on Hydra: where its presets are, how a path stands beside a preset, what its errors say.

Nothing here is registered at import, so a Hydra application that imports dptrain keeps its own ``model`` group.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.experimental.callback import Callback
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .config import from_omegaconf
from .errors import ConfigError
from .schema import TrainConfig, config_error, keys, nearest_key

FILE_GROUPS = ("model", "data")
_FILE_ENDINGS = (".pt", ".pth", ".yaml", ".yml")
_FILE_STARTS = ("/", "./", "../", "~")


def conf_dir() -> Path:
    """The presets: inside the package when installed from a wheel, at the repository's top when editable."""
    package = Path(__file__).resolve().parent
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


class SweepFolder(Callback):
    """Remembers the folder that Hydra makes for a sweep, to take it away again when no job could be composed."""

    made: Path | None = None

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Note the folder unless it was there before."""
        folder = Path(str(config.hydra.sweep.dir))
        SweepFolder.made = None if folder.exists() else folder

    @classmethod
    def remove_unused(cls) -> None:
        """Remove the folder if Hydra's own note, multirun.yaml, is all it holds."""
        folder, cls.made = cls.made, None
        if folder is not None and folder.is_dir() and {file.name for file in folder.iterdir()} <= {"multirun.yaml"}:
            (folder / "multirun.yaml").unlink(missing_ok=True)
            folder.rmdir()


def run_hydra(
    arguments: list[str], job: Callable[[TrainConfig], None], report: Callable[[str, Exception], None]
) -> tuple[list[Exception], int]:
    """Compose the configuration of ``dptrain train ARGUMENTS`` and call ``job`` with it, once for every run of a sweep.

    Args:
        arguments: Overrides and Hydra's own flags.
        job: The work; what it raises in a sweep does not stop the other jobs.
        report: Told of a sweep's failed job, as a description and its exception, when it fails.

    Returns:
        The sweep's failures and its number of jobs. (A launcher with processes of its own has the first failure
        raised here instead.)

    Raises:
        ConfigError: What Hydra or OmegaConf refused, in one line.
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
    jobs: list[str] = []
    process = os.getpid()

    def task(config: Any) -> None:
        context = HydraConfig.get()
        is_sweep = context.mode.name == "MULTIRUN"
        folder = Path(context.runtime.output_dir)
        jobs.append(f"job {context.job.num} ({' '.join(context.overrides.task)})" if is_sweep else "")
        try:
            settings = from_omegaconf(config)
            if is_sweep:
                settings.output_dir = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
            job(settings)
        except Exception as error:
            if is_sweep and not any(folder.iterdir()):  # Hydra made it; a job that never began leaves nothing behind
                folder.rmdir()
            if is_sweep:
                report(jobs[-1], error)
            if os.getpid() != process:
                raise
            failures.append(error)  # not raised through Hydra, which would print lines of its own

    program, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["dptrain train", *_flags_first(arguments)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed over many lines
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        if not jobs:
            SweepFolder.remove_unused()
        raise hydra_error(error) from error
    finally:
        sys.argv = program
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
    if jobs == [""] and failures:
        raise failures[0]
    return failures, len(jobs)


def _flags_first(arguments: list[str]) -> list[str]:
    """Flags, then overrides with their values quoted: Hydra's parser takes overrides in one stretch only."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, _ = argument.partition("=")
        action = parser._option_string_actions.get(name)
        if action is None:
            raise ConfigError(f"unknown option {name}{nearest_key(name, list(parser._option_string_actions))}")
        flags.append(argument)
        if action.nargs != 0 and not equals:
            if not rest:
                raise ConfigError(f"option {name} needs a value")
            flags.append(rest.pop(0))
    return [*flags, *quote_values(overrides)]


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
                # A comma makes a sweep, unless a file of that very name exists.
                needs_quotes = parser.parse_override(argument).is_sweep_override() and Path(value).exists()
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
    options = sorted(error.options or [])
    file_hint = " (a file ends in .yaml or .pt)" if group in FILE_GROUPS else ""
    return ConfigError(
        f"{group}={name} names no preset{nearest_key(name, options) or ';'} "
        f"{group} has {', '.join(options) or 'none'}{file_hint}"
    )
