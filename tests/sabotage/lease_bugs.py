"""Bugs in what a copy of a run's folder may do, and in what a stop is worth."""

from __future__ import annotations

from .edits import bug

LEASES = "tests/ledger/test_leases.py::"
_LEDGER = "dptrain.ledger.charges:Charges."

LEASE_BUGS = (
    bug(
        "old copy resumed",
        "A folder resumes where it was copied, though its run went further: those steps are taken twice.",
        _LEDGER + "resume", "taken = int(row.leased)", "taken = steps",
        LEASES + "test_a_copy_goes_on_after_the_last_step_that_may_have_been_taken",
        LEASES + "test_no_order_of_copies_kills_and_resumes_takes_a_step_that_is_not_charged",
    ),
    bug(
        "lease not charged",
        "A folder is settled at its own count: an old copy charges fewer steps than were taken.",
        _LEDGER + "settle", "charged = max(charged, row.leased)", "pass",
        LEASES + "test_settling_a_copy_charges_what_may_have_been_taken",
    ),
    bug(
        "two processes on one charge",
        "A run whose copy was resumed gets leave for its next steps all the same.",
        _LEDGER + "_refuse_superseded", "if row.lease not in [self._hashed(token) for token in held]:", "if False:",
        LEASES + "test_of_a_run_and_its_copy_the_first_is_stopped_at_the_end_of_its_lease",
        LEASES + "test_a_process_with_the_memory_of_another_gets_no_second_lease",
    ),
    bug(
        "spent at the stop",
        "A dataset has spent what a stopped run took, though when it stopped was chosen by looking at it.",
        "dptrain.ledger.run_rows:not_taken",
        'return int(run["planned"] - run["charged"]) if ended_early else 0', "return 0",
        "tests/ledger/test_stopped.py::test_a_run_that_ended_early_has_spent_its_plan_and_is_charged_its_steps",
    ),
)  # fmt: skip
