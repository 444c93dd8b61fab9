"""Does a statement still say what its run did? It is held against the run's records, and every figure recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PrivacyError
from ..support.words import round_up
from ..training.journal import JOURNAL
from . import facts
from .audit import read_audit
from .fields import read_as
from .files import JSON, SEALED, WEIGHTS, read_statement
from .recompute import agree_on_the_start, recompute, stated_plan
from .records import SETTINGS, agree_with_copy, agree_with_records, agree_with_weights
from .shape import Statement
from .validation_release import agree_on_the_release


@dataclass(frozen=True)
class CheckedStatement:
    """A statement that was compared with its run.

    Attributes:
        statement: What the run wrote, with epsilon recomputed, ``checks`` and what became known since.
        results: The run's ``results.csv``, if it is there.
        folder: Where it was found.
    """

    statement: dict[str, Any] = field(repr=False)
    results: Path | None
    folder: Path


def check_statement(run: str | Path) -> CheckedStatement:
    """Read a run's statement and hold it against the run.

    Guarantee: the epsilon that is returned is never below dp-accounting's RDP for the mechanism and the planned steps
    of the statement and, where the run's own files are there, of ``settings.json``: also of a run that ended early,
    which may have been stopped by looking at it. A statement that was edited by someone who has not also rewritten
    those is refused; nothing here is a signature.

    Args:
        run: The folder of a run, a weights file of it, or a folder of weights with their ``statement.json``.

    Raises:
        ConfigError: A file is missing or cannot be read.
        PrivacyError: A field claims less than the run did, or is not what dptrain writes; it is named.
    """
    folder, shipped, asked = _find(Path(run))
    source = folder / JSON
    written = read_statement(source)
    edited = written.get("sha256") != facts.digest(written)
    refusal = PrivacyError(f"{source}: sha256 does not match, so a field was changed after the run wrote it")
    try:
        stated = read_as(Statement, written, source)
    except ValueError as error:
        if edited:
            raise refusal from error
        raise PrivacyError(f"{error}, so dptrain did not write it") from error
    plan = stated_plan(written, stated, source)
    checks: list[str] = []
    steps = stated.mechanism.steps
    if not shipped:
        steps = agree_with_records(written, stated, folder, checks)
    else:
        checks.append("steps.journal and settings.json stay with the run and were not compared")
    again = recompute(written, stated, plan, steps, source)
    agree_on_the_start(written, stated, plan, source)
    agree_on_the_release(stated.validation_release, plan.unit, source)
    pld = again["guarantee"]["epsilon_pld"]
    checks.append(
        f"epsilon recomputed with {again['accounting']['library']}: "
        f"RDP {round_up(again['guarantee']['epsilon'], 6)}, "
        + ("no PLD, since the run ended early" if pld is None else f"PLD {round_up(pld, 6)}")
    )
    agree_with_weights(stated, folder if shipped else folder / WEIGHTS, source, asked, shipped, checks)
    if edited:
        raise refusal
    if not shipped:
        agree_with_copy(written, folder)
    statement = {**written, "guarantee": again["guarantee"], "accounting": again["accounting"]}
    statement["mechanism"] = {**written["mechanism"], "steps": steps}
    if steps > stated.mechanism.steps:
        lost = steps - stated.mechanism.steps
        statement["deviations"] = [
            *stated.deviations,
            f"The run broke off: {lost} steps were started after its last checkpoint, and they are counted here.",
        ]
    _add_audit(statement, folder, checks)
    statement["checks"] = checks
    results = folder / "results.csv"
    return CheckedStatement(facts.sealed(statement), results if results.is_file() else None, folder)


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
