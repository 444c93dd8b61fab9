"""The keys of the settings by name: a list of them, and a wrong key or a value of the wrong type put into words."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from ..errors import ConfigError
from .schema import REMOVED, PhaseConfig, TrainConfig, ValidationPrivacyConfig

# Keys of a section that few runs have, and whose names another section has too.
_SECOND = {f"validation_privacy.{item.name}" for item in dataclasses.fields(ValidationPrivacyConfig)}


def keys(schema: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every dotted key of the schema with its field, a section's own keys after the section's name."""
    for item in dataclasses.fields(schema):
        nested = item.default_factory
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            yield from keys(nested, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


def default_of(item: dataclasses.Field[Any]) -> str:
    """The default of a key as text; empty for none or a required one, ``$NAME or VALUE`` from the environment."""
    made = item.default_factory
    value = made() if callable(made) else item.default
    if value in (None, MISSING, ""):
        return ""
    if found := re.fullmatch(r"\$\{oc\.env:(\w+),'(.*)'\}", str(value)):
        return f"${found[1]} or {found[2]}"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def nearest_key(key: str, candidates: list[str] | None = None) -> str:
    """Return ``"; did you mean X?"`` for the valid key that is nearest to ``key``, or the empty string.

    ``epsilon`` finds ``privacy.epsilon``: a key of a section typed without its section counts as near.
    """
    known = candidates if candidates is not None else [name for name, _ in keys()]
    section, _, leaf = key.rpartition(".")
    leaves: dict[str, list[str]] = {}
    for name in known:
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    leaves = {leaf: [name for name in found if name not in _SECOND] or found for leaf, found in leaves.items()}
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    if leaf in leaves:
        found = leaves[leaf]
    elif near := difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6):
        found = [f"{section}.{near[0]}" if section else near[0]]
    elif near := difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.7):
        found = leaves[near[0]]
    else:
        found = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def config_error(error: OmegaConfBaseException, schema: type = TrainConfig) -> ConfigError:
    """Say in one line what OmegaConf refused: the key, the value and the type expected, or the nearest valid key."""
    key = error.full_key or (str(error.key) if error.key is not None else "")
    if error.object_type is PhaseConfig:  # OmegaConf does not say of which
        inner = {name: _type_in_words(str(item.type)) for name, item in keys(PhaseConfig)}
        if key not in inner:
            return ConfigError(
                f"phases: unknown key {key}{nearest_key(key, list(inner)) or '; it has ' + ', '.join(inner)}"
            )
        value = re.search(r"[Vv]alue '(.*)'(?: of type| is not| for field)", str(error))
        return ConfigError(f"phases: {key}={value.group(1) if value else ''} is not {inner[key]}")
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        if key in REMOVED:
            return ConfigError(f"{key} was removed: {REMOVED[key]}")
        return ConfigError(f"unknown key {key}{nearest_key(key) or ' (dptrain train --help lists the keys)'}")
    first_line = _without_objects(str(error).strip().splitlines()[0])
    field_name, _, is_item = key.partition("[")
    expected = {name: _type_in_words(str(item.type)) for name, item in keys(schema)}.get(field_name)
    if isinstance(error, ValidationError | TypeError) and expected:  # OmegaConf's ConfigTypeError is one
        value = re.search(r"[Vv]alue '(.*)'(?: of type| is not| for field)|value: (.*)$", first_line)
        shown = f"={value.group(1) or value.group(2)}" if value else ""
        shown = "=null" if "None" in first_line or "Optional" in first_line else shown
        return ConfigError(f"{key}{shown} is not {'a number' if is_item and field_name != 'phases' else expected}")
    return ConfigError(f"{key}: {first_line}" if key else first_line)


def _without_objects(text: str) -> str:
    """Python's ``<class 'x'>`` and ``<x object at 0x7f>`` as the x that they are."""
    text = re.sub(r"<[^<>]*?(\w+)'?(?: at 0x[0-9a-f]+)?>", r"\1", text)
    return text.replace("NoneType", "null").replace("ListConfig", "list").replace("DictConfig", "section")


def _type_in_words(annotation: str) -> str:
    kind = annotation.split(" ")[0]
    words = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}
    lists = {
        "list[str]": "a list of texts such as [model.23.*]",
        "list[PhaseConfig]": "a list such as [{trainable:head,steps:60},{trainable:all,steps:100}]",
    }
    return {**words, **lists}.get(kind, "a list of numbers such as [0.9,0.999]")


def value_at(config: Any, key: str) -> Any:
    """Return the value at a dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config
