"""Rényi divergence to (epsilon, delta), at one order or at the best of several.

The formula is dp-accounting's own (Canonne, Kamath and Steinke 2020, proposition 12); a test holds the two equal. It
stands here because importing dp-accounting takes a second, and showing a budget should not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def epsilon_at(order: float, divergence: float, delta: float) -> float:
    """Return the epsilon that a Rényi divergence at one order, above 1.01, converts to. It may be below 0."""
    if delta**2 + math.expm1(-divergence) > 0:
        return 0.0  # by the Kullback-Leibler divergence alone
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def best_order(orders: Sequence[float], divergences: Sequence[float], delta: float) -> tuple[float, float]:
    """Return the least epsilon over all orders, and its order; infinity where no order has a bound."""
    pairs = zip(orders, divergences, strict=True)
    found, order = min((epsilon_at(order, value, delta), order) for order, value in pairs)
    return max(0.0, found), order


def divergence_for(target: float, delta: float, order: float) -> float:
    """Return the largest Rényi divergence at one order that converts to at most ``target`` at ``delta``."""
    low, high = 0.0, target + 3.0 - math.log(delta)  # more than any order gives back in the conversion
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if epsilon_at(order, middle, delta) <= target else (low, middle)
    return low
