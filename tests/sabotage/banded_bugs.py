"""Bugs in correlated noise: its factor, its memory, its sampler, and what it is charged as."""

from __future__ import annotations

from .edits import bug, bugs

BANDED = "tests/privacy/test_banded.py::"
LOOP = "tests/training/test_banded.py::"
RUNS = "tests/run/test_banded.py::"
LEASES = "tests/ledger/test_leases.py::"
_STREAM = "dptrain.privacy.banded_noise:BandedStream."
_MEASURED = "dptrain.privacy.banded_noise:_measured"
_SAMPLER = "dptrain.privacy.sampling:CyclicPoissonSampler."
_TRAINER = "dptrain.training.trainer:PrivateTrainer."
_LAW = BANDED + "test_the_covariance_over_steps_is_that_of_the_inverse_factor"
_EVENT = BANDED + "test_the_event_is_that_of_a_unit_composed_by_hand"
_RUN = RUNS + "test_a_run_states_its_noise_and_costs_its_event_everywhere"
_ROUND = LEASES + "test_correlated_steps_are_charged_by_the_round_and_resumed_at_the_next"

BANDED_BUGS = (
    bugs(
        "columns as they come",
        "The coefficients of (1 - x)^(-1/2) are not scaled to norm 1: a use of a unit moves more than the noise hides.",
        [
            (
                "dptrain.privacy.bands:factor",
                "norm = math.sqrt(math.fsum(number**2 for number in numbers)) * (1.0 + 2.0**-50)", "norm = 1.0",
            ),
            (_MEASURED, "if square(column) > 1:", "if False:"),
        ],
        BANDED + "test_no_column_of_the_factor_is_longer_than_one", _LAW,
        LOOP + "test_the_optimizer_gets_noise_with_the_covariance_of_the_inverse_factor",
    ),
    bug(
        "columns not measured",
        "The noise is made by whatever factor there is.",
        _MEASURED, "if square(column) > 1:", "if False:",
        BANDED + "test_a_factor_that_is_too_long_makes_no_noise",
    ),
    bug(
        "noise added up",
        "The past is added instead of taken back.",
        _STREAM + "_made", "alpha=weight", "alpha=-weight",
        _LAW,
    ),
    bug(
        "every part drawn",
        "All units are drawn in every step, at the rate that is meant for one part.",
        _SAMPLER + "draw", "drawn & (self.parts == step % self.bands)", "drawn",
        BANDED + "test_a_unit_is_drawn_in_its_part_only_at_the_accounted_rate",
        RUNS + "test_one_image_more_is_in_its_part_alone_and_nothing_else_differs",
        LOOP + "test_one_unit_moves_its_own_steps_only_and_the_seen_sums_by_rows_of_their_own",
    ),
    bug(
        "parts by number",
        "A unit's part is its number: an image that comes first in the folder moves all others to another part.",
        "dptrain.privacy.sampling:parts_of",
        "part_of(identity, bands) for identity in identities", "number % bands for number in range(len(identities))",
        BANDED + "test_a_part_follows_from_the_unit_alone_wherever_it_is_numbered",
        RUNS + "test_an_image_that_comes_first_moves_no_other_to_another_part",
    ),
    bug(
        "a cycle of its own after a resume",
        "The resumed run counts its steps from nought: a part is drawn again before its turn.",
        _TRAINER + "run", "self.sampler.draws(until, start=self.step)", "self.sampler.draws(until - self.step)",
        LOOP + "test_a_resumed_run_begins_anew_and_goes_on_in_the_same_cycle",
    ),
    bug(
        "correlated across phases",
        "The noise of a phase takes back that of the one before, which was of another scale.",
        _TRAINER + "_switch", "self.noise_stream.restart()", "pass",
        LOOP + "test_a_phase_begins_anew_with_noise_of_its_own_scale",
        LOOP + "test_phases_that_train_different_layers_run_through",
    ),
    bug(
        "steps left out close ranks",
        "Where a step was left out, the next goes on with the noise before it: two uses of a unit are closer in it.",
        _STREAM + "at", "self.restart()", "pass",
        BANDED + "test_a_new_beginning_is_a_block_of_its_own",
    ),
    bug(
        "a failed step taken again",
        "After an error the step is taken once more: its part is drawn twice within the bands.",
        _STREAM + "at", "if step <= self._step:", "if False:",
        BANDED + "test_no_step_has_two_noises_and_none_has_noise_without_its_number",
        LOOP + "test_a_step_that_failed_after_its_noise_is_not_taken_again",
    ),
    bug(
        "past noise in the checkpoint",
        "So that a resumed run goes on with its correlation: whoever has the file takes the noise out of the weights.",
        _TRAINER + "state",
        "self.optimizer.state_dict(),",
        "{**self.optimizer.state_dict(), 'noise': list(getattr(self.noise_stream, '_past', []))},",
        LOOP + "test_what_is_written_holds_no_noise",
    ),
    bug(
        "only whole rounds accounted",
        "Rounded down: the steps of the last, begun round cost nothing.",
        "dptrain.privacy.bands:rounds", "-(-steps // bands)", "steps // bands",
        _EVENT, BANDED + "test_rounds_are_begun_ones", _RUN,
    ),
    bug(
        "a round at the rate of the plan",
        "As few Gaussians as there are rounds, at the rate at which a unit is drawn over all steps.",
        "dptrain.privacy.bands:rounds", "bands * sample_rate", "sample_rate",
        _EVENT, _RUN,
    ),
    bug(
        "charged as independent steps",
        "The ledger is told of T steps at the plan's own rate and noise multiplier.",
        "dptrain.run.prepare:prepare",
        "final.event(),", "final.__class__(**{**vars(final), 'bands': 1}).event(),",
        _RUN,
    ),
    bug(
        "resumed within a round",
        "A copy of the folder takes the rest of a round that its original has taken, on one charge.",
        "dptrain.run.charge:RunCharge.taken",
        "steps_of(self._charge.taken, self.bands, self.steps)", "0",
        _ROUND, LEASES + "test_no_order_of_copies_kills_and_resumes_takes_a_step_that_is_not_charged",
    ),
    bug(
        "settled by whole rounds",
        "A stop within a round charges the rounds that were finished.",
        "dptrain.run.charge:rounds_of", "-(-steps // bands)", "steps // bands",
        _ROUND, RUNS + "test_a_stopped_run_resumes_and_is_never_charged_less_than_it_took",
    ),
    bug(
        "stated as independent steps",
        "What an attacker can do is read off T steps at the plan's own rate.",
        "dptrain.statement.facts:claim_of",
        "attack_accuracy(*plan.accounted(planned),", "attack_accuracy(plan.sample_rate, planned,",
        _RUN,
    ),
)  # fmt: skip
