"""Bugs in what a run is said to cost where it did not end as planned, and in what tells of it beside the numbers."""

from __future__ import annotations

from .edits import bug

STATEMENT = "tests/statement/test_check.py::"
SWEEP = "tests/sweep/test_sweep_record.py::"
_CLAIM = "dptrain.statement.facts:claim_of"

CLAIM_BUGS = (
    bug(
        "stopped run at epsilon(tau)",
        "A run that was stopped claims the epsilon of the steps it took, though a look at it decided where it stopped.",
        _CLAIM, "planned = max(steps, plan.steps)", "planned = steps",
        STATEMENT + "test_a_run_that_ended_early_claims_the_epsilon_of_its_plan",
        STATEMENT + "test_a_run_that_ended_early_cannot_claim_less_than_its_plan",
    ),
    bug(
        "stopped sweep at its steps",
        "A sweep that was stopped claims what its jobs had taken by then.",
        "dptrain.sweep.cost:JobCost.counted_steps", "max(self.steps, self.planned_steps)", "self.steps",
        SWEEP + "test_the_composed_epsilon_counts_every_planned_step_of_unfinished_jobs_too",
        SWEEP + "test_a_sweep_stopped_before_its_last_jobs_costs_what_all_of_them_would",
    ),
    bug(
        "winner's curve of one run",
        "The statement of the best of many runs draws a curve that ends at what one run costs.",
        "dptrain.statement.facts:make_statement", "if is_tuned(tuning)", "if False",
        "tests/statement/test_render.py::test_no_picture_shows_a_winner_at_less_than_the_tuning_that_chose_it",
    ),
)  # fmt: skip
