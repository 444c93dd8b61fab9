"""What may be written, and how a run resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import ConfigError, PrivacyError
from ..privacy.plan import PrivacyPlan
from ..support.files import flatten, refuse_damage, write_atomically

# Everything a checkpoint may hold. All of it is noised or public.
CHECKPOINT_KEYS = ("format", "plan", "step", "phases", "parameters", "frozen", "average", "optimizer", "seed")
CHECKPOINT_FORMAT = 5


def save_checkpoint(
    file: Path,
    state: dict[str, Any],
    plan: PrivacyPlan,
    seed: int | None,
    write: Callable[[Path, Callable[[IO[bytes]], object]], object] = write_atomically,
) -> None:
    """Write the state of a run, atomically; ``write`` does it, and may seal it.

    Raises:
        PrivacyError: The state has a key that is not on the whitelist.
    """
    payload = {"format": CHECKPOINT_FORMAT, "plan": plan.to_dict(), "seed": seed, **state}
    unknown = set(payload) - set(CHECKPOINT_KEYS)
    if unknown:
        raise PrivacyError(f"a checkpoint may not hold {sorted(unknown)}: only {', '.join(CHECKPOINT_KEYS)}")
    write(file, lambda stream: torch.save(payload, stream))


def load_checkpoint(
    file: Path, plan: PrivacyPlan, seed: int | None, content: IO[bytes] | None = None
) -> dict[str, Any]:
    """Read the state of a run that followed the same plan; tensors on the CPU. ``content`` is that of a sealed file.

    Raises:
        PrivacyError: There is no such file, it cannot be read, or it belongs to another plan or seed.
    """
    payload = _read(file, content)
    written = {**flatten(_plan(file, payload).to_dict()), "seed": payload["seed"]}
    wanted = {**flatten(plan.to_dict()), "seed": seed}
    for key, value in wanted.items():
        was = written[key]
        if isinstance(was, torch.Tensor | bool) or was != value:
            raise PrivacyError(
                f"{file} was made with another {key} than this run's: resume with the same settings "
                "(they are in config.yaml beside it)"
            )
    damage = _damage(payload, plan)
    if damage is not None:
        raise PrivacyError(f"{file} is damaged: {damage}")
    return {key: payload[key] for key in ("step", "phases", "parameters", "frozen", "average", "optimizer")}


def last_release(file: Path, content: IO[bytes] | None = None) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the steps that a run has taken and its last iterate, on the CPU; ``content`` is that of a sealed file.

    Raises:
        PrivacyError: The file cannot be read.
    """
    payload = _read(file, content)
    if (damage := _damage(payload, _plan(file, payload))) is not None:
        raise PrivacyError(f"{file} is damaged: {damage}")
    return payload["step"], payload["parameters"]


def scales_of(file: Path, content: IO[bytes] | None = None) -> tuple[tuple[str, float], ...]:
    """Return the scales of the layers that a run began with; ``content`` is that of a sealed file.

    Where the start is partly random, as the head of new classes is, nothing would measure the same ones again.

    Raises:
        PrivacyError: The file cannot be read, or it holds none.
    """
    scales = _plan(file, _read(file, content)).clipping.scales
    if not scales:
        raise PrivacyError(f"{file} was made without scales of the layers: resume with the same settings")
    return scales


def _plan(file: Path, payload: dict[str, Any]) -> PrivacyPlan:
    """The plan of the run that wrote a checkpoint."""
    try:
        return PrivacyPlan.from_dict(payload["plan"])
    except ConfigError as error:
        raise PrivacyError(f"{file} is damaged: {error}") from error


def _read(file: Path, content: IO[bytes] | None = None) -> dict[str, Any]:
    """The payload of a checkpoint: of this format, and with all its keys."""
    if not file.is_file():
        raise PrivacyError(f"{file} is not there, so the run cannot be resumed: start a new one in another output_dir")
    try:
        refuse_damage(content or file)
        if content is not None:
            content.seek(0)
        payload: dict[str, Any] = torch.load(content or file, map_location="cpu", weights_only=True)
        _, found = payload["seed"], payload["format"]
        missing = [key for key in CHECKPOINT_KEYS if key not in payload]
    except Exception as error:  # a damaged file fails in many ways; all mean the same to the user
        raise PrivacyError(f"{file} is not a dptrain checkpoint ({type(error).__name__}), or it is damaged") from error
    if type(found) is not int or found != CHECKPOINT_FORMAT:
        raise PrivacyError(
            f"{file} is of format {found!r}, and {CHECKPOINT_FORMAT} is expected: resume with its dptrain"
        )
    if missing:
        raise PrivacyError(f"{file} is damaged: {missing[0]} is not in it")
    return payload


def _damage(payload: dict[str, Any], plan: PrivacyPlan) -> str | None:
    """What of a state cannot be gone on with, in words; None where it can."""
    step = payload["step"]
    if type(step) is not int or not 0 <= step <= plan.steps:
        return f"step={step!r} is not a whole number from 0 to {plan.steps}"
    if not _are_phases(payload["phases"]):
        return "phases is not a list of steps, names and a clip norm"
    for name in ("parameters", "frozen", "average"):
        table = payload[name]
        if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
            return f"{name} is not a table"
        for key, value in table.items():
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
                return f"{name}.{key} is not a dense tensor"
            if value.untyped_storage().nbytes() < value.numel() * value.element_size():
                return f"{name}.{key} has fewer numbers than its shape"  # a gigabyte from one number
            # What is frozen may count batches; not finite, it would make every gradient one that is left out.
            sound = bool(torch.isfinite(value).all()) if value.is_floating_point() else name == "frozen"
            if not sound:
                return f"{name}.{key} is not made of finite numbers"
    shapes = [{key: value.shape for key, value in payload[name].items()} for name in ("parameters", "average")]
    if shapes[0] != shapes[1]:
        return "its average is of other parameters"
    return _optimizer_damage(payload["optimizer"], list(shapes[0].values()))


def _are_phases(phases: Any) -> bool:
    return isinstance(phases, list) and all(
        isinstance(phase, list)
        and len(phase) == 3
        and type(phase[0]) is int
        and isinstance(phase[1], list)
        and all(isinstance(name, str) for name in phase[1])
        and (phase[2] is None or type(phase[2]) is float)
        for phase in phases
    )


def _optimizer_damage(state: Any, shapes: list[torch.Size]) -> str | None:
    """Every optimizer of torch keeps, for a parameter, numbers and tensors of its shape."""
    groups = state.get("param_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    ):
        return "optimizer.param_groups is not a list of tables"
    if [number for group in groups for number in group["params"]] != list(range(len(shapes))):
        return "optimizer.param_groups are of other parameters"
    if not isinstance(state.get("state"), dict):
        return "optimizer.state is not a table"
    for number, kept in state["state"].items():
        if type(number) is not int or not 0 <= number < len(shapes) or not isinstance(kept, dict):
            return f"optimizer.state has no parameter {number!r}"
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape != shapes[number]:
                return f"optimizer.state.{number}.{name} is of another shape than its parameter"
    return None
