"""Planning: every run of the grid meets the target, and no data is needed to say so."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from dp_accounting.rdp import compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain import BudgetLedger, ConfigError, PrivacyPlan, plan_grid
from dptrain.detection.speed import measure_seconds_per_image
from dptrain.ledger.remaining import remaining
from dptrain.privacy import accounting, calibration, conversion
from dptrain.privacy.planning import Remaining, default_batch_sizes


def test_every_run_meets_the_target_with_hardly_more_noise_than_needed() -> None:
    grid = plan_grid(10_000, 8.0, batch_sizes=[64, 1024], steps=[100, 1000], seconds_per_image=0.01)
    assert [(run.expected_batch_size, run.steps) for run in grid.runs] == [
        (64, 100),
        (64, 1000),
        (1024, 100),
        (1024, 1000),
    ]
    assert grid.delta == pytest.approx(10_000**-1.1)
    for run in grid.runs:
        exact = accounting.dp_sgd_epsilon(run.sample_rate, run.steps, run.noise_multiplier, grid.delta)
        assert exact <= run.epsilon <= 8.0
        assert accounting.dp_sgd_epsilon(run.sample_rate, run.steps, run.noise_multiplier * 0.999, grid.delta) > 8.0
        plan = PrivacyPlan(run.sample_rate, run.steps, run.noise_multiplier, 1.0, grid.delta, run.expected_batch_size)
        assert run.signal == plan.signal
        assert run.epochs == run.expected_batch_size * run.steps / 10_000
        assert run.seconds == pytest.approx(0.01 * run.expected_batch_size * run.steps)
    assert grid.best == max(grid.runs, key=lambda run: run.signal)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.floats(-3, 0), st.integers(1, 3000), st.floats(-1, 1.3), st.floats(-7, -3))
def test_the_quick_search_never_falls_short(log_rate: float, steps: int, log_epsilon: float, log_delta: float) -> None:
    rate, target, delta = 10**log_rate, 10**log_epsilon, 10**log_delta
    noise, reached = calibration.calibrate_quickly(target, delta, rate, steps)
    exact = accounting.dp_sgd_epsilon(rate, steps, noise, delta)
    assert exact <= reached <= target
    assert exact <= calibration.epsilon_quickly(rate, steps, noise, delta)


def test_the_exact_search_is_least_also_where_the_quick_one_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    least = calibration.calibrate_noise(8.0, 1e-5, 0.02, 100)
    monkeypatch.setattr(calibration, "calibrate_quickly", lambda *_: (1.5 * least, 3.0))
    assert calibration.calibrate_noise(8.0, 1e-5, 0.02, 100) == least
    assert accounting.dp_sgd_epsilon(0.02, 100, least, 1e-5) <= 8.0
    assert accounting.dp_sgd_epsilon(0.02, 100, least - 1e-4, 1e-5) > 8.0


def test_a_default_grid_takes_seconds_of_one_core() -> None:
    start = time.process_time()
    grid = plan_grid(118_000, 7.77)
    assert len(grid.runs) == 25
    assert time.process_time() - start < 10  # about 2 on a quiet core


def test_default_batches_fit_any_dataset() -> None:
    for size in (2, 3, 10, 700, 19_999, 20_000, 10**7):
        batches = default_batch_sizes(size)
        assert batches[0] >= 1 and batches[-1] <= max(1, size // 2)
    assert default_batch_sizes(118_000) == (128, 512, 2048, 8192, 32768)


def test_what_cannot_be_met_is_named_beside_what_can() -> None:
    grid = plan_grid(100, 0.02, delta=1e-6, batch_sizes=[1, 100], steps=[10, 10**9])
    assert {(batch, steps) for batch, steps, _ in grid.impossible} >= {(100, 10**9)}
    assert all(run.epsilon <= 0.02 for run in grid.runs) and grid.runs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_size": 1}, "dataset_size=1"),
        ({"dataset_size": 10.5}, "dataset_size=10.5"),
        ({"epsilon": None}, "no target"),
        ({"epsilon": -1.0}, "epsilon=-1"),
        ({"delta": 1.0}, "delta=1"),
        ({"batch_sizes": [101]}, "batch_sizes=101"),
        ({"batch_sizes": [0]}, "batch_sizes=0"),
        ({"steps": []}, "steps is empty"),
        ({"steps": [True]}, "steps=True"),
        ({"seconds_per_image": math.nan}, "seconds_per_image=nan"),
    ],
)
def test_a_wrong_number_is_named(changes: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"dataset_size": 100, "epsilon": 8.0, **changes}
    with pytest.raises(ConfigError) as error:
        plan_grid(**arguments)  # type: ignore[arg-type]
    assert words in str(error.value)


@pytest.mark.parametrize(("epsilon", "delta", "order"), [(8.0, 1e-5, 3.5), (0.5, 1e-6, 40.0), (3.0, 0.01, 1.1)])
def test_the_divergence_of_a_budget_converts_back_to_it(epsilon: float, delta: float, order: float) -> None:
    divergence = conversion.divergence_for(epsilon, delta, order)
    assert float(compute_epsilon([order], [divergence], delta)[0]) <= epsilon
    if divergence > 0:
        assert float(compute_epsilon([order], [divergence * 1.001 + 1e-9], delta)[0]) > epsilon


def test_a_budget_bounds_the_noise_at_its_own_order() -> None:
    budget = Remaining("clinic", 4.0, 1.5, 8.0, 1e-5)
    grid = plan_grid(10_000, budget=budget, batch_sizes=[256], steps=[500])
    (run,) = grid.runs
    spent = accounting.dp_sgd_rdp_curve(run.sample_rate, 500, run.noise_multiplier)[4.0]
    assert spent <= 1.5
    assert accounting.dp_sgd_rdp_curve(run.sample_rate, 500, run.noise_multiplier * 0.999)[4.0] > 1.5
    strict = plan_grid(10_000, 0.5, budget=budget, batch_sizes=[256], steps=[500]).runs[0]
    assert strict.noise_multiplier > run.noise_multiplier and strict.epsilon <= 0.5


def test_a_run_planned_for_what_is_left_is_let_in_and_a_little_less_noise_is_not(tmp_path: Path) -> None:
    from PIL import Image

    from dptrain import BudgetError

    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    ledger = BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}")
    manifest = ledger.manifest(sorted(tmp_path.glob("*.png")))
    ledger.create("clinic", epsilon=8.0, delta=1e-5, unit="image", manifest=manifest)
    assert remaining(ledger.show("clinic")[0]).order is None
    ledger.reserve(accounting.dp_sgd_event(0.02, 500, 1.0), manifest, delta=1e-5)
    left = remaining(ledger.show("clinic")[0])
    (run,) = plan_grid(10_000, budget=left, batch_sizes=[256], steps=[300]).runs
    with pytest.raises(BudgetError):
        ledger.reserve(
            accounting.dp_sgd_event(run.sample_rate, 300, run.noise_multiplier * 0.999), manifest, delta=1e-5
        )
    ledger.reserve(accounting.dp_sgd_event(run.sample_rate, 300, run.noise_multiplier), manifest, delta=1e-5)


def test_measuring_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seconds = measure_seconds_per_image("yolo26n.yaml", 64, physical_batch_size=2, trainable="head")
    assert 0 < seconds < 60
    assert not list(tmp_path.iterdir())
