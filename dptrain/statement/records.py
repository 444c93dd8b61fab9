"""Is a statement what the run's own files say: its settings, its journal of steps, its weights, its copies?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PrivacyError
from ..support.files import file_hash
from ..training.journal import JOURNAL
from . import facts
from .fields import get
from .files import JSON, SEALED, WEIGHT_FILES, WEIGHTS, read_json, read_statement
from .plan import PLACES
from .shape import Statement

SETTINGS = "settings.json"

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
    "model.phases": "phases",
}


def agree_with_records(written: Mapping[str, Any], stated: Statement, folder: Path, checks: list[str]) -> int:
    """Compare with the journal and the settings, which the run wrote as it went; return the steps to account for."""
    source = folder / JSON
    settings = read_json(folder / SETTINGS, "the settings that the run was started with")
    for name, key in _SETTLED.items():
        said, was = get(written, name), get(settings, key)
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
        if get(written, name) != expected:
            raise PrivacyError(
                f"{source}: {name}={get(written, name)!r}, but the run had seed={settings['seed']} "
                f"({SETTINGS}), which makes it {expected!r}"
            )
    if not secure and facts.VOID not in stated.deviations:
        raise PrivacyError(f"{source}: deviations does not say that a seed voids the guarantee")
    tuned = get(settings, "tuning.method") not in (None, "none")
    for name in ("tuning.distribution", "tuning.mean_runs"):  # a winner must not pass for a run that nobody chose
        said, was = get(written, name), get(settings, name) if tuned else None
        if said != was:
            raise PrivacyError(f"{source}: {name}={said!r}, but the run was started with {was!r} ({SETTINGS}: {name})")
    if (get(written, "start_runs.runs") or []) != settings.get("start_runs_found", []):
        raise PrivacyError(f"{source}: start_runs are not those that the run was started from ({SETTINGS})")
    checks.append(f"{SETTINGS}: the run was started with this mechanism, start and random source")
    journal, steps, planned = folder / JOURNAL, stated.mechanism.steps, stated.mechanism.planned_steps
    if not journal.is_file():
        raise ConfigError(f"{journal} is missing: it counts the steps that were started")
    started = journal.stat().st_size
    if started > steps and secure and stated.status != "running":
        raise PrivacyError(f"{source}: mechanism.steps={steps}, but {started} steps were started ({JOURNAL})")
    if steps > started and secure:
        raise PrivacyError(f"{journal} counts {started} steps, and {source} has mechanism.steps={steps}: it was cut")
    if started > planned and secure:
        raise PrivacyError(f"{journal} counts {started} steps, more than the {planned} planned ({SETTINGS}: steps)")
    checks.append(f"{JOURNAL}: {started} steps were started")
    return min(planned, max(steps, started))


def agree_with_weights(
    stated: Statement, folder: Path, source: Path, asked: str | None, shipped: bool, checks: list[str]
) -> None:
    """The weights are those that the statement covers, by their sha256."""
    known = stated.weights
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
            fix = ": the run broke off while it wrote; resume it" if stated.status == "running" else ""
            raise PrivacyError(f"{source}: weights.{name} is not the sha256 of {file}{fix}")
    checks.append(f"sha256 of {', '.join(sorted(wanted))}: as stated" if wanted else "no weights were there to compare")


def agree_with_copy(written: Mapping[str, Any], folder: Path) -> None:
    """The statement beside the weights says the same."""
    copy = folder / WEIGHTS / JSON
    travelling = read_statement(copy)
    for key in written.keys() | travelling.keys():
        if written.get(key) != travelling.get(key):
            raise PrivacyError(f"{copy} and {folder / JSON} differ in {key}: one of them was edited")
