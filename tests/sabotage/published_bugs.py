"""Bugs in what is published: what the ledger knows of the private images must stay with their owner."""

from __future__ import annotations

from .edits import bug

FILES = "tests/privacy/test_neighbours.py::test_whole_runs_on_neighbours_leave_the_same_files"
LEAKS = "tests/privacy/test_leaks.py::"
_SPENDING = "dptrain.run.charge:RunCharge."

ENVIRONMENT = "tests/settings/test_environment.py::"
STARTS = "tests/run/test_start_runs.py::"

PUBLISHED_BUGS = (
    bug(
        "limit by the pictures",
        "The statement has the limit of the dataset that the ledger takes the images for, whether it was named or not.",
        _SPENDING + "_declared",
        "None if self.budget.name is None else self._ledger.show(self.budget.name)[0]",
        "self._ledger.show(self._charge.dataset)[0]",
        FILES,
    ),
    bug(
        "name by the pictures",
        "The statement has the ledger's own name of the dataset, such as pets-2, where none was given.",
        _SPENDING + "_declared", "self.budget.name or self.data_name", "self._charge.dataset",
        FILES,
    ),
    bug(
        "spending on the screen",
        "The budget line says what all runs on these images have spent.",
        _SPENDING + "_line",
        'declared = ""', 'spent = self._ledger.show(self._charge.dataset)[0].epsilon\n    declared = f"{spent}"',
        FILES, LEAKS + "test_a_run_prints_public_numbers_only",
    ),
    bug(
        "a start for nothing",
        "The runs behind a start are named, and what they cost is not added to the run's own.",
        "dptrain.statement.start_runs:composed_epsilon",
        "[own, *(run.curve() for run in runs)]", "[own]",
        STARTS + "test_a_mean_of_two_private_runs_states_what_all_three_cost",
        STARTS + "test_a_sweep_counts_the_runs_behind_its_start_once",
    ),
    bug(
        "grandparents forgotten",
        "Only the run whose weights are the start is counted, and not those that its own start was made from.",
        "dptrain.run.facts:runs_behind",
        '(section or {"runs": []})["runs"]', "()",
        STARTS + "test_a_mean_of_two_private_runs_states_what_all_three_cost",
    ),
    bug(
        "plan of another ledger",
        "What is left of a budget is read in the working directory, whatever ledger the environment names.",
        "dptrain.support.environment:ledger_address",
        'os.environ.get("DPTRAIN_BUDGET_URL")', "None",
        ENVIRONMENT + "test_a_plan_for_a_budget_asks_the_ledger_that_trainings_are_charged_in",
    ),
    bug(
        "the owner's notes in the log",
        "What is noticed of the images, such as labels that were left out, is written to any stderr, a job's log too.",
        "dptrain.run.notes:tell_owner",
        "console.is_terminal and console.file.isatty()", "True",
        "tests/run/test_owner_notes.py::test_rows_that_are_left_out_are_told_in_the_owners_folder_alone",
    ),
    bug(
        "notices of the ledger in the log",
        "What the ledger noticed of the images, such as one image added, is logged as a warning.",
        _SPENDING + "begin",
        "self._folder = folder\n", "self._folder = folder\n    logger.warning('%s', self._charge.notes)\n",
        FILES, LEAKS + "test_at_debug_level_nothing_private_is_logged_or_warned_of",
    ),
)  # fmt: skip
