"""What a site's own file must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dptrain.errors import ConfigError
from dptrain.federated.settings import read_settings

SITE = {
    "name": "north", "rounds": 3, "steps": 6, "model": "start.pt", "data": "data.yaml", "output_dir": "out",
    "privacy": {"noise_multiplier": 1.0, "dataset_size": 6, "expected_batch_size": 3, "delta": 1e-3},
}  # fmt: skip


def written(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "site.yaml"
    file.write_text(json.dumps({**SITE, **changes}))
    return file


def test_the_plan_is_one_over_all_rounds(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path))
    assert (settings.plan.steps, settings.steps_per_round, settings.declared_size) == (6, 2, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 4}, "steps=6 is no multiple of rounds=4"),
        ({"rounds": True}, "rounds=True is not a whole number"),
        ({"name": "ward 7"}, "name=ward 7 is not 1 to 40 letters"),
        ({"steps": None}, "steps is not set"),
        ({"output_dir": ""}, "output_dir is not set"),
        ({"resume": True}, "resume=True is not worked out for rounds"),
        ({"device": "cpu,cpu"}, "device=cpu,cpu is several"),
        ({"tuning": {"method": "random_stopping", "search": {"optimizer.lr": [1e-3, 1e-2]}}}, "tuning.method"),
        ({"privacy": {**SITE["privacy"], "dataset_size": None, "sample_rate": 0.5}}, "privacy.dataset_size is not set"),
        ({"privacy": {**SITE["privacy"], "noise": "banded", "bands": 2}}, "privacy.noise=banded is not worked out"),
    ],
)
def test_what_a_site_lacks_or_rounds_cannot_do_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_settings(written(tmp_path, **changes))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml cannot be read"):
        read_settings(tmp_path / "no.yaml")
