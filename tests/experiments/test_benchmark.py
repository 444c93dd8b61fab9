"""The benchmark: what it runs, what it keeps, what it may say; and one small run of it against a measured band."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dp_accounting.rdp import compute_epsilon

from dptrain.privacy import accounting
from dptrain.settings import resolve as settings
from experiments import tuning
from experiments.benchmark import __main__ as command
from experiments.benchmark import band, painted, runs
from experiments.benchmark.a_set import BenchmarkSet
from experiments.benchmark.runs import Job, Results, jobs_of
from experiments.benchmark.sets import SETS
from experiments.benchmark.table import draw, lines, table
from experiments.photos import Missing

DIGITS = replace(SETS["digits"], plain=replace(SETS["digits"].plain, rates=(5e-4, 1e-3, 2e-3)))


def row(kind: str, score: float, **more: Any) -> dict[str, Any]:
    """A run as the results hold it."""
    base = {"kind": kind, "repeat": 0, "rate": None, "epsilon_asked": None, "mAP50": score, "mAP50-95": score / 2}
    machine = {"cpu": "a processor", "cores": 2}
    return {**base, "seconds": 100.0, "peak_memory_mb": 1500, "threads": 1, "machine": machine, **more}


RUNS = [
    row("start", 0.2),
    row("plain", 0.5, rate=1e-3),
    row("plain", 0.8, rate=2e-3),
    row("plain", 0.7, rate=2e-3, repeat=1),
    row("private", 0.72, epsilon_asked=8.0),
    row("private", 0.75, epsilon_asked=8.0, repeat=1),
    row("private", 0.6, epsilon_asked=2.0),
]
WHOLE = {"sets": {"digits": {"what": "digits", "delta": 1e-5, "tuned": "", "epsilon_of_all": 12.3, "runs": RUNS}}}


def test_a_share_is_of_the_mean_of_the_best_plain_rate() -> None:
    text = lines(WHOLE)
    plain = next(line for line in text if "| without privacy, best of 2 rates (0.002) |" in line)
    assert "| 2 | 0.750 ± 0.071 |" in plain
    eight = next(line for line in text if "epsilon 8" in line)
    assert "| 2 | 0.735 ± 0.021 | 98.0% | 0.367 ± 0.011 | 98.0% |" in eight
    assert "| 1 | 0.600 | 80.0% |" in next(line for line in text if "epsilon 2" in line)


def test_times_are_shown_beside_those_of_the_same_processor_only() -> None:
    elsewhere = {**RUNS[-1], "machine": {"cpu": "another", "cores": 2}}
    text = lines({"sets": {"digits": {**WHOLE["sets"]["digits"], "runs": [*RUNS[:-1], elsewhere]}}})
    assert [line.split(" | ")[-2] for line in text[2:]] == ["100", "100", "another machine", "100"]


def test_the_published_table_is_that_of_the_published_runs(tmp_path: Path) -> None:
    found = command.Benchmark(options(tmp_path, name="benchmark", any_commit=True)).finished()
    assert found and (command.RESULTS / "benchmark.md").read_text() == table({"sets": found})


def test_the_picture_is_drawn_also_of_a_table_that_is_not_whole(tmp_path: Path) -> None:
    draw(WHOLE, tmp_path / "whole.png")
    assert (tmp_path / "whole.png").stat().st_size > 5000
    draw({"sets": {"digits": {**WHOLE["sets"]["digits"], "runs": RUNS[:2]}}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_plain_rates_are_tried_before_anything_hangs_on_them() -> None:
    before = list(jobs_of(DIGITS, [8, 1], 2, None))
    assert [job.kind for job in before[:4]] == ["start", "plain", "plain", "plain"]
    assert [job.key for job in before[4:]] == ["private_eps8_0", "private_eps1_0", "private_eps8_1", "private_eps1_1"]
    assert [job.key for job in jobs_of(DIGITS, [1, 8], 2, best=1e-3)] == [*(j.key for j in before), "plain_lr0.001_1"]


def test_runs_beside_each_other_are_all_kept(no_runs: list[str], tmp_path: Path) -> None:
    assert command.Benchmark(options(tmp_path, processes=3, seeds=2)).run()
    assert len(no_runs) == len(set(no_runs)) == 7
    told = (tmp_path / "results" / "try.md").read_text()
    assert (
        "| digits | private, epsilon 8 | 2 |" in told
        and "| digits | without privacy, best of 3 rates (0.0005) | 2 |" in told
    )


def test_a_run_is_kept_for_its_own_settings_and_commit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("digits", "private", 0, 8.0)
    monkeypatch.setattr(runs, "commit", lambda: "aaa")
    place = tmp_path / "digits"
    place.mkdir()
    (tmp_path / "cells").mkdir()
    results = Results(place, tmp_path)
    assert results.find(job) is None
    kept = {"mAP50-95": 0.5, "machine": {"commit": "aaa"}, "settings": job.settings()}
    file = place / f"{job.key}.json"
    file.write_text(json.dumps(kept))
    assert results.find(job) == kept and results.all() == [kept]
    for other in ("{", "{}", "[]", json.dumps({**kept, "settings": {"job": {"set": "none", "kind": "start"}}})):
        (place / "private_eps4_0.json").write_text(other)
        assert results.all() == [kept]
    for name in ("private_eps4_0.json", "../cells/private_eps8_0.json"):  # a run under another's name, or set
        (place / name).write_text(json.dumps(kept))
    assert results.all() == [kept] and results.find(Job("digits", "private", 0, 4.0)) is None
    assert Results(tmp_path / "cells", tmp_path).all() == []
    changed = replace(DIGITS, private={**DIGITS.private, "steps": 41})
    with monkeypatch.context() as patch:
        patch.setitem(SETS, "digits", changed)
        assert results.find(job) is None and results.all() == []
    with monkeypatch.context() as patch:  # its weights are elsewhere: nothing tells that they are others now
        patch.setitem(SETS, "digits", replace(DIGITS, start=gone))
        assert results.find(job) == kept
    monkeypatch.setattr(runs, "commit", lambda: "bbb")
    assert Results(place, tmp_path).find(job) is None
    assert Results(place, tmp_path, any_commit=True).find(job) == kept


def nothing(root: Path) -> Path:
    return root / "data.yaml"


def gone() -> Path:
    raise Missing("get it there")


def options(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    """What the command line gives."""
    base = {
        "set": ["digits"], "epsilons": [8.0], "seeds": 1, "minutes": None, "name": "try", "root": tmp_path,
        "any_commit": False, "processes": 1, "kinds": runs.KINDS,
    }  # fmt: skip
    return argparse.Namespace(**{**base, **changes})


@pytest.fixture
def no_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The benchmark without training: a run is its key; returns the keys done."""
    done: list[str] = []

    def do(self: Results, job: Job, data: Path) -> dict[str, Any]:
        done.append(job.key)
        found = {
            "kind": job.kind, "repeat": job.repeat, "rate": job.rate, "mAP50": 0.5, "mAP50-95": 0.25,
            "seconds": 600.0, "peak_memory_mb": 1, "threads": 1, "settings": job.settings(),
            "machine": {"cpu": "a processor", "cores": 2, "commit": self.commit},
        }  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{job.key}.json").write_text(json.dumps(found))
        return found

    monkeypatch.setattr(Results, "do", do)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "PICTURES", tmp_path / "pictures")
    monkeypatch.setitem(SETS, "digits", replace(DIGITS, prepare=nothing, public=nothing))
    return done


