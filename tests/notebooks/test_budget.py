"""The third notebook: a budget across runs, and a ledger that was tampered with."""

from __future__ import annotations

import re

from .short import BUDGET, number_after, short_text


def test_the_budget_is_spent_passed_by_no_run_and_tampering_is_found() -> None:
    text = short_text(BUDGET)
    assert "BudgetError: " in text and "would fit" in text and "runs/third/weights/last.pt" in text
    assert "sound; head" in text and "NOT SOUND" in text and "exit status 3" in text
    assert re.search(r"by itself:\s+sound\nagainst the head:\s+the head \S+ is not in the chain", text)
    alone, looked_at = number_after("one run   ", text), number_after("ten runs, looked at", text)
    assert alone < number_after("only the winner", text) < looked_at
