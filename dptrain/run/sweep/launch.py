"""Between Hydra and a sweep: which jobs its command line means, and how one of them is run, in whichever process."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, open_dict

from ...errors import ConfigError
from ...settings.left_open import steps_are_open
from ...settings.resolve import from_omegaconf
from ...settings.schema import FREE_TO_CHANGE, TrainConfig
from ..tracking import PARENT_RUN
from .jobs import BEGUN, FINISHED, SweepJob, SweepRecord, comparable

if TYPE_CHECKING:
    from .session import Sweep

logger = logging.getLogger(__name__)

_OF_THE_SWEEP = ("output_dir", "resume", "tracking", "tuning", "budget")


class SweepRefused(BaseException):
    """Carries an error out of a callback: Hydra turns every other exception there into a warning and goes on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class SweepBroken(BaseException):
    """A sweep broke off after it had begun: what its jobs have spent is still to be told.

    Attributes:
        sweep: To be ended by whoever catches this.
        cause: Why: an error, or the wish to stop.
    """

    def __init__(self, sweep: Sweep, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.sweep, self.cause = sweep, cause


class SweepCallback(Callback):
    """Opens the sweep before its first job; :func:`dptrain.run.sweep.hydra_app.run_hydra` closes it, also one that
    broke off.
    """

    current: Sweep | None = None

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Check the folder and the jobs, open MLflow's parent run and hand its id to every job.

        Raises:
            SweepRefused: With the error of what was refused.
        """
        try:
            from .session import Sweep

            jobs = planned_jobs(config)
            settings = _settings(config)
            refuse_tuning(settings)
            sweep = Sweep.begin(_relative(Path(str(config.hydra.sweep.dir))), jobs, settings)
        except Exception as error:
            raise SweepRefused(error) from error
        SweepCallback.current = sweep
        if sweep.tracker.run_id:  # a job's environment is part of its configuration, so it reaches every launcher
            with open_dict(config):
                config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{PARENT_RUN}='{sweep.tracker.run_id}'")

    @classmethod
    def take(cls) -> Sweep | None:
        """The open sweep, or None; it is then the caller's to close."""
        sweep, cls.current = cls.current, None
        return sweep


def planned_jobs(config: Any) -> list[SweepJob] | None:
    """The jobs of a sweep by Hydra's basic sweeper, composed; None for a sweeper that chooses as it goes.

    Raises:
        ConfigError: A key is swept that belongs to the sweep as a whole, or that changes nothing of what is released.
        HydraException: A job cannot be composed.
    """
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return None
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(
        [*params, *OmegaConf.to_container(config.hydra.overrides.task)]
    )
    swept = [override.get_key_element() for override in overrides if override.is_sweep_override()]
    for key in swept:
        if key.partition(".")[0] in _OF_THE_SWEEP:
            raise ConfigError(f"{key} cannot be swept: it belongs to the sweep as a whole; give it one value")
    jobs, open_steps = [], False
    for number, chosen in enumerate(itertools.product(*_choices(overrides).values())):
        values = dict(argument.split("=", 1) for argument in chosen if "=" in argument)
        settings = _settings(loader.load_sweep_config(config, list(chosen)))
        open_steps = open_steps or steps_are_open(settings)
        texts = {key.lstrip("+"): values[key].strip("'\"") for key in swept}
        jobs.append(SweepJob(number, texts, comparable(settings)))
    _refuse_units(jobs)
    if open_steps:  # two measurements of a machine's speed differ, and so would the plans that they make
        raise ConfigError(
            "steps is not set, and a sweep compares runs that do not depend on how busy the machine was: give steps "
            "and privacy.expected_batch_size; a single run with time=... says what fits"
        )
    for key in swept:
        if key.partition(".")[0] in FREE_TO_CHANGE:  # time too, now that all jobs have their steps
            raise ConfigError(
                f"{key} cannot be swept: it changes nothing of what a run releases, and every job would be charged; "
                "give it one value"
            )
    return jobs


def _choices(overrides: Sequence[Override]) -> dict[str, list[str]]:
    """What the jobs get for every key, as the basic sweeper takes it: the last override of a key counts."""
    found = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            found[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            found[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(f"{override.input_line} has no list of values: give them, {key}=a,b")
    return found


def _refuse_units(jobs: Sequence[SweepJob]) -> None:
    """The composed epsilon of a sweep is of one unit: of images, or of groups that are made in one way."""
    for job in jobs:
        for key, value in job.settings.items():
            known = jobs[0].settings[key]
            if (key == "privacy.unit" or key.startswith("privacy.groups.")) and value != known:
                raise ConfigError(
                    f"{key}={value} and {key}={known} in one sweep: what its runs cost together is of one unit; "
                    "make a sweep for each"
                )


def refuse_tuning(settings: TrainConfig) -> None:
    """A grid releases every run, so random stopping has nothing to offer it."""
    if settings.tuning.method != "none":
        raise ConfigError(
            f"tuning.method={settings.tuning.method} and -m cannot be combined: the bound of Papernot and Steinke "
            "(2022) holds for a random number of runs of which only the winner is seen, and a sweep runs a fixed grid "
            "and shows all of it; leave -m out and give the candidates as tuning.search"
        )


def run_job(
    config: Any, context: Any, job: Callable[[TrainConfig], None], report: Callable[[str, Exception], None]
) -> None:
    """Run one job of a sweep and note how it ended; what it raises stops no other job.

    Args:
        config: The job's composed configuration.
        context: Hydra's own part of it.
        job: The work.
        report: Told of a failure, as a description and its exception.

    Raises:
        SystemExit: The job was asked to stop, and the sweep stops with it.
    """
    folder, number = _relative(Path(context.runtime.output_dir)), int(context.job.num)
    record = SweepRecord.read(folder.parent) or SweepRecord(folder.parent)
    planned = next((item for item in record.jobs if item.number == number), None)
    label = planned.label if planned else " ".join(context.overrides.task)
    try:
        settings = from_omegaconf(config)
        settings.output_dir = str(folder)
        if settings.resume:
            state = record.state(number)
            if state == FINISHED:
                logger.info("job %d (%s) is done already", number, label)
                return
            settings.resume = state == BEGUN
        settings.tracking.run_name = settings.tracking.run_name or label
        job(settings)
        record.tell(number, FINISHED, label=label)
    except Exception as error:
        if not any(folder.iterdir()):  # Hydra made it; a job that never began leaves nothing behind
            folder.rmdir()
        record.tell_failure(number, label, error)
        report(f"job {number} ({label})", error)
    except SystemExit as stopped:
        record.tell(number, BEGUN, label=label)
        total = f" of {len(record.jobs)}" if record.jobs else ""
        raise SystemExit(
            f"job {number}{total} ({label}) was {str(stopped).partition(';')[0]}; resume the whole sweep by the "
            f"same command and output_dir={record.folder} resume=true"
        ) from stopped


def _settings(config: Any) -> TrainConfig:
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return from_omegaconf(own)


def _relative(folder: Path) -> Path:
    folder = folder.absolute()
    return Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder
