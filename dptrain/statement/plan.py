"""Where a statement has the fields of its run's plan: written and read by one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..privacy.plan import PrivacyPlan

PLACES = {
    "sample_rate": "mechanism.sample_rate",
    "steps": "mechanism.planned_steps",
    "noise_multiplier": "mechanism.noise_multiplier",
    "clip_norm": "mechanism.clip_norm",
    "delta": "guarantee.delta",
    "expected_batch_size": "mechanism.expected_batch_size",
    "unit": "guarantee.unit",
    "clipping": "mechanism.clip_rule",
    "bands": "mechanism.bands",
}


def plan_section(plan: PrivacyPlan, section: str) -> dict[str, Any]:
    """Return the plan's fields that stand in one section of a statement, ``mechanism`` or ``guarantee``."""
    places = {name: place.partition(".") for name, place in PLACES.items()}
    return {places[name][2]: value for name, value in plan.to_dict().items() if places[name][0] == section}


def plan_of(statement: Mapping[str, Any]) -> PrivacyPlan:
    """Return the plan that a statement speaks of.

    Raises:
        ConfigError: A field is missing, of another kind or out of range.
    """
    values = {}
    for name, place in PLACES.items():
        section, _, key = place.partition(".")
        table = statement.get(section)
        if not isinstance(table, Mapping) or key not in table:
            raise ConfigError(f"{place} is missing")
        values[name] = table[key]
    return PrivacyPlan.from_dict(values)
