"""Bugs in what is published: what the ledger knows of the private images must stay with their owner."""

from __future__ import annotations

from .edits import bug

FILES = "tests/privacy/test_neighbours.py::test_whole_runs_on_neighbours_leave_the_same_files"
LEAKS = "tests/privacy/test_leaks.py::"
_SPENDING = "dptrain.spending:Spending."

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
        'return f"budget: {declared}', 'spent = self._ledger.show(self._charge.dataset)[0].epsilon\n'
        '    return f"budget: {spent} {declared}',
        FILES, LEAKS + "test_a_run_prints_public_numbers_only",
    ),
    bug(
        "notices of the ledger in the log",
        "What the ledger noticed of the images, such as one image added, is logged as a warning.",
        _SPENDING + "begin",
        "self._folder = folder\n", "self._folder = folder\n    logger.warning('%s', self._charge.notes)\n",
        FILES, LEAKS + "test_at_debug_level_nothing_private_is_logged_or_warned_of",
    ),
)  # fmt: skip
