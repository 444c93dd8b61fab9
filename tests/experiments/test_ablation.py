"""The harness that compares options: what a run is given, what is paired with what, and what is left to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dptrain import ConfigError
from experiments import ablation, recipe
from experiments.ablation import BASE, OPTIONS


def test_the_noise_on_the_mean_gradient_is_the_recipes_at_any_batch() -> None:
    full, small = (
        ablation.arguments(OPTIONS[BASE], Path("s"), Path("d"), Path("o"), 0, 20, batch)["privacy"]
        for batch in (recipe.BATCH, 64)
    )
    ratios = [p["noise_multiplier"] / p["expected_batch_size"] for p in (full, small)]
    assert ratios[0] == pytest.approx(ratios[1]) and full["noise_multiplier"] > 0.5


def test_an_option_changes_its_own_keys_and_no_others() -> None:
    base, other = (
        ablation.arguments(OPTIONS[name], Path("s"), Path("d"), Path("o"), 1, 20, 64) for name in (BASE, "automatic")
    )
    assert other["privacy"] == {**base["privacy"], "clipping": "automatic"}
    assert {**other, "privacy": None} == {**base, "privacy": None}


def test_gains_are_paired_by_seed_and_against_what_the_option_says() -> None:
    runs: list[dict[str, Any]] = [
        {"option": name, "seed": seed, "mAP50": score}
        for name, scores in ((BASE, (0.5, 0.7)), ("scaled", (0.4, 0.5)), ("scaled_lr_half", (0.5, 0.6)))
        for seed, score in enumerate(scores)
    ]
    rows = {row["option"]: row for row in ablation.compare([*runs, {"option": "lora", "seed": 0, "refused": "no"}])}
    assert rows[BASE]["gain"] is None and "lora" not in rows
    assert rows["scaled"]["gain"] == pytest.approx(-0.15)
    assert rows["scaled_lr_half"]["gain"] == pytest.approx(0.1) and rows["scaled_lr_half"]["least"] == 0.5
    assert rows["scaled_lr_half"]["deviation"] == pytest.approx(0.0)


def test_what_was_measured_is_not_measured_again_and_what_was_refused_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, int]] = []

    def measure(option: Any, start: Path, data: Path, seed: int, steps: int, batch: int) -> dict[str, Any]:
        name = next(name for name, known in OPTIONS.items() if known is option)
        tried.append((name, seed))
        if name == "lora":
            raise ConfigError("unknown key lora")
        return {"mAP50": 0.5, "mAP50-95": 0.3, "seconds": 1.0}

    monkeypatch.setattr(ablation, "measure", measure)
    monkeypatch.setattr(ablation, "write_private", lambda folder: folder)
    results = tmp_path / "results.json"
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr(
            "sys.argv",
            ["ablation", "--resume", "--only", f"{BASE},lora", "--seeds", *seeds, "--results", str(results),
             "--root", str(tmp_path / "root")],
        )  # fmt: skip
        ablation.main()
    assert tried == [(BASE, 0), ("lora", 0), ("lora", 0), (BASE, 1)]
    kept = json.loads(results.read_text())["runs"]
    assert sorted((run["option"], run["seed"], "refused" in run) for run in kept) == [
        ("lora", 0, True), (BASE, 0, False), (BASE, 1, False),
    ]  # fmt: skip
