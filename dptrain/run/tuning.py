"""Choosing settings at a price that is accounted: random stopping (Papernot and Steinke 2022).

Looking at k runs costs the composition of k runs. If the number of runs is itself random and secret, and all that is
ever seen is the best of them, the price is far below that of all of them: theorem 2 for the geometric and the
logarithmic distribution (truncated negative binomial with shape 1 and 0), theorem 6 for Poisson. The bound holds for
that procedure only, so a fixed number of runs, a grid, or a look at a loser is refused or made impossible here.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_accounting.dp_event import DpEvent
from omegaconf import OmegaConf
from rich.console import Console

from ..errors import ConfigError, PrivacyError
from ..privacy import accounting, random_stopping
from ..privacy.random_stopping import draw_runs
from ..settings import resolve as settings
from ..settings.keys import keys, nearest_key
from ..settings.limits import clipping_of
from ..settings.schema import TrainConfig
from ..statement.results import MAP, read_rows
from ..support.files import even_times, write_text
from ..support.words import shown
from .folder import RunFolder
from .notes import tell_owner
from .progress import make_console
from .tracking import NoTracker, Tracker

if TYPE_CHECKING:
    from ..privacy.plan import PrivacyPlan
    from ..statement.start_runs import StartRun
    from .charge import RunCharge
    from .job import TrainResult
    from .prepare import Prepared

logger = logging.getLogger(__name__)

SEARCHED = (
    "model", "imgsz", "trainable", "phases", "norm", "head", "new_classes", "lora", "loss", "optimizer", "schedule",
    "ema", "augment", "privacy.clip_norm", "privacy.clipping",
)  # fmt: skip
_PARTIAL = "tuning.partial"  # in output_dir, while runs go on; holds the best so far and the one at work


@dataclass(frozen=True)
class Tuning:
    """What is promised of a tuning, before its first run.

    Guarantee: releasing the winner (its settings, every iterate, its metrics) is (``epsilon``, delta)-differentially
    private for adding or removing one unit, if the number of runs and all other runs stay secret.

    Attributes:
        candidates: Equally likely; each run draws one of them afresh.
        plan: What every run follows, but for its clip norm and its clip rule.
        distribution: Of the number of runs.
        mean: Of that number.
        epsilon: RDP, at the plan's delta.
    """

    candidates: tuple[TrainConfig, ...]
    plan: PrivacyPlan
    distribution: str
    mean: float

    @property
    def event(self) -> DpEvent:
        """All of the tuning as one event: this is what a budget is charged with, once, before the first run."""
        return random_stopping.random_stopping_event(self.plan.event(), self.mean, self.distribution)

    @property
    def epsilon(self) -> float:
        """RDP epsilon of releasing the winner."""
        return accounting.epsilon(self.event, self.plan.delta)

    def facts(self, search: Mapping[str, Any]) -> dict[str, Any]:
        """The ``tuning`` section of the winner's privacy statement."""
        return {
            "method": "random stopping (Papernot and Steinke 2022)",
            "runs": f"secret, {self.distribution} with mean {self.mean:g}",
            "distribution": self.distribution,
            "mean_runs": self.mean,
            "epsilon": self.epsilon,
            "epsilon_of_one_run": self.plan.epsilon(),
            "delta": self.plan.delta,
            "candidates": {key: list(values) for key, values in search.items()},
            "score": f"{MAP} on the public validation split, after the last step",
            "note": (
                "The guarantee is that of the whole tuning, the choice included. Every run drew its candidate "
                "uniformly; the other runs and their number were shown to nobody. How long it all took is not covered."
            ),
        }


