"""Model descriptions: what a ``.yaml`` may say, checked before Ultralytics builds it.

Ultralytics evaluates ``activation`` as Python, calls whatever its own module knows by the name of a layer, and fetches
a description that is an address. So only what is looked through here reaches it.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils import ROOT

from ..errors import ModelError
from ..support.files import read_file

_MOST_BYTES, _MOST_LAYERS, _MOST_REPEATS, _MOST_ARGUMENTS = 1 << 20, 1000, 1000, 64
_LARGEST = 1_000_000
_NUMBERS = ("nc", "reg_max", "depth_multiple", "width_multiple", "ch", "channels")
_KEYS = (*_NUMBERS, "activation", "backbone", "end2end", "head", "scales")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,40}")
# A text among a layer's values is looked up among the local variables of Ultralytics' parser; these it is meant for.
_VALUES = ("nc", "reg_max", "end2end")
_CODE = tasks.parse_model.__code__
_LOCALS = {*_CODE.co_varnames, *_CODE.co_cellvars, *_CODE.co_freevars} - {*_VALUES}
_LAYERS = ("torch.nn.modules.", "ultralytics.nn.modules.")
_DOWNLOADS = ("TorchVision",)


def read_description(name: str) -> dict[str, Any]:
    """Read a model description of the working directory, or of Ultralytics' own ones.

    Its size may be in its name only: ``yolo26n.yaml`` is ``yolo26.yaml`` at size n.

    Raises:
        ModelError: There is none, or it is no YAML.
    """
    try:
        file = _find(Path(name))
        data = yaml.load(_text(file), yaml.SafeLoader) if file is not None else None
    except Exception as error:  # of the system, or of PyYAML, which fails in many kinds
        lines = str(error).split("\n")
        raise ModelError(f"{name!r}: cannot be read as a model description ({lines[0][:150]})") from None
    if file is None:
        raise ModelError(f"{name!r}: no such model description: put it there")
    if not isinstance(data, dict):
        raise ModelError(f"{name!r}: no model description, it holds no 'key: value' lines")
    return {**data, "scale": tasks.guess_model_scale(name), "yaml_file": str(file)}


def refuse_code(name: str, description: Mapping[str, Any]) -> None:
    """Refuse a description that says more than layers, with literal values, of Ultralytics or of ``torch.nn``.

    Raises:
        ModelError: It names the line and what stands there.
    """
    lines = _lines(Path(description["yaml_file"]))
    for key, value in description.items():
        if key in ("scale", "yaml_file"):
            continue
        reason = _wrong(key, value)
        if reason is not None:
            number, text = lines.get(reason[0], 1), reason[1]
            raise ModelError(f"{name!r}, line {number}: {text}")


_Place = tuple[str, int]


def _wrong(key: Any, value: Any) -> tuple[_Place, str] | None:
    """Where a key's value is wrong, and what is wrong with it."""
    place = (str(key), 0)
    if key not in _KEYS:
        return place, f"{_shown(key)} is not a key of a detector's description; remove it"
    if key == "activation":
        return None if value is None or is_activation(value) else (place, _NO_ACTIVATION.format(_shown(value)))
    if key == "end2end":
        return None if isinstance(value, bool) else (place, f"end2end: {_shown(value)} is not true or false")
    if key in _NUMBERS:
        whole = key not in ("depth_multiple", "width_multiple")
        return None if _is_size(value, whole) else (place, f"{key}: {_shown(value)} is not a number of a usual size")
    if key == "scales":
        good = isinstance(value, dict) and all(
            isinstance(scale, str) and isinstance(row, list) and len(row) == 3 and all(map(_is_size, row))
            for scale, row in value.items()
        )
        return None if good else (place, f"scales: {_shown(value)} is not 'n: [depth, width, most channels]' lines")
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_LAYERS:
        return place, f"{key}: is not a list of 1 to {_MOST_LAYERS} layers"
    for number, layer in enumerate(value):
        wrong = _wrong_layer(layer)
        if wrong is not None:
            return (key, number), wrong
    return None


