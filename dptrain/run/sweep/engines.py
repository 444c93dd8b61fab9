"""Hydra's launchers, as far as a sweep may use them: what each is told, and what may not be handed to it.

A launcher with processes elsewhere pickles the settings and keeps the lines of its jobs in files. So no password is in
the settings, and what those files tell is for the data's owner only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict

from ...errors import ConfigError
from ..owner import OF_A_SWEEP, owner_folder

BASIC, JOBLIB, LOCAL, SLURM, RAY = "basic", "joblib", "submitit_local", "submitit_slurm", "ray"
# By their classes, since a preset of the user's own may give one of them another name.
_LAUNCHERS = {
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": JOBLIB,
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": LOCAL,
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": SLURM,
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": RAY,
}
# The extra of this package that brings each.
_EXTRAS = {
    "hydra/launcher": {JOBLIB: "sweep", LOCAL: "submitit", SLURM: "submitit", RAY: "ray"},
    "hydra/sweeper": {"optuna": "optuna"},
}
_FOLDER = "submitit"  # in the owner's folder
# A password in an address, unless it is looked up in the environment; the key of a ledger, or of a sealed file, itself.
_SECRET = re.compile(
    r"://[^/@\s:]*:(?!\$\{)[^/@\s]+@|[?&]password=(?!\$\{)|^\s*[0-9a-f]{64}\s*$|AGE-SECRET-KEY-1", re.IGNORECASE
)


def extra_for(group: str, name: str) -> str | None:
    """Return the extra to install for a launcher or a sweeper that is not there; None if dptrain knows none."""
    return _EXTRAS.get(group, {}).get(name)


def is_hydras_own(node: Any, kind: str) -> bool:
    """Whether a part of Hydra's configuration names the Launcher or the Sweeper that Hydra itself brings."""
    target = str(node["_target_"])
    return target.startswith("hydra.") and target.endswith(f".Basic{kind}")


def launcher_of(hydra: Any) -> str:
    """Return which launcher Hydra's part of a configuration names.

    Raises:
        ConfigError: One that was never tried.
    """
    if is_hydras_own(hydra.launcher, "Launcher"):
        return BASIC
    target = str(hydra.launcher["_target_"])
    if target not in _LAUNCHERS:
        chosen, known = hydra.runtime.choices.get("hydra/launcher"), (BASIC, *_LAUNCHERS.values())
        raise ConfigError(f"hydra/launcher={chosen} was never tried with dptrain: use one of {', '.join(known)}")
    return _LAUNCHERS[target]


def keeps_lines(hydra: Any) -> bool:
    """Whether the launcher keeps the lines of its jobs in files, so that they may not tell why a job failed."""
    return launcher_of(hydra) not in (BASIC, JOBLIB)


def refuse_secrets(config: Any) -> None:
    """Refuse a password or a key among the settings of a sweep: Hydra and its launchers write them down as they are.

    Raises:
        ConfigError: It names the setting, and shows nothing of it.
    """
    settings = OmegaConf.to_container(config, resolve=False)
    assert isinstance(settings, dict)
    hydra = settings.pop("hydra")
    for key, value in _texts({**settings, "hydra": hydra}):  # a setting is found by its own name first
        if _SECRET.search(value):
            raise ConfigError(
                f"{key} holds a password or a key, and Hydra writes the settings of a sweep to files as they were "
                "given: leave it to ~/.pgpass or PGPASSWORD, or name a variable of the environment, '${oc.env:NAME}'"
            )


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value, key)
    elif isinstance(node, str):
        yield key, node


def set_up(config: Any, folder: Path) -> None:
    """Tell the launcher what it must know of the sweep in ``folder``.

    Raises:
        ConfigError: A setting of the launcher cannot be another one.
    """
    launcher = launcher_of(config.hydra)
    if launcher in (LOCAL, SLURM):
        if any(text.lstrip("+").startswith("hydra.launcher.submitit_folder=") for text in config.hydra.overrides.hydra):
            raise ConfigError(
                "hydra.launcher.submitit_folder cannot be chosen: what submitit writes is for the data's owner only, "
                f"and goes to {folder / 'owner' / _FOLDER}; leave it out"
            )
        with open_dict(config):
            config.hydra.launcher.submitit_folder = str(owner_folder(folder, OF_A_SWEEP) / _FOLDER / "%j")
    if launcher == RAY:  # a worker starts in another folder where the cluster was there before
        place = str(folder.absolute()).replace("\\", "\\\\").replace("'", "\\'")
        with open_dict(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{place}'")


def go_to(folder: str) -> None:
    """Work in the folder in which the sweep was started, wherever a launcher started this process.

    Raises:
        ConfigError: This machine has no such folder.
    """
    if Path.cwd() == Path(folder):
        return
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be entered on this machine ({error.strerror}): the jobs of a sweep need the folder in "
            "which it was started, at one path on all machines"
        ) from error
