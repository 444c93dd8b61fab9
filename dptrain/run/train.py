"""``dptrain.train``: one run, or one tuning, from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..datasets.contents import files_held
from ..datasets.groups import GroupsConfig
from ..datasets.own import Dataset, find_own, held
from ..errors import ConfigError
from ..privacy.plan import PrivacyPlan
from ..settings import resolve as settings
from ..settings.schema import TrainConfig
from ..settings.ultralytics import as_keywords
from ..support.launched import launched
from ..support.released import found_start
from .by_time import settle_steps
from .job import Run, TrainResult
from .outputs import unlock
from .prepare import prepare
from .processes import follow, gathered, refuse_unshared
from .progress import make_console
from .public_start import declared_start
from .watcher import Watcher


def train(
    model: str | Path,
    data: str | Path | Dataset | Mapping[str, Dataset],
    plan: PrivacyPlan | None = None,
    **options: Any,
) -> TrainResult:
    """Train a detector with differential privacy.

    Guarantee: what the run releases is (``result.epsilon``, ``plan.delta``)-differentially private for adding or
    removing one training image, or one group of them (``plan.unit``; of ``person`` as docs/units.md says), under the
    assumptions that ``result.statement`` lists.

    Args:
        model: A model description (``yolo26n.yaml``) or a checkpoint trained on public data (``.pt``, ``.pt.age``); the
            name of a released one, such as ``yolo26n.pt``, is fetched where it is not here.
        data: An Ultralytics ``data.yaml``; or a :class:`Dataset` of your own, and with ``{"train": it, "val": public}``
            another to validate on. It is read in this process (``workers`` is 0), and resumed with a ledger.
        plan: The privacy plan; or leave it out and give ``privacy={"epsilon": 8, "dataset_size": 10000}``.
        **options: The keys of ``dptrain train``; a section is a dict, such as ``optimizer={"name": "sgd", "lr": 0.1}``.
            Ultralytics' words, such as ``epochs`` and ``lr0``, are taken where they can be.

    Raises:
        DptrainError: One line with what is wrong and the fix, before the first step wherever that is possible.
        SystemExit: In every process but the first that torchrun started, at the end of the run: what follows the call
            happens once.
    """
    if isinstance(data, str | Path):
        config = settings.from_kwargs(plan=plan, model=str(model), data=str(data), **as_keywords(options))
        return train_from_config(settings.resolve(config))
    with held(data) as place:
        config = settings.from_kwargs(plan=plan, model=str(model), data=str(place), **as_keywords(options))
        return train_from_config(settings.resolve(_of_own(config, "workers" in options)))


def _of_own(config: TrainConfig, workers_given: bool) -> TrainConfig:
    """Settle what follows from a dataset in memory, and refuse what it cannot have."""
    own, privacy = find_own(Path(config.data)), config.privacy
    assert own is not None
    if workers_given and config.workers:
        raise ConfigError(
            f"workers={config.workers}: a dataset of your own is read in this process, so leave workers out"
        )
    if config.resume and config.budget.url is None:
        raise ConfigError(
            "resume=true and budget.url=null: only a ledger tells whether a dataset of your own is the one that the "
            "run began with; start a new run"
        )
    if privacy.groups != GroupsConfig():
        raise ConfigError("privacy.groups is of image files: unit(index) of your dataset names an item's group")
    if privacy.unit == "person":
        raise ConfigError("privacy.unit=person is of image files and a table: give a data.yaml")
    if (privacy.unit == "group") != own.has_units:
        fix = (
            "give it unit(index), the name of an item's group" if privacy.unit == "group" else "set privacy.unit=group"
        )
        has = "no" if privacy.unit == "group" else "a"
        raise ConfigError(f"privacy.unit={privacy.unit}, and the dataset has {has} method unit: {fix}")
    groups = GroupsConfig(folder=1) if own.has_units else privacy.groups
    return replace(config, workers=0, privacy=replace(privacy, groups=groups))


def train_from_config(config: TrainConfig, watcher: Watcher | None = None) -> TrainResult:
    """Do what :func:`train` does, from resolved settings; ``watcher`` is told of it at public times."""
    if (launch := launched()) is not None and launch.rank:
        follow(launch)  # the end of this process
    with files_held():
        return _train(config, watcher)


def opened_start(config: TrainConfig) -> TrainConfig:
    """Fetch a released start that is not here, unseal what is sealed, and fill in what data made the start."""
    config = unlock(replace(config, model=found_start(config.model, download=config.download)))
    return replace(config, public_data=declared_start(config.model)) if config.public_data is None else config


def _train(config: TrainConfig, watcher: Watcher | None) -> TrainResult:
    refuse_unshared(config)
    config = opened_start(config)
    if config.tuning.method != "none":
        from .tuning import tune

        if watcher is not None:
            raise ConfigError("tuning.method: only the winner of a tuning may be seen, so none of its runs is watched")
        return tune(config)
    config = settle_steps(config)
    plan = settings.make_plan(config)
    with gathered(config) as group:
        return Run(
            prepare(settings.with_plan(config, plan), plan, group=group), make_console(), watcher=watcher
        ).execute()
