"""Bugs in phases: what trains in a step, and what its noise is scaled to."""

from __future__ import annotations

from .edits import bug

PHASES = "tests/training/test_phases.py::"
_TRAINER = "dptrain.training.trainer:PrivateTrainer."

PHASE_BUGS = (
    bug(
        "noise of the first phase",
        "The noise is made once, for the clip rule of the first phase, and serves all of them.",
        _TRAINER + "_take_step",
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
    bug(
        "phases not compared",
        "A checkpoint fits if it has the same parameters.",
        _TRAINER + "restore",
        'if state["phases"] != [phase.to_list() for phase in self.phases]:', "if False:",
        PHASES + "test_a_checkpoint_of_other_phases_is_refused",
    ),
)  # fmt: skip
