"""Bugs in the evidence from outside: what an audit proves, and what a claim leaves to an attacker."""

from __future__ import annotations

from .edits import bug

GUESSES = "tests/audit/test_guesses.py::"
_BOUNDS = "dptrain.audit.guesses:all_bounds"

AUDIT_BUGS = (
    bug(
        "two tests at one's confidence",
        "Both tests are taken at 95 %, and the better is reported: together they are wrong up to twice as often.",
        _BOUNDS, "(len(counts) * len(tests))", "len(counts)",
        GUESSES + "test_both_tests_share_the_chance_of_being_wrong",
    ),
    bug(
        "guesses chosen after looking",
        "Of several numbers of guesses the luckiest is reported as if it had been the only one.",
        _BOUNDS, "(len(counts) * len(tests))", "len(tests)",
        GUESSES + "test_both_tests_share_the_chance_of_being_wrong",
        GUESSES + "test_trying_many_numbers_of_guesses_does_not_raise_the_rate_of_false_alarms",
    ),
    bug(
        "abstentions forgotten",
        "The curve is held against the guesses alone, as if the best tenth of the canaries were all of them.",
        "dptrain.audit.f_dp:refutes",
        "canaries * trade_off.least((k * reached + above) / canaries)",
        "guesses * trade_off.least((k * reached + above) / guesses)",
        "tests/audit/test_f_dp.py::test_no_law_of_right_guesses_that_the_curve_allows_is_refuted",
    ),
    bug(
        "true positives without delta",
        "The rate that the claim leaves to an attacker is e^epsilon times the false-positive rate, and no delta.",
        "dptrain.privacy.trade_off:TradeOff.most", "(self.deltas + grow * chance)", "(grow * chance)",
        "tests/privacy/test_trade_off.py::test_the_rates_of_one_gaussian_step_are_those_of_the_best_test",
    ),
    bug(
        "true positives of one run",
        "The statement of the best of many runs leaves to an attacker what one run would.",
        "dptrain.statement.facts:claim_of", "accounting.true_positive_rates_within(curve)",
        "accounting.true_positive_rates(plan.sample_rate, plan.steps, plan.noise_multiplier, plan.delta)",
        "tests/statement/test_check.py::test_the_winner_of_a_tuning_claims_what_the_tuning_costs",
    ),
)  # fmt: skip
