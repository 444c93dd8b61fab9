"""The line that a run of little promise begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain import PrivacyPlan
from dptrain.detection import load_model
from dptrain.run.foretold import foretold, signal_of

from ..conftest import SMALL
from ..detectors import stock_detector, write_checkpoint


def plan(dataset: int, steps: int = 80) -> PrivacyPlan:
    return PrivacyPlan(0.5, steps, 2.5, 1.0, 1e-5, dataset // 2)


def test_the_signal_is_what_images_add_over_what_noise_does() -> None:
    its = plan(1000)
    noise = 2.5 * (80 * 400) ** 0.5  # norm, over all steps and 400 parameters, in units of the clip norm
    assert signal_of(its, 400) == pytest.approx(80 * 500 / noise)
    assert signal_of(its, 1600) == pytest.approx(signal_of(its, 400) / 2)


def test_a_start_that_lacks_classes_is_told_of_where_the_noise_is_large(tmp_path: Path) -> None:
    start = write_checkpoint(stock_detector(SMALL.removesuffix(".yaml"), "ab"), tmp_path / "start.pt")
    lacks = load_model(start, 2, names={0: "a", 1: "z"})
    told = [foretold(plan(size), lacks) for size in (4, 10**9)]
    assert told[0] is not None and told[0].startswith("the start lacks classes of the data") and "\n" not in told[0]
    assert told[1] is None
    for knows in (load_model(start, 2, names={0: "b", 1: "a"}), load_model(SMALL, 2, names={0: "a", 1: "z"})):
        assert foretold(plan(4), knows) is None
