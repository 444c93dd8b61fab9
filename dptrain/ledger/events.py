"""dp-accounting's events as versioned JSON, their steps, and how people read them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BudgetError

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

EVENT_FORMAT = 1
# JSON has no infinity, and an event may have one: the shape of a Poisson number of runs.
_ENDLESS = "infinity"
_MAY_BE_ENDLESS = ("RepeatAndSelectDpEvent", "shape")


def event_to_json(event: DpEvent) -> str:
    """Return an event as canonical JSON: the same event gives the same text.

    Raises:
        BudgetError: It is not an event of dp-accounting, or holds a value that is not a finite number.
    """
    try:
        return json.dumps(
            {"version": EVENT_FORMAT, "event": _plain(event)}, sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise BudgetError(f"{type(event).__name__} cannot be recorded as an event ({error})") from error


def event_from_json(text: str) -> DpEvent:
    """Return the event that :func:`event_to_json` wrote.

    Raises:
        BudgetError: It is not such a text, or of a later version.
    """
    try:
        payload = json.loads(text, parse_constant=_refuse_constant)
        if payload["version"] != EVENT_FORMAT:
            raise BudgetError(f"an event of format {payload['version']} is newer than this dptrain: upgrade it")
        return _event(payload["event"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BudgetError(f"not an event of the ledger: {text[:120]}") from error


def _plain(value: Any) -> Any:
    import attr
    from dp_accounting import dp_event

    if isinstance(value, dp_event.DpEvent):
        if getattr(dp_event, type(value).__name__, None) is not type(value):
            raise TypeError("only dp-accounting's own events have a known meaning")
        kind = type(value).__name__
        fields = {field.name: getattr(value, field.name) for field in attr.fields(type(value))}
        return {"class": kind, **{name: _field(kind, name, item) for name, item in fields.items()}}
    if isinstance(value, str):
        raise TypeError("events hold numbers only")
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        items = value.tolist() if hasattr(value, "tolist") else value
        return [_plain(item) for item in items] if isinstance(items, Sequence) else items
    if isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} is not a number or an event")


def _field(kind: str, name: str, value: Any) -> Any:
    endless = (kind, name) == _MAY_BE_ENDLESS and value == math.inf
    return _ENDLESS if endless else _plain(value)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _event(value: Any) -> Any:
    from dp_accounting import dp_event

    if isinstance(value, list):
        return [_event(item) for item in value]
    if isinstance(value, str):
        raise ValueError("events hold numbers only")
    if not isinstance(value, dict):
        return value
    kind = getattr(dp_event, value["class"])
    if not (isinstance(kind, type) and issubclass(kind, dp_event.DpEvent)):
        raise ValueError(f"{value['class']} is not an event")
    fields = {name: item for name, item in value.items() if name != "class"}
    for name, item in fields.items():
        endless = (kind.__name__, name) == _MAY_BE_ENDLESS and item == _ENDLESS
        fields[name] = math.inf if endless else _event(item)
    return kind(**fields)


def split_steps(event: DpEvent) -> tuple[DpEvent, int]:
    """Return one step's event and the number of steps. What is not a repetition is one step, charged as a whole."""
    from dp_accounting import dp_event

    count = 1
    while isinstance(event, dp_event.SelfComposedDpEvent):
        count *= int(event.count)
        event = event.event
    if count < 1:
        raise BudgetError(f"an event of {count} steps releases nothing, so there is nothing to reserve")
    return event, count


def gaussian_step(event: object) -> tuple[float, float] | None:
    """Return (sample rate, noise multiplier) of a Gaussian step, Poisson-sampled or not; ``None`` for other events."""
    from dp_accounting import dp_event

    rate = 1.0
    if isinstance(event, dp_event.PoissonSampledDpEvent):
        rate, event = event.sampling_probability, event.event
    return (rate, event.noise_multiplier) if isinstance(event, dp_event.GaussianDpEvent) else None


def with_noise(step: object, noise_multiplier: float) -> DpEvent:
    """Return a Gaussian step with another noise multiplier."""
    from dp_accounting import dp_event

    gaussian = dp_event.GaussianDpEvent(noise_multiplier)
    if isinstance(step, dp_event.PoissonSampledDpEvent):
        return dp_event.PoissonSampledDpEvent(step.sampling_probability, gaussian)
    return gaussian


def describe_event(event: dict[str, Any]) -> tuple[str, float | None, float | None]:
    """Return kind, sample rate and noise multiplier of an event's plain form."""
    rate, inner = 1.0, event
    if event["class"] == "PoissonSampledDpEvent":
        rate, inner = event["sampling_probability"], event["event"]
    if inner["class"] == "GaussianDpEvent":
        return ("Poisson Gaussian" if inner is not event else "Gaussian"), rate, inner["noise_multiplier"]
    return str(event["class"]).removesuffix("DpEvent"), None, None
