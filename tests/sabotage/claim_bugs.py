"""Bugs in what a run is said to cost where it did not end as planned, and in what tells of it beside the numbers."""

from __future__ import annotations

from .edits import bug

STATEMENT = "tests/statement/test_check.py::"
INFINITIES = "tests/ledger/test_infinities.py::"
SWEEP = "tests/run/sweep/test_sweep_record.py::"
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
        "dptrain.run.sweep.cost:JobCost.counted_steps", "max(self.steps, self.planned_steps)", "self.steps",
        SWEEP + "test_the_composed_epsilon_counts_every_planned_step_of_unfinished_jobs_too",
        SWEEP + "test_a_sweep_stopped_before_its_last_jobs_costs_what_all_of_them_would",
    ),
    bug(
        "winner's curve of one run",
        "The statement of the best of many runs draws a curve that ends at what one run costs.",
        "dptrain.statement.facts:make_statement", "if is_tuned(tuning)", "if False",
        "tests/statement/test_render.py::test_no_picture_shows_a_winner_at_less_than_the_tuning_that_chose_it",
    ),
    bug(
        "infinite order counted as zero",
        "Where the accountant has no bound at an order, the ledger takes it for one that costs nothing.",
        "dptrain.ledger.curves:to_curve", "else math.inf for value", "else 0.0 for value",
        INFINITIES + "test_an_order_without_a_bound_stays_without_one_and_is_never_free",
        INFINITIES + "test_a_tuning_of_runs_with_orders_without_a_bound_is_charged_at_the_others",
    ),
    bug(
        "huge order kept",
        "A bound that is too large to be told from none is kept as it is, and the sum of many of them overflows.",
        "dptrain.ledger.curves:to_curve", " and value < MOST", "",
        INFINITIES + "test_a_bound_too_large_to_add_up_is_no_bound_and_not_a_small_one",
    ),
    # what tells of a run beside its numbers
    bug(
        "milliseconds in MLflow",
        "Every metric is stored with the time at which it came in, which tells how long the steps before it took.",
        "dptrain.run.tracking:Tracker.metrics", "float(value), self._at, int(step)",
        "float(value), int(__import__('time').time() * 1000), int(step)",
        "tests/run/test_tracking.py::"
        "test_two_runs_that_took_their_time_at_different_steps_leave_the_same_rows_and_file_times",
    ),
    bug(
        "end of a run in MLflow",
        "A run is closed at the time it ended, which tells how long all of it took.",
        "dptrain.run.tracking:Tracker.end", "status, self._at", "status",
        "tests/run/test_tracking.py::"
        "test_two_runs_that_took_their_time_at_different_steps_leave_the_same_rows_and_file_times",
    ),
    bug(
        "a study at its trials",
        "A study that ended early claims the trials that began, though their scores may have ended it.",
        "dptrain.run.sweep.table:read_table", "record.study.trials - len(costs)", "0",
        "tests/run/sweep/test_study.py::test_a_trial_that_was_killed_counts_though_it_told_nothing_more",
    ),
    bug(
        "error texts in the sweep",
        "Why a job failed stands in the sweep's folder, with the names of private files.",
        "dptrain.run.sweep.jobs:SweepRecord.tell_failure", "label=label,", "label=label, error=str(error),",
        SWEEP + "test_why_a_job_failed_stays_in_the_owners_folder",
    ),
)  # fmt: skip
