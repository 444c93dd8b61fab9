"""A study: ``hydra/sweeper=optuna`` chooses the values of each trial by the scores of those before it.

Guarantee: the scores are released without noise, so they are of a val split that was declared public. Every trial is a
run of its own and is charged as one. All trials of a study have one plan, and their number is given beforehand: n of
them are the composition of n times that plan, whichever values were chosen and wherever the study ended. (Were noise or
steps chosen by scores, each trial's cost would depend on the outputs before it, and the sum of them would be no bound.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError
from ...settings.keys import keys as all_keys
from ...settings.keys import nearest_key
from ...settings.schema import PUBLIC, TrainConfig
from ...statement.results import MAP
from ..tuning import SEARCHED
from .jobs import Study

_TARGET = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
# Phases have steps of their own, and with them another plan.
_CHOSEN = tuple(key for key in SEARCHED if key != "phases")
_REFUSED = {
    "storage": "the scores of an earlier study would choose the values of this one, whose cost does not hold them",
    "study_name": "a study is of one sweep, and output_dir is its name",
    "custom_search_space": "the keys that a function chooses cannot be checked before the first trial",
}


def plan_study(config: Any, settings: TrainConfig, swept: Sequence[str]) -> Study:
    """Return what a configuration with Optuna's sweeper asks for, and have it look for the highest score.

    Args:
        config: The configuration of the sweep; its direction is set.
        settings: The settings but for the chosen ones.
        swept: The keys that the command line gives several values.

    Raises:
        ConfigError: A setting of the sweeper or a key cannot be allowed, or the score would be of private images.
    """
    hydra = config.hydra
    if hydra.sweeper["_target_"] != _TARGET:
        chosen = hydra.runtime.choices.get("hydra/sweeper")
        raise ConfigError(f"hydra/sweeper={chosen} was never tried with dptrain: use basic or optuna")
    sweeper = hydra.sweeper
    for name, why in _REFUSED.items():
        if sweeper.get(name) is not None:
            raise ConfigError(f"hydra.sweeper.{name}={sweeper[name]} is refused: {why}; leave it out")
    for text in hydra.overrides.hydra:
        name, _, value = text.partition("=")
        if name.lstrip("+") == "hydra.sweeper.direction" and value != "maximize":
            raise ConfigError(f"{text}: the score of a trial is its {MAP}, which is better when higher; leave it out")
    chosen_keys = tuple(dict.fromkeys([*swept, *(sweeper.params or {}), *(sweeper.search_space or {})]))
    if not chosen_keys:
        raise ConfigError("hydra/sweeper=optuna has nothing to choose: give a key an interval, key=interval(0.01,0.1)")
    for key in chosen_keys:
        _check_key(key)
    if not isinstance(sweeper.n_trials, int) or sweeper.n_trials < 1:
        raise ConfigError(f"hydra.sweeper.n_trials={sweeper.n_trials}: give the number of trials, 1 or more")
    _refuse_private_scores(settings)
    sweeper.direction = "maximize"
    _quiet()
    return Study(chosen_keys, sweeper.n_trials)


def _check_key(key: str) -> None:
    known = [name for name, _ in all_keys()]
    if key not in known and not any(name.startswith(f"{key}.") for name in known):
        raise ConfigError(f"unknown key {key}{nearest_key(key, known)}")
    if not any(key == name or key.startswith(f"{name}.") for name in _CHOSEN):
        raise ConfigError(
            f"{key} cannot be chosen by scores: all trials of a study have one plan and one data set; only "
            f"{', '.join(_CHOSEN)} can; leave hydra/sweeper=optuna out to sweep over it"
        )


def _refuse_private_scores(settings: TrainConfig) -> None:
    from ...detection.data import load_data
    from ..outputs import unlock

    if settings.validation not in (None, PUBLIC):
        raise ConfigError(
            f"validation={settings.validation}: the score that chooses the next trial must be computed on public "
            "images; declare a public val split (validation=public)"
        )
    if not load_data(unlock(settings).data).val:
        raise ConfigError(f"{settings.data} has no val split, and trials are chosen by their score there: add one")


def _quiet() -> None:
    """Optuna and its sweeper say nothing that the table does not say."""
    import logging

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)
