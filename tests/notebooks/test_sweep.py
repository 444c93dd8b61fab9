"""The second notebook: what a sweep costs, by every account of it."""

from __future__ import annotations

from .short import SWEEP, number_after, short_text


def test_the_sweep_costs_the_same_by_the_accountant_in_mlflow_and_in_the_ledger() -> None:
    text = short_text(SWEEP)
    composed = number_after("all runs, composed by RDP", text)
    assert composed == number_after("what the sweep logged to MLflow", text) == number_after("\n  scenes", text)
    alone = number_after("the run with the least noise alone", text)
    assert alone < composed < number_after("sum of their epsilons", text)
