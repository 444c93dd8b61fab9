"""Does a statement still say what its run did? Everything that can be worked out again is, and must agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PrivacyError
from ..privacy import accounting, random_stopping
from ..privacy.plan import PrivacyPlan
from ..privacy.random_stopping import MOST_MEAN_RUNS
from ..support.files import file_hash
from ..support.words import round_up
from ..training.journal import JOURNAL
from . import facts
from .audit import read_audit
from .files import JSON, SEALED, WEIGHT_FILES, WEIGHTS, read_json, read_statement
from .plan import PLACES, plan_of
from .shape import check_shape, get, is_number
from .start_runs import StartRun, start_runs_section, start_runs_words

SETTINGS = "settings.json"
_ROUNDING = 1e-9  # relative: the same sum in another order

# What settings.json, which the run wrote before its first step, says of the statement's fields.
_SETTLED = {
    **{
        place: "steps" if name == "steps" else f"privacy.{name}" for name, place in PLACES.items() if name != "clipping"
    },
    "mechanism.clip_rule.name": "privacy.clipping",
    "mechanism.clip_rule.groups": "privacy.clip_groups",
    "dataset.declared_size": "privacy.dataset_size",
    "model.start_sha256": "start_sha256",
    "public_data.sha256": "start_sha256",
    "public_data.declared": "public_data",
    "model.trainable": "trainable",
}
_ALWAYS = (
    "guarantee.neighbouring_relation",
    "guarantee.setting",
    "guarantee.adversary",
    "guarantee.covers",
    "mechanism.name",
    "mechanism.sampling",
    "mechanism.clipping",
    "accounting.epsilon_over_steps_of",
)


@dataclass(frozen=True)
class Report:
    """A statement that was compared with its run.

    Attributes:
        statement: What the run wrote, with epsilon recomputed, ``checks`` and what became known since.
        results: The run's ``results.csv``, if it is there.
        folder: Where it was found.
    """

    statement: dict[str, Any] = field(repr=False)
    results: Path | None
    folder: Path


def report(
    run: str | Path,
    *,
    tuning: Mapping[str, Any] | None = None,
) -> Report:
    """Read a run's statement and hold it against the run.

    Guarantee: the epsilon that is returned is never below dp-accounting's RDP for the mechanism and the planned steps
    of the statement and, where the run's own records are there, of ``settings.json``: also of a run that ended early,
    which may have been stopped by looking at it. A statement that was edited by someone who has not also rewritten
    those is refused; nothing here is a signature.

    Args:
        run: The folder of a run, a weights file of it, or a folder of weights with their ``statement.json``.
        tuning: What choosing this run cost, see :func:`make_statement`.

    Raises:
        ConfigError: A file is missing or cannot be read.
        PrivacyError: A field claims less than the run did; it is named.
    """
    folder, shipped, asked = _find(Path(run))
    source = folder / JSON
    written = read_statement(source)
    plan, steps = _mechanism(written, source)
    checks: list[str] = []
    if not shipped:
        steps = _agree_with_records(written, folder, steps, checks)
    else:
        checks.append("steps.journal and settings.json stay with the run and were not compared")
    again = _made_again(written, plan, steps, source)
    _agree_on_the_start(written, plan, source)
    pld = again["guarantee"]["epsilon_pld"]
    checks.append(
        f"epsilon recomputed with {again['accounting']['library']}: "
        f"RDP {round_up(again['guarantee']['epsilon'], 6)}, "
        + ("no PLD, since the run ended early" if pld is None else f"PLD {round_up(pld, 6)}")
    )
    _agree_with_weights(written, folder if shipped else folder / WEIGHTS, source, asked, shipped, checks)
    if written.get("sha256") != facts.digest(written):
        raise PrivacyError(f"{source}: sha256 does not match, so a field was changed after the run wrote it")
    check_shape(written, source)
    if not shipped:
        _agree_with_copy(written, folder)
    statement = {**written, "guarantee": again["guarantee"], "accounting": again["accounting"]}
    statement["mechanism"] = {**written["mechanism"], "steps": steps}
    if steps > written["mechanism"]["steps"]:
        lost = steps - written["mechanism"]["steps"]
        statement["deviations"] = [
            *written["deviations"],
            f"The run broke off: {lost} steps were started after its last checkpoint, and they are counted here.",
        ]
    if tuning is not None:
        statement["tuning"] = dict(tuning)
    _add_audit(statement, folder, checks)
    statement["checks"] = checks
    results = folder / "results.csv"
    return Report(facts.sealed(statement), results if results.is_file() else None, folder)


def _find(run: Path) -> tuple[Path, bool, str | None]:
    """The folder that holds the statement, whether it is one of weights without their run, and the file asked for."""
    try:
        there = run.exists()
    except OSError as error:
        raise ConfigError(f"{run} cannot be looked up ({error.strerror}): give the folder of a run") from error
    if not there:
        raise ConfigError(f"{run} is not there: give the folder of a run, or one of its weights files")
    folder, asked = (run.parent, run.name) if run.is_file() else (run, None)
    if asked is not None and asked != JSON and not run.name.endswith((".pt", f".pt{SEALED}")):
        raise ConfigError(f"{run} is neither a weights file (.pt) nor a {JSON}: give the folder of the run")
    above = folder.resolve().parent
    if folder.resolve().name == WEIGHTS and (above / JOURNAL).exists():
        folder = folder.parent if folder.name == WEIGHTS else above
    if any((folder / name).exists() for name in (JOURNAL, SETTINGS, WEIGHTS)):
        return folder, False, asked
    return folder, True, asked


def _mechanism(statement: Mapping[str, Any], file: Path) -> tuple[PrivacyPlan, int]:
    """The plan that the statement speaks of, and its steps; every value of the right kind and in range."""
    try:
        plan = plan_of(statement)
    except ConfigError as error:
        raise PrivacyError(f"{file}: {error}") from error
    if not isinstance(statement.get("deviations"), list):
        raise PrivacyError(f"{file}: deviations is not a list")
    steps, status = get(statement, "mechanism.steps"), statement.get("status")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= accounting.MOST_STEPS:
        raise PrivacyError(f"{file}: mechanism.steps={steps!r} is not a whole number from 0 to {accounting.MOST_STEPS}")
    if steps > plan.steps:
        raise PrivacyError(f"{file}: mechanism.steps={steps} is above mechanism.planned_steps={plan.steps}")
    if status == "finished" and steps < plan.steps:
        raise PrivacyError(f"{file}: status='finished', and mechanism.steps={steps} of {plan.steps} were taken")
    return plan, steps


def _agree_with_records(statement: Mapping[str, Any], folder: Path, steps: int, checks: list[str]) -> int:
    """Compare with the journal and the settings, which the run wrote as it went; return the steps to account for."""
    source = folder / JSON
    settings = read_json(folder / SETTINGS, "the settings that the run was started with")
    for name, key in _SETTLED.items():
        said, was = get(statement, name), get(settings, key)
        if said != was or isinstance(said, bool) != isinstance(was, bool):
            raise PrivacyError(f"{source}: {name}={said!r}, but the run was started with {was!r} ({SETTINGS}: {key})")
    if "seed" not in settings:
        raise ConfigError(f"{folder / SETTINGS} has no seed entry: it is not what the run wrote")
    secure = settings["seed"] is None
    wanted = {
        "valid": secure,
        "mechanism.rng_mode": "secure" if secure else "seeded",
        "mechanism.noise": facts.SECURE_NOISE if secure else facts.SEEDED_NOISE,
    }
    for name, expected in wanted.items():
        if get(statement, name) != expected:
            raise PrivacyError(
                f"{source}: {name}={get(statement, name)!r}, but the run had seed={settings['seed']} "
                f"({SETTINGS}), which makes it {expected!r}"
            )
    if not secure and facts.VOID not in statement["deviations"]:
        raise PrivacyError(f"{source}: deviations does not say that a seed voids the guarantee")
    _agree_with_tuning(statement, settings, source)
    if (get(statement, "start_runs.runs") or []) != settings.get("start_runs_found", []):
        raise PrivacyError(f"{source}: start_runs are not those that the run was started from ({SETTINGS})")
    checks.append(f"{SETTINGS}: the run was started with this mechanism, start and random source")
    journal = folder / JOURNAL
    if not journal.is_file():
        raise ConfigError(f"{journal} is missing: it counts the steps that were started")
    started = journal.stat().st_size
    if started > steps and secure and statement.get("status") != "running":
        raise PrivacyError(f"{source}: mechanism.steps={steps}, but {started} steps were started ({JOURNAL})")
    if steps > started and secure:
        raise PrivacyError(f"{journal} counts {started} steps, and {source} has mechanism.steps={steps}: it was cut")
    planned = int(get(statement, "mechanism.planned_steps"))
    if started > planned and secure:
        raise PrivacyError(f"{journal} counts {started} steps, more than the {planned} planned ({SETTINGS}: steps)")
    checks.append(f"{JOURNAL}: {started} steps were started")
    return min(planned, max(steps, started))


def _agree_on_the_start(statement: Mapping[str, Any], plan: PrivacyPlan, file: Path) -> None:
    """What the runs behind the start and this one cost together is worked out again from their mechanisms."""
    said = statement.get("start_runs")
    if said is None:
        return
    if not isinstance(said, dict) or not isinstance(said.get("runs"), list) or not said["runs"]:
        raise PrivacyError(f"{file}: start_runs is not a table of runs")
    runs = []
    for number, values in enumerate(said["runs"]):
        try:
            runs.append(run := StartRun.read(values))
        except ValueError as error:
            raise PrivacyError(f"{file}: start_runs.runs.{number} is no run ({error})") from error
        own = accounting.epsilon_of_curves([run.curve()], run.delta)
        _refuse_lower(run.epsilon, own, f"start_runs.runs.{number}.epsilon", statement, file)
    claim = facts.claim_of(plan, int(get(statement, "mechanism.steps")), _tuning(statement, file))
    fact = start_runs_section(runs, claim.curve, plan.delta, plan.unit, bool(statement.get("valid")))
    assert fact is not None
    if fact["epsilon"] is not None and said.get("epsilon") is not None:
        name = "start_runs.epsilon"
        _refuse_lower(_number(statement, name, file), fact["epsilon"], name, statement, file)
        fact["epsilon"] = said["epsilon"]  # a claim above the fresh value is safe, and stays
    for key in fact.keys() | said.keys():
        if said.get(key) != fact.get(key):
            raise PrivacyError(f"{file}: start_runs.{key}={said.get(key)!r} is not what dptrain says")
    if not set(start_runs_words(said)) <= set(statement["deviations"]):
        raise PrivacyError(f"{file}: deviations does not say that the start comes from private runs")


def _agree_with_tuning(statement: Mapping[str, Any], settings: Mapping[str, Any], source: Path) -> None:
    """A winner of a tuning must not pass for a run that nobody chose."""
    tuned = get(settings, "tuning.method") not in (None, "none")
    for name in ("distribution", "mean_runs"):
        said, was = get(statement, f"tuning.{name}"), get(settings, f"tuning.{name}") if tuned else None
        if said != was:
            raise PrivacyError(
                f"{source}: tuning.{name}={said!r}, but the run was started with {was!r} ({SETTINGS}: tuning.{name})"
            )


def _made_again(statement: Mapping[str, Any], plan: PrivacyPlan, steps: int, file: Path) -> dict[str, Any]:
    """The statement's computed sections made afresh; refused where the file claims less for the steps it names."""
    named = int(get(statement, "mechanism.steps"))
    tuning = _tuning(statement, file)
    claim = facts.claim_of(plan, named, tuning)
    fresh = {
        "guarantee.epsilon": claim.epsilon,
        "guarantee.attack_accuracy": claim.attack_accuracy,
        **{f"guarantee.true_positive_rates.{name}": rate for name, rate in claim.true_positive_rates.items()},
    }
    if claim.epsilon_pld is not None:
        fresh["guarantee.epsilon_pld"] = claim.epsilon_pld
    elif (said := get(statement, "guarantee.epsilon_pld")) is not None:
        raise PrivacyError(f"{file}: guarantee.epsilon_pld={said!r}, and a run that ended early claims none")
    for name, value in fresh.items():
        _refuse_lower(_number(statement, name, file), value, name, statement, file)
    _agree_on_the_end(statement, claim, file)
    for section, again in (
        ("accounting.rdp_curve", {str(order): bound for order, bound in claim.curve.items()}),
        ("accounting.epsilon_over_steps", None),
    ):
        said = get(statement, section)
        if not isinstance(said, dict):
            raise PrivacyError(f"{file}: {section} is not a table")
        if again is None and said and str(plan.steps) not in said:
            raise PrivacyError(f"{file}: {section} does not reach step {plan.steps}, the last one planned")
        for key in said:
            name = f"{section}.{key}"
            if again is None:
                at = int(key) if key.isdecimal() and len(key) <= 10 else -1
                if not 0 <= at <= plan.steps:
                    value = math.nan
                else:  # no part of a winner costs less than the tuning that chose it
                    value = claim.epsilon if facts.is_tuned(tuning) else plan.epsilon(steps=at)
            else:
                value = again.get(key, math.nan)
            if math.isnan(value):
                raise PrivacyError(f"{file}: {name} is not a place on the curve")
            _refuse_lower(_as_number(said[key], name, file), value, name, statement, file)
    complete = facts.make_statement(
        plan,
        steps=steps,
        status="",
        secure=bool(statement.get("valid")),
        dataset={},
        model={},
        validation="",
        tuning=tuning,
    )
    for name in _ALWAYS:
        said, fact = get(statement, name), get(complete, name)
        if said != fact:
            raise PrivacyError(f"{file}: {name}={said!r} is not what dptrain does: {fact!r}")
    for name in fresh:  # a claim above the fresh value is safe, and stays
        section, _, key = name.rpartition(".")
        found = get(complete, section)
        found[key] = max(found[key], _number(statement, name, file))
    return complete


