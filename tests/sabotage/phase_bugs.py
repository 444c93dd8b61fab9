"""Bugs in phases: what trains in a step, and what its noise is scaled to."""

from __future__ import annotations

from .edits import bug, bugs

PHASES = "tests/training/test_phases.py::"
_TRAINER = "dptrain.training.trainer:PrivateTrainer."

PHASE_BUGS = (
    bug(
        "noise of the first phase",
        "The noise is made once, for the clip rule of the first phase, and serves all of them.",
        _TRAINER + "_released",
        "self.clipped.mechanism.noise(",
        "replace(self.clipped.mechanism, rule=self._sums[0].mechanism.rule).noise(",
        PHASES + "test_the_noise_of_a_step_is_scaled_to_the_sensitivity_of_its_own_phase",
        PHASES + "test_one_example_moves_the_sum_of_a_step_by_at_most_the_sensitivity_of_its_phase",
    ),
    bug(
        "gradients of the phase before",
        "Only what trains now gets a new gradient; one that was left on a frozen parameter goes to the optimizer.",
        _TRAINER + "_take_step",
        "if name in gradient else None", "if name in gradient else parameter.grad",
        PHASES + "test_a_gradient_left_behind_in_the_phase_before_never_reaches_the_optimizer",
    ),
    bug(
        "a boundary that repairs",
        "A new phase sets what trains, whatever was changed in the phase before.",
        _TRAINER + "_enter",
        "self._refuse_changed()", "pass",
        PHASES + "test_what_trains_changes_at_a_boundary_and_nowhere_else",
    ),
    bugs(
        "steps of the second phase not counted",
        "The plan, and so the accountant, has the steps of the first phase; the loop takes those of all of them.",
        [
            ("dptrain.settings.phases:settle_phases", "total = sum(steps)", "total = steps[0]"),
            ("dptrain.training.phases:parameters_of", "if planned != steps:", "if False:"),
            (
                _TRAINER + "run",
                "until = self.plan.steps if until is None else until\n    if until > self.plan.steps:",
                "until = self._ends[-1] if until is None else until\n    if False:",
            ),
            (_TRAINER + "_take_step", "if self.step >= self.plan.steps:", "if False:"),
        ],
        PHASES + "test_phases_that_do_not_fit_plan_and_module_are_refused",
        "tests/settings/test_phases.py::test_phases_are_typed_sections_and_their_steps_are_the_plans",
        "tests/run/test_phases.py::test_a_run_in_phases_is_the_event_of_as_many_steps",
    ),
    bug(
        "phases not compared",
        "A checkpoint fits if it has the same parameters.",
        _TRAINER + "restore",
        'if state["phases"] != [phase.to_list() for phase in self.phases]:', "if False:",
        PHASES + "test_a_checkpoint_of_other_phases_is_refused",
    ),
)  # fmt: skip