def test_the_price_of_having_seen_all_runs_is_that_of_their_composition() -> None:
    asked = [8.0, 1.0, 8.0]
    rows = [row("private", 0.5, settings={"job": {"epsilon": epsilon}}) for epsilon in asked]
    assert command.composed(DIGITS, [row("plain", 0.5)]) is None
    curves = [accounting.rdp_curve(command.plan_of(DIGITS, epsilon).event()) for epsilon in asked]
    summed = {order: sum(curve[order] for curve in curves) for order in curves[0]}
    expected = compute_epsilon(list(summed), list(summed.values()), DIGITS.delta)[0]
    assert expected <= (command.composed(DIGITS, rows) or 0.0) <= 1.01 * expected and expected > 8


def test_what_was_done_is_not_done_again(no_runs: list[str], tmp_path: Path) -> None:
    assert command.Benchmark(options(tmp_path)).run()
    assert len(no_runs) == 5
    first = list(no_runs)
    (tmp_path / "results" / "try" / "digits" / f"{first[-1]}.json").unlink()
    assert command.Benchmark(options(tmp_path)).run()
    assert no_runs[5:] == [first[-1]]
    (tmp_path / "results" / "try.md").unlink()
    command.Benchmark(options(tmp_path, set=["cells"])).draw()  # the table is of all sets, whichever is asked for
    told = (tmp_path / "results" / "try.md").read_text()
    assert DIGITS.what in told and DIGITS.tuned in told and "1 of 2 cores of a processor" in told