_NO_ACTIVATION = (
    "activation: {} is not an activation of torch.nn with literal values, such as nn.SiLU() or nn.LeakyReLU(0.1); it "
    "would be run as Python"
)


def is_activation(text: Any) -> bool:
    """Whether a text is ``nn.Name(...)`` or ``torch.nn.Name(...)``, an activation with literal values."""
    if not isinstance(text, str) or len(text) > 200:
        return False
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if not isinstance(call, ast.Call):
        return False
    where, _, name = ast.unparse(call.func).rpartition(".")
    known = {*nn.modules.activation.__all__, "Identity"} - {"MultiheadAttention"}
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg)]
    return (
        where in ("nn", "torch.nn")
        and name in known
        and len(values) == len(call.args) + len(call.keywords)
        and all(map(_is_literal, values))
    )


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None)


def _wrong_layer(layer: Any) -> str | None:
    if not isinstance(layer, list) or len(layer) != 4:
        return f"{_shown(layer)} is not a layer: write [from, repeats, name, [values]]"
    origin, repeats, name, values = layer
    origins = origin if isinstance(origin, list) else [origin]
    if not origins or not all(type(number) is int and abs(number) < _MOST_LAYERS for number in origins):
        return f"{_shown(origin)} is not a layer's number or a list of them"
    if type(repeats) is not int or not 1 <= repeats <= _MOST_REPEATS:
        return f"{_shown(repeats)} is not a number of repeats from 1 to {_MOST_REPEATS}"
    if not isinstance(name, str) or not _is_layer(name):
        return f"{_shown(name)} is not a layer of Ultralytics or torch.nn that a description may name"
    if not isinstance(values, list) or not _is_plain(values):
        return f"{_shown(values)} are not literal values of a layer: numbers, true, false, words, nc"
    return None


def _is_layer(name: str) -> bool:
    short = name.removeprefix("nn.")
    if short != name and short not in nn.modules.__all__:
        return False
    found = vars(nn if short != name else tasks).get(short)
    return (
        isinstance(found, type)
        and issubclass(found, nn.Module)
        and found.__module__.startswith(_LAYERS)
        and short not in _DOWNLOADS
    )


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < 3 and len(value) <= _MOST_ARGUMENTS and all(_is_plain(part, depth + 1) for part in value)
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        if not _WORD.fullmatch(value) or value in _LOCALS:
            return False
        try:
            meant = ast.literal_eval(value)  # as Ultralytics does
        except (ValueError, SyntaxError):
            return True
        return not isinstance(meant, str) and _is_plain(meant, depth)
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= _LARGEST


def _is_size(value: Any, whole: bool = False) -> bool:
    numbers = (int,) if whole else (int, float)
    return type(value) in numbers and 0 < value <= _LARGEST


def _find(path: Path) -> Path | None:
    """As Ultralytics looks for it: here, among its own, and both again by the name without the size."""
    if match := re.fullmatch(r"(yolov[58][nsmlx])6", path.stem):
        path = path.with_name(f"{match[1]}-p6{path.suffix}")
    for wanted in (path, Path(re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", str(path)))):
        if wanted.is_file():
            return wanted
        if wanted.name and wanted == Path(wanted.name):
            found = sorted((ROOT / "cfg" / "models").rglob(wanted.name)) if "*" not in wanted.name else []
            if found:
                return found[0]
    return None


def _text(file: Path) -> str:
    return read_file(file, _MOST_BYTES).decode("utf-8-sig")


def _lines(file: Path) -> dict[_Place, int]:
    """The line of every key, and of every layer below it."""
    found: dict[_Place, int] = {}
    root = yaml.compose(_text(file), yaml.SafeLoader)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        layers = value.value if isinstance(value, yaml.SequenceNode) else ()
        found[str(key.value), 0] = key.start_mark.line + 1
        found |= {(str(key.value), number): layer.start_mark.line + 1 for number, layer in enumerate(layers)}
    return found


def _shown(value: Any) -> str:
    return repr(value)[:100]
