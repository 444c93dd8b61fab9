"""What kind of value stands at every place of a statement that a page is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PrivacyError
from .facts import SPENT

_KINDS: dict[str, tuple[type, ...]] = {
    "a text": (str,),
    "a table": (dict,),
    "a list": (list,),
    "true or false": (bool,),
    "a table or null": (dict, type(None)),
}
_SHAPE = {
    "a text": "date status validation accounting.headline accounting.library mechanism.rng_mode mechanism.noise "
    "guarantee.ended_early.holds_if guarantee.ended_early.why accounting.epsilon_over_steps_of "
    "dataset_budget.name dataset_budget.unit",
    "a table": "dataset model public_data training weights tuning versions accounting.rdp_curve "
    "guarantee.true_positive_rates",
    "a list": "deviations released assumptions not_covered accounting.assumptions",
    "true or false": "valid",
    "a table or null": "dataset_budget start_runs audit guarantee.ended_early",
    "a number": "audit.epsilon_lower_bound audit.confidence guarantee.ended_early.epsilon_of_steps",
    "a number or null": "guarantee.epsilon_pld tuning.epsilon dataset_budget.limit dataset_budget.delta",
}
_OF_THE_BUDGET = {"name", "unit", "limit", "delta", "spent"}
_TEXTS = ("deviations", "released", "assumptions", "not_covered")


def check_shape(statement: Mapping[str, Any], file: Path) -> None:
    """Refuse a statement that no page can be made of, by the name of the first value of another kind.

    Raises:
        PrivacyError: dptrain writes no such statement.
    """
    for kind, names in _SHAPE.items():
        for name in names.split():
            value = get(statement, name)
            section = name.rpartition(".")[0]
            if section and get(statement, section) is None:
                continue
            if not section and name not in statement:
                raise PrivacyError(f"{file}: {name} is missing, so dptrain did not write it")
            if not _is(kind, value):
                raise PrivacyError(f"{file}: {name}={value!r} is not {kind}, so dptrain did not write it")
    budget = statement["dataset_budget"]
    if budget is not None and (extra := sorted(budget.keys() ^ _OF_THE_BUDGET)):
        raise PrivacyError(f"{file}: dataset_budget.{extra[0]} is missing or more than dptrain publishes of a ledger")
    if budget is not None and budget["spent"] != SPENT:
        raise PrivacyError(f"{file}: dataset_budget.spent={budget['spent']!r} is for the data's owner only")
    for name in _TEXTS:
        if not all(isinstance(line, str) for line in statement[name]):
            raise PrivacyError(f"{file}: {name} is not a list of texts, so dptrain did not write it")
    for item in statement["accounting"]["assumptions"]:
        if not (isinstance(item, dict) and isinstance(item.get("assumption"), str) and "holds" in item):
            raise PrivacyError(f"{file}: accounting.assumptions={item!r} is no assumption, so dptrain did not write it")
    reason = unprintable(statement)
    if reason is not None:
        raise PrivacyError(f"{file} holds {reason}, so dptrain did not write it")


def unprintable(value: Any) -> str | None:
    """What in values that JSON gave cannot be written as JSON again, in words; None if all of it can."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        return f"a character that no text can ({error.object[error.start]!r})"
    except ValueError:
        return "a number that is not finite"
    return None


def is_number(value: Any) -> bool:
    """Whether this is a finite number that can be calculated with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def get(values: Mapping[str, Any], name: str) -> Any:
    """Return the value at a dotted name, None where there is none."""
    found: Any = values
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _is(kind: str, value: Any) -> bool:
    if kind.startswith("a number"):
        return is_number(value) or (kind.endswith("null") and value is None)
    return isinstance(value, _KINDS[kind])