def test_no_run_is_started_that_would_end_too_late(no_runs: list[str], tmp_path: Path) -> None:
    assert not command.Benchmark(options(tmp_path, minutes=5)).run()  # a plain run takes ten
    assert no_runs == ["start_0", "plain_lr0.0005_0"]
    assert not command.Benchmark(options(tmp_path, minutes=0)).run() and len(no_runs) == 2


def test_a_set_that_is_not_there_is_left_out_with_a_line(
    no_runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SETS, "fashion", replace(SETS["fashion"], start=gone))
    assert command.Benchmark(options(tmp_path, set=["fashion", "digits"])).run()
    assert capsys.readouterr().err.splitlines() == ["fashion: left out: get it there"]
    assert len(no_runs) == 5


@pytest.mark.parametrize("found", [SETS[name] for name in ("fashion", "digits", "cells")], ids=lambda s: s.name)
def test_every_private_recipe_makes_a_plan_within_its_epsilon(found: BenchmarkSet) -> None:
    for epsilon in found.epsilons:
        given = settings.from_kwargs(model="a.pt", data="b.yaml", **found.private_options(epsilon, Path("c.yaml")))
        plan = settings.make_plan(settings.resolve(given))
        assert plan.epsilon() <= epsilon and plan.delta < 1 / found.units
        assert plan.expected_batch_size <= found.units


def test_a_candidate_is_tried_with_the_noise_of_the_private_step() -> None:
    real = settings.make_plan(
        settings.resolve(
            settings.from_kwargs(model="a.pt", data="b.yaml", **SETS["fashion"].private_options(8.0, Path("c.yaml")))
        )
    )
    tried = tuning.simulated("fashion", 8.0, 8, 4000, {"optimizer.lr": 0.5, "trainable": "all"}, Path("c.yaml"))
    plan = tried["plan"]
    assert plan.steps == real.steps and plan.expected_batch_size == real.expected_batch_size / 8
    noise, private = (p.noise_multiplier * p.clip_norm / p.expected_batch_size for p in (plan, real))
    assert noise == pytest.approx(private)
    assert tried["optimizer"]["lr"] == 0.5 and tried["trainable"] == "all"
    assert SETS["fashion"].private["optimizer"]["lr"] != 0.5  # the set's own recipe is left alone


def test_a_small_private_run_lands_in_the_measured_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = json.loads(band.RESULTS.read_text())["band"]
    monkeypatch.setitem(SETS, "digits", band.small_set())
    found = runs.measure(band.JOB, SETS["digits"].prepare(tmp_path / "data"), tmp_path / "run")
    assert found["epsilon"] <= 8 and found["steps"] == 12
    assert low <= found["mAP50"] <= high, found


def test_no_camera_has_scenes_in_train_and_in_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def paint(root: Path, photos: Path, train: int) -> Path:
        for kind, suffix in (("images", "png"), ("labels", "txt")):
            for split, count in (("train", train), ("val", 20)):
                (root / kind / split).mkdir(parents=True)
                for i in range(count):
                    (root / kind / split / f"{i:04d}.{suffix}").touch()
        return root / "data.yaml"

    monkeypatch.setattr(painted, "fashion_photos", lambda: tmp_path)
    monkeypatch.setattr(painted.fashion, "write_private", paint)
    monkeypatch.setattr(painted, "CAMERAS", 3)
    root = tmp_path / "cameras"
    assert painted._cameras(root) == root / "data.yaml"
    pattern = re.compile(SETS["cameras"].private["privacy"]["groups"]["regex"])
    found = {}
    for split in ("train", "val"):
        files = sorted((root / "images" / split).iterdir())
        assert [f.stem for f in files] == [f.stem for f in sorted((root / "labels" / split).iterdir())]
        found[split] = Counter(match[1] for file in files if (match := pattern.search(file.name)))
        assert found[split].total() == len(files)
    assert set(found["train"].values()) == {16} and len(found["train"]) == 3
    assert not found["train"].keys() & found["val"].keys()


ORPHAN = """
import os, time
from experiments.benchmark.runs import process_of_its_own

def run():
    print("running", flush=True)
    time.sleep(30)
    print("outlived", flush=True)
    os._exit(0)

if __name__ == "__main__":
    with process_of_its_own() as pool:
        pool.submit(run).result()
"""


def test_a_run_ends_with_the_benchmark_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": str(Path(command.__file__).parents[2])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "running\n"
        parent.kill()
        assert parent.stdout.readline() == ""  # the run holds the pipe open for as long as it lives
