"""Kinds of values in a file that dptrain wrote, and how a value of another kind is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ..privacy.accounting import MOST_STEPS
from ..privacy.random_stopping import MOST_MEAN_RUNS, STOPPINGS


def _calculable(value: float) -> float:
    if not -1e300 < value < 1e300:
        raise PydanticCustomError("range", "a number below 1e300")
    return value


def _drawn(name: str) -> str:
    if name not in STOPPINGS:
        raise PydanticCustomError("range", "one that dptrain draws")
    return name


Number = Annotated[float, AfterValidator(_calculable)]
Positive = Annotated[Number, Field(gt=0)]
Steps = Annotated[int, Field(ge=0, le=MOST_STEPS)]
Distribution = Annotated[str, AfterValidator(_drawn)]
MeanRuns = Annotated[float, Field(ge=1, le=MOST_MEAN_RUNS)]


class Part(BaseModel):
    """A table that dptrain wrote: no other keys than these, and no value of another kind."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Shape = TypeVar("Shape", bound=BaseModel)
_KINDS = {
    "string_type": "a text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


def read_as(shape: type[Shape], values: Mapping[str, Any], file: Path) -> Shape:
    """Return what a file holds, once every value in it is what it should be.

    Raises:
        ValueError: One is not; the message is a line that names the file, the key and the value.
    """
    try:
        found = shape.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{file}: {in_words(error)}") from error
    for key, value in values.items():  # also what stands in free tables goes into pages and into JSON again
        try:
            json.dumps({key: value}, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            raise ValueError(f"{file} holds a character that no text can ({character!r}), in {key}") from error
        except ValueError as error:
            raise ValueError(f"{file} holds a number that is not finite, in {key}") from error
    return found


def in_words(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    first = error.errors(include_url=False)[0]
    name, kind = ".".join(map(str, first["loc"])), first["type"]
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"{name}={first['input']!r} is not a key that dptrain writes"
    return f"{name}={first['input']!r} is not {_KINDS.get(kind, first['msg'].removeprefix('Input should be '))}"


def get(values: Mapping[str, Any], name: str) -> Any:
    """Return the value at a dotted name, None where there is none."""
    found: Any = values
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