def tune(config: TrainConfig) -> TrainResult:
    """Run a secret, random number of runs and keep the best, as ``tuning`` of the resolved configuration says.

    What can be refused is refused before the first run. A tuning that breaks off releases nothing, keeps nothing and
    cannot be resumed, and all of its budget stays spent.

    Raises:
        ConfigError: The search space, the folder or the validation split does not allow it.
        PrivacyError: The number of runs came out as 0 (Poisson), or no run gave weights: nothing is released.
        SystemExit: It was asked to stop.
    """
    from ..statement.start_runs import each_once
    from .facts import runs_behind
    from .publishing import config_text, draw, open_tracker, publish

    tuning = plan_tuning(config)
    facts = tuning.facts(config.tuning.search)
    output = Path(config.output_dir)
    _refuse(config, output)
    with _silence():
        first = _try_candidates(tuning, output)
        behind = each_once(
            run for candidate in tuning.candidates for run in runs_behind(Path(candidate.model), candidate.start_runs)
        )
    console = make_console()
    _announce(tuning, console)
    plan = tuning.plan
    charge = replace(first.charge, budget=config.budget, event=tuning.event, delta=plan.delta, steps=None, whole=True)
    charge.prepare()
    if config.tracking.enabled:
        Tracker.check(config.tracking.uri, config.tracking.experiment)
    console.print(charge.begin(output), soft_wrap=True, markup=False)
    runs = draw_runs(tuning.distribution, tuning.mean, secrets.SystemRandom())
    try:
        with console.status("runs are in progress; how many, and how far, stays secret"):
            best = _best_of(runs, tuning, facts, output / _PARTIAL, charge, behind)
        if best is None:
            raise PrivacyError(
                "nothing is released: no run gave weights, or the number of runs was drawn as 0, which the Poisson "
                "distribution allows; the tuning's whole epsilon stays spent"
            )
        result, winner = best
        _reveal(output, output / _PARTIAL / "best")
    except SystemExit:
        raise SystemExit(
            f"the tuning was stopped: nothing is released, it cannot be resumed, and epsilon {shown(tuning.epsilon)} "
            "stays spent"
        ) from None
    finally:
        # All of it, also where nothing is released: that no run gave weights was seen.
        charge.settle(1, "finished" if (output / "weights").is_dir() else "failed")
        shutil.rmtree(output / _PARTIAL, ignore_errors=True)
        if output.is_dir() and not any(output.iterdir()):
            output.rmdir()
    revealed = replace(winner, output_dir=config.output_dir, tracking=config.tracking)
    write_text(output / "config.yaml", config_text(revealed))
    tell_owner(output, first.notes)
    # Only now, so that the run in MLflow does not tell by its duration how many runs there were.
    tracker: Tracker = NoTracker()
    if config.tracking.enabled:
        tracker = open_tracker(revealed, tuning.plan, output, first.data_name, True, facts)
    with tracker:
        rows = read_rows(output / "results.csv")
        for row in rows:
            tracker.metrics({key: value for key, value in row.items() if key != "step"}, int(row["step"]))
        tracker.metrics({"dp/epsilon_tuning": tuning.epsilon}, int(rows[-1]["step"]))
        draw(revealed, output, first.data_name)
        publish(output, tracker)
    even_times(output)
    chosen = ", ".join(f"{key}={OmegaConf.select(OmegaConf.structured(revealed), key)}" for key in config.tuning.search)
    console.print(
        f"done: the winner has {chosen}, mAP50-95 {result.metrics[MAP]:.3f}; epsilon {shown(tuning.epsilon)} at delta "
        f"{tuning.plan.delta:.3g}, the choice included; {output / 'weights' / result.weights.name}",
        soft_wrap=True,
        markup=False,
    )
    return replace(result, weights=output / "weights" / result.weights.name, epsilon=tuning.epsilon, output_dir=output)


def plan_tuning(config: TrainConfig) -> Tuning:
    """Return what a resolved configuration asks for, with every candidate checked.

    Raises:
        ConfigError: A key cannot be searched, a candidate is not valid, or candidates differ in what a run costs.
    """
    search = config.tuning.search
    if not search:
        raise ConfigError(
            "tuning.search is empty: give the candidates, such as '+tuning.search={optimizer.lr:[1e-3,3e-3]}'"
        )
    for key, values in search.items():
        _check_key(key)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"tuning.search has {key}={values}: give a list of values, such as [1e-3,3e-3]")
        if key == "phases" and not all(isinstance(value, list) and value for value in values):
            raise ConfigError(f"tuning.search has phases={values}: every candidate is a list of phases, at least one")
    candidates: list[TrainConfig] = []
    plans: list[PrivacyPlan] = []
    for number, values in enumerate(itertools.product(*search.values())):
        chosen = dict(zip(search, values, strict=True))
        with _only_the_first(number):
            candidate = _candidate(config, chosen)
            plan = settings.make_plan(candidate)
        candidates.append(settings.with_plan(candidate, plan))
        plans.append(plan)
        if (plan.event(), plan.delta) != (plans[0].event(), plans[0].delta):
            raise ConfigError(
                f"the candidate {chosen} costs another epsilon than the first one: the bound needs runs that all have "
                "the same guarantee; fix privacy.sample_rate, or leave that key out of tuning.search"
            )
    return Tuning(tuple(candidates), plans[0], config.tuning.distribution, config.tuning.mean_runs)


def _check_key(key: str) -> None:
    known = [name for name, _ in keys()]
    if key not in known:
        raise ConfigError(f"tuning.search has an unknown key {key}{nearest_key(key, known)}")
    if any(key == name or key.startswith(f"{name}.") for name in SEARCHED):
        return
    if key == "steps" or key.startswith("privacy."):
        raise ConfigError(
            f"{key} cannot be searched: it changes what a run costs, and the bound of Papernot and Steinke (2022) "
            "needs runs that all have the same guarantee; sweep over it with -m, at the composed cost"
        )
    raise ConfigError(f"{key} cannot be searched: only {', '.join(SEARCHED)} can")


