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

from ...errors import BudgetError, ConfigError
from ...settings.left_open import steps_are_open
from ...settings.resolve import from_omegaconf
from ...settings.schema import FREE_TO_CHANGE, PRIVATE, TrainConfig
from ...support.released import found_start
from ...training.journal import JOURNAL
from ..tracking import PARENT_RUN
from .breaks import NoBudget, SweepRefused
from .engines import go_to, is_hydras_own, keeps_lines, launcher_of, refuse_secrets, set_up
from .jobs import BEGUN, FINISHED, Study, SweepJob, SweepRecord, comparable

if TYPE_CHECKING:
    from .session import Sweep

logger = logging.getLogger(__name__)

_OF_THE_SWEEP = ("output_dir", "resume", "tracking", "tuning", "budget")


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

            launcher_of(config.hydra)
            refuse_secrets(config)
            plan = planned(config)
            settings = _settings(config)
            refuse_tuning(settings)
            starts = [settings.model] if isinstance(plan, Study) else [str(job.settings["model"]) for job in plan]
            for start in dict.fromkeys(starts):  # each once, before any job pays
                found_start(start, download=settings.download)
            folder = _relative(Path(str(config.hydra.sweep.dir)))
            sweep = Sweep.begin(folder, plan, settings, keeps_lines(config.hydra))
            set_up(config, folder)
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


def planned(config: Any) -> list[SweepJob] | Study:
    """The jobs of a sweep by Hydra's basic sweeper, composed; or what is planned of a study.

    Raises:
        ConfigError: A key is swept that belongs to the sweep as a whole, or that changes nothing of what is released.
        HydraException: A job cannot be composed.
    """
    loader = GlobalHydra.instance().config_loader()
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(
        [*params, *OmegaConf.to_container(config.hydra.overrides.task)]
    )
    swept = [override.get_key_element() for override in overrides if override.is_sweep_override()]
    for key in swept:
        if key.partition(".")[0] in _OF_THE_SWEEP:
            raise ConfigError(f"{key} cannot be swept: it belongs to the sweep as a whole; give it one value")
    if not is_hydras_own(config.hydra.sweeper, "Sweeper"):
        from .study import plan_study

        settings = _settings(config)
        _refuse_steps_by_time(steps_are_open(settings))
        return plan_study(config, settings, swept)
    jobs, open_steps = [], False
    for number, chosen in enumerate(itertools.product(*_choices(overrides).values())):
        values = dict(argument.split("=", 1) for argument in chosen if "=" in argument)
        settings = _settings(loader.load_sweep_config(config, list(chosen)))
        open_steps = open_steps or steps_are_open(settings)
        texts = {key.lstrip("+"): values[key].strip("'\"") for key in swept}
        jobs.append(SweepJob(number, texts, comparable(settings)))
    _refuse_units(jobs)
    _refuse_private_val(jobs)
    _refuse_steps_by_time(open_steps)
    for key in swept:
        if key.partition(".")[0] in FREE_TO_CHANGE:  # time too, now that all jobs have their steps
            raise ConfigError(
                f"{key} cannot be swept: it changes nothing of what a run releases, and every job would be charged; "
                "give it one value"
            )
    return jobs


def _refuse_private_val(jobs: Sequence[SweepJob]) -> None:
    """Whoever chooses among jobs has seen the val images through all of them, which a sweep's tables do not add up."""
    if any(job.settings.get("validation") == PRIVATE for job in jobs):
        raise ConfigError(
            "validation=private in a sweep: what all jobs cost the val images is not added up in its tables; take "
            "validation=public or off here, and train the job that you choose with validation=private"
        )


def _refuse_steps_by_time(open_steps: bool) -> None:
    """Two measurements of a machine's speed differ, and so would the plans that they make."""
    if open_steps:
        raise ConfigError(
            "steps is not set, and a sweep compares runs that do not depend on how busy the machine was: give steps "
            "and privacy.expected_batch_size; a single run with time=... says what fits"
        )


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
) -> float | NoBudget | None:
    """Run one job of a sweep and note how it ended; what it raises stops no other job.

    A launcher may call it again for a job whose process was lost: it goes on where that one was.

    Args:
        config: The job's composed configuration.
        context: Hydra's own part of it.
        job: The work.
        report: Told of a failure, as a description and its exception, unless the launcher keeps what is said.

    Returns:
        mAP50-95 on the public val split, which a study goes by; None where there is none.

    Raises:
        SystemExit: The job was asked to stop, and the sweep stops with it.
    """
    go_to(context.runtime.cwd)
    folder, number = _relative(Path(context.runtime.output_dir)), int(context.job.num)
    record = SweepRecord.read(folder.parent) or SweepRecord(folder.parent)
    of_job = record.job(number, context.overrides.task)
    label = of_job.label
    told = {"swept": of_job.swept} if record.study else {}
    try:
        settings = from_omegaconf(config)
        settings.output_dir = str(folder)
        if record.state(number) == FINISHED:
            logger.info("job %d (%s) is done already", number, label)
            return _score(folder)
        record.tell(number, BEGUN, label=label, **told)  # a trial whose process is lost counts, too
        settings.resume = (folder / JOURNAL).exists()
        settings.tracking.run_name = settings.tracking.run_name or label
        job(settings)
        record.tell(number, FINISHED, label=label, **told)
    except Exception as error:
        if not any(folder.iterdir()):  # Hydra made it; a job that never began leaves nothing behind
            folder.rmdir()
        record.tell_failure(number, label, error, **told)
        if record.study and isinstance(error, BudgetError):
            return NoBudget(error)
        if not keeps_lines(context):
            report(f"job {number} ({label})", error)
        return None
    except SystemExit as stopped:
        record.tell(number, BEGUN, label=label, **told)
        if isinstance(stopped.code, int):  # the launcher's own: it starts the job again, here or elsewhere
            raise
        total = f" of {len(record.jobs)}" if record.jobs else ""
        raise SystemExit(
            f"job {number}{total} ({label}) was {str(stopped).partition(';')[0]}; resume the whole sweep by the "
            f"same command and output_dir={record.folder} resume=true"
        ) from stopped
    return _score(folder)


def _score(folder: Path) -> float | None:
    from ...statement.results import MAP  # here, since they import the accountant, and --help needs none
    from .table import last_metrics

    return last_metrics(folder / "results.csv").get(MAP)


def _settings(config: Any) -> TrainConfig:
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return from_omegaconf(own)


def _relative(folder: Path) -> Path:
    folder = folder.absolute()
    return Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder
