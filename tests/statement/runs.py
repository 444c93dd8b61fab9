"""The folder of a run as training leaves it, made without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dptrain import PrivacyPlan
from dptrain.statement import make_statement, write_statement

PLAN = PrivacyPlan(0.05, 20, 1.0, 1.5, 1e-4, 50)


def facts(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "steps": PLAN.steps,
        "status": "finished",
        "secure": True,
        "dataset": {"name": "pets", "declared_size": 1000},
        "model": {"start": "start.pt", "start_sha256": "ab" * 32, "trainable": "all", "trainable_parameters": 7},
        "validation": "treated as public",
        "public_data": {"start_weights": "start.pt", "sha256": "ab" * 32, "declared": None},
    }
    return make_statement(PLAN, **{**values, **changes})


def settings(seed: int | None = None) -> dict[str, Any]:
    """``settings.json`` as the run writes it, as far as a statement speaks of it."""
    names = ("sample_rate", "noise_multiplier", "clip_norm", "expected_batch_size", "delta", "unit", "bands")
    return {
        "steps": PLAN.steps,
        "seed": seed,
        "trainable": "all",
        "start_sha256": "ab" * 32,
        "privacy": {
            **{name: getattr(PLAN, name) for name in names},
            "dataset_size": 1000,
            "clipping": PLAN.clipping.name,
            **{f"clip_{name}": value for name, value in PLAN.clipping.to_dict().items() if name != "name"},
        },
    }


def make_run(folder: Path, journal: int = PLAN.steps, seed: int | None = None, **changes: Any) -> Path:
    (folder / "weights").mkdir(parents=True)
    for name in ("last.pt", "last_raw.pt"):
        (folder / "weights" / name).write_bytes(name.encode())
    (folder / "settings.json").write_text(json.dumps(settings(seed)))
    (folder / "steps.journal").write_text("." * journal)
    write_statement(folder, facts(**changes))
    return folder


def edit(file: Path, name: str, value: Any) -> None:
    """Change one field of a JSON file, at a dotted name; a value of ``...`` removes it."""
    content = json.loads(file.read_text())
    *path, last = name.split("/")
    inside = content
    for key in path:
        inside = inside[key]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    file.write_text(json.dumps(content))


def reseal(folder: Path, name: str, value: Any) -> None:
    """Edit both copies of a statement and make their sha256 fit, as a careful forger would."""
    from dptrain.statement.facts import sealed

    for file in (folder / "statement.json", folder / "weights" / "statement.json"):
        edit(file, name, value)
        file.write_text(json.dumps(sealed(json.loads(file.read_text()))))