def _candidate(config: TrainConfig, chosen: Mapping[str, Any]) -> TrainConfig:
    node = OmegaConf.structured(config)
    for key, value in chosen.items():
        OmegaConf.update(node, key, value)
    return settings.resolve(settings.from_omegaconf(node))


def _refuse(config: TrainConfig, output: Path) -> None:
    """What makes a tuning impossible, whatever its candidates."""
    if config.resume:
        raise ConfigError("resume=true, and a tuning cannot be resumed: what it had spent stays spent; start a new one")
    if config.seed is not None:
        raise ConfigError(f"seed={config.seed} and tuning cannot be combined: every run would draw the same noise")
    if config.validation != "public":
        raise ConfigError(
            f"validation={config.validation}: the score that picks the winner must be computed on public images; "
            "declare a public val split (validation=public)"
        )
    if (output / _PARTIAL).exists():
        raise ConfigError(f"{output / _PARTIAL} is left from a tuning that was killed: remove {output}, unread")
    RunFolder(output, False).check()


def _try_candidates(tuning: Tuning, output: Path) -> Prepared:
    """Find out before the first run whether every candidate could start; return the first as it is prepared."""
    from ..detection.data import load_data
    from .build import model_of
    from .prepare import PaidByTuning, prepare

    first = tuning.candidates[0]
    data = load_data(first.data)
    if not data.val:
        raise ConfigError(f"{first.data} has no val split, and the winner is picked by its score there: add one")
    for candidate in tuning.candidates[1:]:
        model_of(candidate, data)
    return prepare(_private(first, output / _PARTIAL / "run"), tuning.plan, PaidByTuning({}, None, ()))


def _announce(tuning: Tuning, console: Console) -> None:
    count = len(tuning.candidates)
    console.print(
        f"tuning by random stopping: {count} candidates, a secret number of runs ({tuning.distribution}, mean "
        f"{tuning.mean:g}); one run is epsilon {shown(tuning.plan.epsilon())}, the winner {shown(tuning.epsilon)} "
        f"(RDP) at delta {tuning.plan.delta:.3g}",
        soft_wrap=True,
        markup=False,
    )


def _best_of(
    runs: int, tuning: Tuning, facts: Mapping[str, Any], partial: Path, charge: RunCharge, behind: Sequence[StartRun]
) -> tuple[TrainResult, TrainConfig] | None:
    """Take the runs; ``partial/best`` then holds the winner, and nothing is left of the others."""
    from .job import Run
    from .prepare import PaidByTuning, prepare

    random = secrets.SystemRandom()
    best: tuple[TrainResult, TrainConfig] | None = None
    for _ in range(runs):
        candidate = random.choice(tuning.candidates)
        folder = partial / "run"
        shutil.rmtree(folder, ignore_errors=True)
        with _silence():
            paid = PaidByTuning(facts, charge, behind)
            prepared = prepare(_private(candidate, folder), _plan_of(candidate, tuning), paid)
            run = Run(prepared, Console(quiet=True))
            try:
                result = run.execute()
            except PrivacyError:  # it diverged: the lowest of all scores, since stopping here would tell of a loser
                continue
        if best is None or _score(result) > _score(best[0]):
            shutil.rmtree(partial / "best", ignore_errors=True)
            folder.rename(partial / "best")
            best = result, candidate
    return best


def _plan_of(candidate: TrainConfig, tuning: Tuning) -> PrivacyPlan:
    """The plan of a candidate; no clip rule changes what a step costs."""
    privacy = candidate.privacy
    return replace(tuning.plan, clip_norm=privacy.clip_norm, clipping=clipping_of(privacy))


def _private(candidate: TrainConfig, folder: Path) -> TrainConfig:
    """The candidate as it is run: in a folder that nobody is shown, without MLflow."""
    return replace(candidate, output_dir=str(folder), tracking=replace(candidate.tracking, enabled=False))


def _score(result: TrainResult) -> float:
    value = result.metrics.get(MAP, math.nan)
    return -math.inf if math.isnan(value) else value


def _reveal(output: Path, best: Path) -> None:
    """Move the winner to where it is looked for, with a time that does not tell when it ran."""
    for file in sorted(best.iterdir()):
        file.rename(output / file.name)
    even_times(output)


@contextmanager
def _silence() -> Iterator[None]:
    """No line of any run reaches the screen or a log: their number is secret."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with Path(os.devnull).open("w") as nothing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with redirect_stdout(nothing), redirect_stderr(nothing):
                yield
    finally:
        logging.disable(before)


@contextmanager
def _only_the_first(number: int) -> Iterator[None]:
    """Let the first candidate's lines through: the others would say the same."""
    if number == 0:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