def _agree_on_the_end(statement: Mapping[str, Any], claim: facts.Claim, file: Path) -> None:
    """A run that ended early names what its steps cost, and under which condition that holds; no other does."""
    said, fact = get(statement, "guarantee.ended_early"), claim.ended_early
    if said is None and fact is None:
        return
    if fact is None or not isinstance(said, dict):
        raise PrivacyError(
            f"{file}: guarantee.ended_early={said!r} does not fit mechanism.steps={get(statement, 'mechanism.steps')}"
        )
    for key in fact.keys() | said.keys():
        name = f"guarantee.ended_early.{key}"
        if key == "epsilon_of_steps":
            _refuse_lower(_number(statement, name, file), fact[key], name, statement, file)
        elif said.get(key) != fact.get(key):
            raise PrivacyError(f"{file}: {name}={said.get(key)!r} is not what dptrain says: {fact.get(key)!r}")


def _tuning(statement: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The section on tuning; where it was random stopping, its two numbers are in range."""
    tuning = statement.get("tuning")
    if not isinstance(tuning, dict):
        raise PrivacyError(f"{file}: tuning is not a table")
    if tuning.get("distribution") is not None:
        if tuning["distribution"] not in list(random_stopping.RANDOM_STOPPING):
            raise PrivacyError(f"{file}: tuning.distribution={tuning['distribution']!r} is not one that dptrain draws")
        mean = _number(statement, "tuning.mean_runs", file)
        if not 1.0 <= mean <= MOST_MEAN_RUNS:
            raise PrivacyError(f"{file}: tuning.mean_runs={mean!r} must be from 1 to {MOST_MEAN_RUNS}")
    return tuning


def _refuse_lower(said: float, fresh: float, name: str, statement: Mapping[str, Any], file: Path) -> None:
    if said >= fresh * (1 - _ROUNDING):
        return
    library = get(statement, "accounting.library")
    now = f"dp-accounting {facts.package_version('dp-accounting')}"
    maker = "" if library == now else f", and the file names {library}"
    raise PrivacyError(f"{file}: {name}={said:.8g} is below {fresh:.8g}, what its mechanism costs ({now}{maker})")


def _agree_with_weights(
    statement: Mapping[str, Any], folder: Path, source: Path, asked: str | None, shipped: bool, checks: list[str]
) -> None:
    """The weights are those that the statement covers, by their sha256."""
    known = statement.get("weights")
    if not isinstance(known, dict):
        raise PrivacyError(f"{source}: weights is not a table of sha256")
    wanted = {name + SEALED if name + SEALED in known else name for name in WEIGHT_FILES}
    if shipped:
        wanted = {file.name for file in folder.iterdir()} & known.keys()
    if asked is not None and asked != JSON:
        wanted.add(asked)
    for name in sorted(wanted):
        file = folder / name
        if not file.is_file():
            raise ConfigError(f"{file} is missing: the statement covers it")
        if name not in known:
            raise PrivacyError(f"{file} is not covered by {source}, which names {', '.join(known) or 'no weights'}")
        if file_hash(file) != known[name]:
            fix = ": the run broke off while it wrote; resume it" if statement.get("status") == "running" else ""
            raise PrivacyError(f"{source}: weights.{name} is not the sha256 of {file}{fix}")
    checks.append(f"sha256 of {', '.join(sorted(wanted))}: as stated" if wanted else "no weights were there to compare")


def _agree_with_copy(statement: Mapping[str, Any], folder: Path) -> None:
    copy = folder / WEIGHTS / JSON
    travelling = read_statement(copy)
    for key in statement.keys() | travelling.keys():
        if statement.get(key) != travelling.get(key):
            raise PrivacyError(f"{copy} and {folder / JSON} differ in {key}: one of them was edited")


def _add_audit(statement: dict[str, Any], folder: Path, checks: list[str]) -> None:
    found = read_audit(folder)
    if found is None:
        return
    statement["audit"] = found
    bound, claimed = found["epsilon_lower_bound"], statement["guarantee"]["epsilon"]
    void = None
    if bound > claimed:
        void = f"epsilon is at least {bound:.4g}, above the {claimed:.4g} claimed"
    elif found.get("verdict") == "violation":
        void = "; ".join(map(str, found.get("faults") or ["a violation"]))
    if void is not None:
        statement["valid"] = False
        statement["deviations"] = [f"VOID: an audit found that {void}.", *statement["deviations"]]
    checks.append(f"audit: epsilon is at least {bound:.4g}, at confidence {found['confidence']:g}")


def _number(statement: Mapping[str, Any], name: str, file: Path) -> float:
    return _as_number(get(statement, name), name, file)


def _as_number(value: Any, name: str, file: Path) -> float:
    if not is_number(value):
        raise PrivacyError(f"{file}: {name}={value!r} is not a number")
    return float(value)
