"""Bugs in what is claimed: the accountant, the ledger, the statement."""

from __future__ import annotations

from .edits import bug, bugs
from .noise_bugs import WHOLE

OWN = "tests/run/test_own_dataset.py::"
ACCOUNTANT = "tests/privacy/test_accounting.py::"
LEDGER = "tests/ledger/test_ledger.py::"
PRETRAINING = "tests/run/pretraining/test_pretrain.py::"
_GOLDENS = ACCOUNTANT + "test_goldens"
_FAST = ACCOUNTANT + "test_fast_rdp_is_dp_accountings_own"
_LEDGER = "dptrain.ledger.charges:Charges."
_EPSILON = "dptrain.privacy.accounting:dp_sgd_epsilon"

RECORD_BUGS = (
    # the accountant
    bug(
        "wrong rate accounted",
        "The event has half the rate: as if an image could be drawn from one half of the data only.",
        "dptrain.privacy.accounting:dp_sgd_event",
        "PoissonSampledDpEvent(sample_rate,", "PoissonSampledDpEvent(sample_rate / 2,",
        _GOLDENS, "tests/privacy/test_plan.py::test_parts_come_from_the_plan",
    ),
    bug(
        "one step too few",
        "The last step is not composed.",
        _EPSILON, "steps * _rdp_of_one_step", "(steps - 1) * _rdp_of_one_step",
        _GOLDENS, _FAST,
    ),
    bug(
        "epsilon of one step",
        "What a step costs is shown for the run.",
        "dptrain.privacy.plan:PrivacyPlan.epsilon", "count = self._steps(steps)", "count = min(1, self._steps(steps))",
        _GOLDENS, ACCOUNTANT + "test_epsilon_grows_with_steps_and_starts_at_zero",
    ),
    bug(
        "delta ignored",
        "Epsilon is converted at 1e-5 whatever was asked.",
        _EPSILON,
        "_of_one_step(sample_rate, noise_multiplier), delta", "_of_one_step(sample_rate, noise_multiplier), 1e-5",
        _GOLDENS, _FAST,
    ),
    bug(
        "variance taken for the deviation",
        "The accountant is told sigma squared.",
        "dptrain.privacy.accounting:dp_sgd_event",
        "GaussianDpEvent(noise_multiplier)", "GaussianDpEvent(noise_multiplier**2)",
        _GOLDENS, "tests/privacy/test_plan.py::test_parts_come_from_the_plan",
    ),
    bug(
        "epsilon rounded to the nearest",
        "What is shown may be below what was spent.",
        "dptrain.support.words:shown", "ROUND_CEILING", "'ROUND_HALF_EVEN'",
        "tests/ledger/test_properties.py::test_what_is_written_with_decimals_is_rounded_up",
    ),
    bug(
        "resume under another plan",
        "The checkpoint of a run with more noise is resumed with less, and is accounted by one of the two.",
        "dptrain.training.checkpoint:load_checkpoint",
        "for key, value in wanted.items():", "for key, value in ():",
        "tests/training/test_checkpoint.py::test_another_plan_is_refused",
    ),
    # the ledger
    bugs(
        "refund",
        "A run that was settled can be settled again at fewer steps.",
        [
            (_LEDGER + "settle", "if not row.is_open and charged <= row.charged:", "if False:"),
            (_LEDGER + "settle", "if charged < row.settled:", "if False:"),
        ],
        LEDGER + "test_settling_frees_the_steps_that_were_not_started_and_never_more",
    ),
    bug(
        "failed runs are free",
        "A run that ends with an error is settled at no steps, though its checkpoints are there.",
        "dptrain.run.job:Run._settle", "self.charge.settle(steps, reason)",
        "self.charge.settle(0 if reason == 'failed' else steps, reason)",
        "tests/privacy/test_spent_steps.py::test_a_run_that_fails_is_charged_the_steps_it_started",
    ),
    bug(
        "ledger forgets earlier runs",
        "A run is held against the budget by itself.",
        "dptrain.ledger.admission:admit", "after = [[*parts, (request.steps, request.curve)] for parts in before]",
        "after = [[(request.steps, request.curve)] for parts in before]",
        LEDGER + "test_a_run_of_exactly_the_budgets_epsilon_fits_and_a_second_does_not",
    ),
    bug(
        "nothing reserved",
        "A run is charged when it ends: two at once both fit, and a killed one costs nothing.",
        "dptrain.ledger.run_rows:add_run", '_charge(connection, row, row["charged"], row["charged"])',
        "_charge(connection, row, 0, 0)",
        LEDGER + "test_a_killed_run_keeps_its_reservation_and_resumes_without_a_new_one",
    ),
    bug(
        "one version of a folder counts",
        "A picture that is in several versions of a folder has spent what was charged to the last of them.",
        "dptrain.ledger.state:State.tally",
        "for snapshot in self.blocks[block]:", "for snapshot in sorted(self.blocks[block])[-1:]:",
        LEDGER + "test_datasets_that_share_pictures_share_their_spending",
    ),
    bug(
        "budget by path",
        "A dataset is known by where its files are: a copy has a fresh budget.",
        "dptrain.datasets.identity:picture_in", "identity(read_image(file, strict=True))",
        "hashlib.sha256(str(file).encode()).digest()",
        "tests/ledger/test_manifest.py::test_renamed_copied_and_moved_files_are_the_same_dataset",
    ),
    bug(
        "two copies of a folder go on",
        "Whoever has the folder of a run may resume it: the same steps are taken twice on one charge.",
        _LEDGER + "resume",
        "if row.attempt not in [self._hashed(token) for token in attempts] or early:", "if False:",
        LEDGER + "test_two_copies_of_a_runs_folder_cannot_both_go_on",
        LEDGER + "test_a_folder_that_was_set_back_cannot_take_the_same_steps_twice",
    ),
    # what is claimed
    bug(
        "a winner for the price of one",
        "The statement of the best of many runs claims what that run cost.",
        "dptrain.statement.facts:claim_of", 'if not tuning or tuning.get("distribution") is None:', "if True:",
        "tests/statement/test_check.py::test_the_winner_of_a_tuning_claims_what_the_tuning_costs",
    ),
    bug(
        "a sweep for the price of one",
        "The cost of having looked at all runs is that of the dearest.",
        "dptrain.run.sweep.cost:compose", "for cost in costs]", "for cost in costs][-1:]",
        "tests/run/sweep/test_sweep_record.py::test_the_composed_epsilon_counts_every_planned_step_of_unfinished_jobs_too",
    ),
    bug(
        "a seed hidden",
        "A seeded run, whose noise anyone can subtract, states a guarantee.",
        "dptrain.run.job:Run._write_statement", "secure=self.trainer.secure,", "secure=True,",
        "tests/privacy/test_spent_steps.py::test_a_seeded_run_states_no_guarantee",
    ),
    bug(
        "number of images told",
        "The statement has the true size of the folder in place of the one that was declared.",
        "dptrain.run.job:Run._write_statement", "config.privacy.dataset_size", "len(prepared.pictures)",
        WHOLE,
    ),
    bug(
        "number of images on the screen",
        "The first lines of a run say how many images it found.",
        "dptrain.run.lines:lines_before",
        "parameters train, {prepared.where}",
        "parameters train on {len(prepared.pictures)} images, {prepared.where}",
        WHOLE,
    ),
    bug(
        "clean gradient in the checkpoint",
        "The last sum is kept, to look at later.",
        "dptrain.training.trainer:PrivateTrainer.state", '"step": self.step,',
        '"step": self.step, "gradient": {name: p.grad for name, p in self.parameters.items()},',
        WHOLE, "tests/privacy/test_spent_steps.py::test_a_run_that_fails_is_charged_the_steps_it_started",
    ),
    bug(
        "a rehearsal on private images",
        "A rehearsal trains without a guarantee on images that the ledger protects.",
        "dptrain.run.rehearsal:_Stage.__init__",
        "compared = declared.refuse_protected(config.budget)", 'compared = ""',
        "tests/run/test_rehearsal.py::test_images_that_a_ledger_protects_are_refused",
    ),
    # the public start
    bug(
        "private images in the public start",
        "Pre-training looks at the ledger, and continues whatever it finds there.",
        "dptrain.run.declared_public:DeclaredPublic.refuse_held", "if held:", "if held and not self.files:",
        PRETRAINING + "test_images_that_a_ledger_protects_are_refused_under_any_name",
    ),
    bug(
        "validation images not looked at",
        "Only the training split of a public set is held against the ledger.",
        "dptrain.run.pretraining.run:PublicRun._compare_with_ledger", ', *self.data.files("val")]', "]",
        PRETRAINING + "test_images_that_a_ledger_protects_are_refused_under_any_name",
    ),
    bug(
        "private weights called public",
        "What a private run made may start a public training, and its record says that the data was public.",
        "dptrain.run.public_start:refuse_private_start", '(start.parent / "statement.json").is_file()', "not start",
        PRETRAINING + "test_weights_of_a_private_run_are_no_public_start",
    ),
    bug(
        "record of other weights",
        "The statement takes its words on public data from a record beside other weights.",
        "dptrain.run.public_start:declared_start", "weights_hash(file) in known.values()", "known",
        PRETRAINING + "test_the_record_of_other_weights_declares_nothing",
    ),
    bug(
        "anything of the right length is the released start",
        "What is fetched is held against the length of the released file, and not against its sha256.",
        "dptrain.support.released:_fetch",
        "digest.hexdigest() != known.sha256 or size > known.size", "size != known.size",
        "tests/run/test_released.py::test_another_content_than_the_pinned_one_is_not_kept",
    ),
    bug(
        "boxes of an item may change",
        "Of a dataset in memory only the pixels are compared at each read: other boxes are trained on than charged.",
        "dptrain.datasets.own:OwnFiles._read", "hashlib.sha256(content).digest() + text)", "content)",
        OWN + "test_an_item_that_is_another_at_any_read_ends_the_run",
    ),
    bug(
        "items of a group drawn one by one",
        "A dataset says what group an item is of, and a run that protects single items takes it without a word.",
        "dptrain.run.train:_of_own", '(privacy.unit == "group") != own.has_units', "False",
        OWN + "test_what_cannot_be_is_one_line_before_anything_is_written",
    ),
)  # fmt: skip
