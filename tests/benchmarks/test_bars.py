"""What is made of measurements: ratios of the same repeat, bars, tables and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory, table
from benchmarks.bars import Bar, bars
from benchmarks.cases import ROWS, SIZES, Case, cases
from benchmarks.picture import draw
from benchmarks.steps import take_turns


def record(case: Case, **result: Any) -> dict[str, Any]:
    return {"case": case.values(), "result": result}


def timed(case: Case, **seconds: list[float]) -> dict[str, Any]:
    return record(case, seconds=seconds)


def found(records: list[dict[str, Any]], what: str) -> Bar:
    (bar,) = [bar for bar in bars(records) if bar.what == what]
    return bar


FUSED = "fused over plain forward and backward"


@pytest.mark.parametrize(("fused", "met"), [([1.0, 1.1, 1.2], True), ([1.0, 1.0, 1.3], False), ([1.2] * 3, False)])
def test_the_bar_of_the_gradients_is_on_the_median_and_on_the_worst(fused: list[float], met: bool) -> None:
    records = [timed(Case("gradients", "time", images=i), plain=[1.0], fused=[s]) for i, s in enumerate(fused)]
    bar = found(records, FUSED)
    assert (bar.least, bar.median, bar.greatest) == pytest.approx((min(fused), sorted(fused)[1], max(fused)))
    assert bar.met is met
    assert bar.cases == 3


def test_a_ratio_is_of_two_times_of_the_same_repeat() -> None:
    # A slow spell in the second repeat meets both; a ratio of medians would be 2.
    bar = found([timed(Case("gradients", "time"), plain=[1.0, 10.0, 2.0], fused=[1.1, 11.0, 4.0])], FUSED)
    assert bar.median == pytest.approx(1.1)


def test_opacus_and_the_loader_have_bars_from_below() -> None:
    fast = timed(Case("gradients", "time"), plain=[1.0], fused=[1.0], opacus=[2.5])
    slow = timed(Case("gradients", "time", "yolo11n"), plain=[1.0], fused=[1.0], opacus=[1.5])
    assert found([fast], "Opacus over fused").met is True
    both = found([fast, slow], "Opacus over fused")
    assert both.met is False
    assert both.worst.startswith("yolo11n")
    loader = timed(Case("loader", "loader"), load=[0.1], consume=[0.16])
    assert found([loader], "images a second: loaded over consumed").met is True


def test_memory_that_grows_with_images_times_parameters_is_seen() -> None:
    def peaks(images: int, fused: float) -> dict[str, Any]:
        peak = {"plain": {"first": 50.0 * images, "later": 50.0 * images}, "fused": {"first": fused, "later": fused}}
        return record(Case("memory", "memory", "yolo11x", images=images), peak=peak)

    what = "the same of memory an image (from n to 2n)"
    assert found([peaks(2, 110.0), peaks(4, 210.0)], what).met is True
    assert found([peaks(2, 110.0), peaks(4, 310.0)], what).greatest == pytest.approx(2.0)


@pytest.mark.parametrize(("last", "met"), [(41.0, True), (45.0, False)])
def test_the_cost_of_a_logical_batch_is_linear_whatever_a_step_costs_by_itself(last: float, met: bool) -> None:
    seconds = {"512": [6.0], "1024": [11.0], "2048": [21.0], "4096": [last]}
    bar = found([timed(Case("logical", "logical"), **seconds)], "logical batch: slope of the upper half over the lower")
    assert bar.met is met


def test_what_was_skipped_or_left_out_is_in_no_ratio() -> None:
    skipped = {"case": Case("gradients", "time").values(), "skipped": "would need about 40 GiB"}
    assert bars([skipped]) == []
    without_opacus = timed(Case("gradients", "time"), plain=[1.0], fused=[1.0])
    assert [bar.what for bar in bars([without_opacus])] == [FUSED]


def test_every_row_has_cases_of_every_size_that_survive_json() -> None:
    for size in SIZES:
        for row in ROWS:
            made = cases(row, size, repeats=3)
            assert made
            for case in made:
                assert case.row == row
                assert Case.of(json.loads(json.dumps(case.values()))) == case


def test_the_need_of_memory_is_guessed_from_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def need(images: int, pixels: int) -> dict[str, int]:
        return memory.needed(Case("gradients", "time", "cnn", pixels, images, ("plain", "fused", "opacus")))

    few, many = need(1, 64), need(64, 64)
    assert few["plain"] < many["plain"] <= 64 * few["plain"]
    assert many["plain"] < many["fused"] < many["opacus"]
    monkeypatch.setattr(memory, "available", lambda device: int(1.15 * many["fused"]))
    left_out = memory.too_large(Case("gradients", "time", "cnn", 64, 64, ("plain", "microbatch", "opacus")))
    assert list(left_out) == ["opacus"]
    assert "GiB" in left_out["opacus"]


def test_what_is_compared_takes_turns() -> None:
    order: list[str] = []
    todo = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = take_turns(todo, 2)
    assert "".join(order) == "abc" + "abc" + "bca"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_results_become_tables_and_a_picture(tmp_path: Path) -> None:
    case = Case("gradients", "time")
    peak = {"plain": {"first": 100.0, "later": 90.0}, "fused": {"first": 130.0, "later": 90.0}}
    records = [
        timed(case, plain=[1.0, 1.0], fused=[1.5, 1.5], opacus=[3.0, 3.4]),
        record(Case("memory", "memory"), peak=peak),
        {"case": case.values(), "skipped": "would need about 40 GiB"},
    ]
    results = {
        "machine": {"processor": "A processor", "threads": 2, "gpu": None, "torch": "2.15"},
        "commit": "abc1234",
        "date": "2026-11-21T00:00:00+00:00",
        "command": "--full",
        "bars": [bar.values() for bar in bars(records)],
        "records": records,
    }
    text = table.markdown(json.loads(json.dumps(results)), cases=True)
    assert (
        "| fused over plain forward and backward | median <= 1.10, none > 1.25 | 1.50 | 1.50 | 1.50 | NO | 1 |" in text
    )
    assert "A processor, 2 threads, torch 2.15, 2026-11-21, commit abc1234, `python -m benchmarks --full`." in text
    assert "| yolo26n 8 x 320 px | 1.00 | 1.50 (1.50-1.50) | - | - | 3.20 (3.00-3.40) |" in text
    assert table.for_terminal(results).row_count == len(results["bars"])
    draw(results, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
