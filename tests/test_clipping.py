"""The edge cases that ``FlatClip`` states."""

from __future__ import annotations

import math

import pytest
import torch

from dptrain import ConfigError, FlatClip


def test_edge_table() -> None:
    weights = FlatClip(2.0).weights(torch.tensor([0.0, 1.0, 100.0, math.inf, math.nan, 1e-300], dtype=torch.float64))
    assert weights.tolist() == [1.0, 1.0, pytest.approx(0.2, rel=1e-5), 0.0, 0.0, 1.0]
    assert float(weights[2]) * 10.0 <= 2.0
    assert FlatClip(1.0).weights(torch.zeros(0)).shape == (0,)


def test_a_factor_that_single_precision_cannot_hold_drops_the_example() -> None:
    assert FlatClip(1.0).weights(torch.tensor([1e90], dtype=torch.float64)).tolist() == [0.0]


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-40, 1e30, math.inf, math.nan])
def test_clip_norms_that_bound_nothing_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="clip_norm"):
        FlatClip(bad)


def test_sensitivity() -> None:
    assert FlatClip(0.3).sensitivity() == 0.3
    assert FlatClip(0.3).sensitivity("replace_one") == 0.6
    with pytest.raises(ConfigError, match="edge"):
        FlatClip(0.3).sensitivity("edge")
