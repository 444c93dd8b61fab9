"""Bugs where a privacy unit has several examples: augmentations of one image, or images of one group."""

from __future__ import annotations

from .edits import bug

WHOLE = "tests/privacy/test_units.py::test_one_whole_unit_changes_the_sum_by_at_most_the_clip_norm"
MEANS = "tests/gradients/test_units.py::test_a_units_gradient_is_the_mean_of_its_examples"
PEOPLE = "tests/privacy/test_people.py::"
LEDGER = "tests/ledger/test_groups.py::"

UNIT_BUGS = (
    bug(
        "augmentations clipped one by one",
        "The loader calls every augmentation a unit of its own, so that one image adds K clipped gradients.",
        "dptrain.detection.loader:_load",
        "of_example += [number] * (len(samples) - len(of_example))", "of_example = list(range(len(samples)))",
        WHOLE, "tests/detection/test_loader.py::test_every_drawn_unit_comes_once_and_whole",
    ),
    bug(
        "examples of a group clipped one by one",
        "The plan hands the examples on and forgets their units: a patient adds as many clipped gradients as images.",
        "dptrain.training.clipped_sum:ClippedSum._sum", "(batch.examples, batch.units) if", "(batch.examples, None) if",
        WHOLE, "tests/training/test_trainer.py::test_units_of_several_examples_are_clipped_as_one",
    ),
    bug(
        "a unit split over two physical batches",
        "A unit that does not fit goes through in pieces, and every piece is clipped by itself.",
        "dptrain.gradients:clipped_gradient_sum",
        "mean = mean_gradient(module, loss_function, in_pieces(batch, examples_at_once), own.examples)\n"
        "        return microbatch.weighted_sum(module, [mean], rule.weights, rule.groups)",
        "most = examples_at_once\n"
        "            parts = [mean_gradient(module, loss_function, [p], min(most, own.examples - i * most))\n"
        "                 for i, p in enumerate(in_pieces(batch, examples_at_once))]\n"
        "        return microbatch.weighted_sum(module, parts, rule.weights, rule.groups)",
        WHOLE, "tests/gradients/test_units.py::test_a_unit_in_pieces_is_the_same_unit",
    ),
    bug(
        "units split where a batch comes apart",
        "Taking a batch apart cuts its examples, wherever a unit ends.",
        "dptrain.gradients.batches:take_examples",
        "first, last = torch.searchsorted(batch.units, torch.tensor([start, stop])).tolist()",
        "first, last = start, stop",
        "tests/gradients/test_units.py::test_no_unit_is_ever_split",
    ),
    bug(
        "the count of another unit",
        "An example's loss is divided by the size of the next unit: one patient more changes another's gradient.",
        "dptrain.gradients.units:Units.shares", "self.counts[self.of_example]", "self.counts.roll(1)[self.of_example]",
        MEANS,
    ),
    bug(
        "units summed and not averaged",
        "The losses are not divided at all; the clip still bounds the sum, and small units lose their weight.",
        "dptrain.gradients.units:Units.shares",
        "losses / self.counts[self.of_example].to(losses.device, losses.dtype)", "losses * 1.0",
        MEANS,
    ),
    bug(
        "examples folded into the wrong unit",
        "Where units are of different sizes, examples are put side by side as if all had the same number.",
        "dptrain.gradients.units:Units.even",
        "index_copy_(0, self._places.to(examples.device), examples)",
        "index_copy_(0, torch.arange(len(examples)), examples)",
        MEANS,
    ),
    bug(
        "one draw of examples for all groups",
        "The seed of the subset leaves the group out: patients with as many images are always cut at the same places.",
        "dptrain.privacy.units:UnitExamples.chosen", "SeedSequence([seed, unit]", "SeedSequence([seed]",
        "tests/privacy/test_sampling.py::test_every_subset_of_a_large_group_is_as_likely_and_drawn_anew_each_step",
    ),
    bug(
        "groups counted by images",
        "The sampler tosses a coin an image where groups are protected.",
        "dptrain.run.task:Task.trainer",
        "len(self.dataset) if self.units is None else len(self.units)", "len(self.dataset)",
        "tests/privacy/test_units.py::test_a_run_of_groups_samples_states_and_charges_groups",
    ),
    bug(
        "a group in train and in val",
        "Only single images are compared between the splits.",
        "dptrain.datasets.people:refuse_shared", "if name in first:", "if False:",
        "tests/privacy/test_units.py::test_a_group_with_images_in_train_and_val_starts_no_run",
    ),
    bug(
        "image-level and group-level charges added up",
        "The ledger takes a run that protects images as a charge of patients, who have up to forty of them.",
        "dptrain.ledger.naming:check_manifest", "if known != unit:", "if False:",
        LEDGER + "test_pictures_are_charged_under_one_unit_only",
    ),
    bug(
        "new pictures, new patient",
        "Only pictures are charged: a patient with new ones has a fresh budget.",
        "dptrain.ledger.manifest:from_pictures",
        "units |= {**dict.fromkeys(names, GROUP), memberships[picture.unit]: MEMBERSHIP}",
        "units |= {memberships[picture.unit]: MEMBERSHIP}",
        LEDGER + "test_a_group_that_gets_new_pictures_keeps_what_it_has_spent",
    ),
    bug(
        "a picture may change its group",
        "Nobody looks whether a known picture is in the group it was in: its old group's spending is lost.",
        "dptrain.ledger.naming:check_manifest", "if moved:", "if False:",
        LEDGER + "test_a_picture_in_another_group_or_under_another_name_of_it_is_refused",
    ),
    bug(
        "a person in several units",
        "The choice of pictures forgets who was chosen already: somebody in five sets of people moves the sum by 5 C.",
        "dptrain.datasets.people:choose", "if taken.isdisjoint(people):", "if True:",
        PEOPLE + "test_all_pictures_of_a_person_move_the_sum_by_one_clip_norm_and_nothing_else_differs",
        "tests/datasets/test_people.py::test_nobody_is_in_two_units_and_every_picture_of_a_unit_shows_the_same_people",
    ),
    bug(
        "a picture of other people kept",
        "A run trains on all pictures of the table, also those that show somebody who is in another unit.",
        "dptrain.datasets.grouping:grouped", "isinstance(group, People) and not group.trained", "False",
        PEOPLE + "test_all_pictures_of_a_person_move_the_sum_by_one_clip_norm_and_nothing_else_differs",
        PEOPLE + "test_no_two_units_have_a_person_in_common_in_any_run",
    ),
    bug(
        "pictures chosen by what is there",
        "Rows of the table whose files are missing do not count: without one person's pictures, others change.",
        "dptrain.datasets.people_table:people_in", "choose(table.values())",
        "choose(table[parts_of(i.name)] for i in images if parts_of(i.name) in table)",
        "tests/datasets/test_people.py::test_which_files_are_there_makes_no_difference",
    ),
    bug(
        "people charged by the picture's company",
        "The ledger knows anna with ben as somebody else than anna: alone she has a fresh budget.",
        "dptrain.ledger.manifest:from_pictures", "for name in names_in(group)]", "for name in [group]]",
        PEOPLE + "test_a_run_states_and_charges_every_person_of_the_chosen_pictures",
    ),
    bug(
        "a picture left out is public",
        "What shows somebody of another unit is not trained on, and so may be validated on without noise.",
        "dptrain.run.prepare:prepare", "pictures | pictures_in(found.left_out)", "pictures",
        PEOPLE + "test_a_picture_that_is_left_out_is_private_all_the_same",
    ),
    bug(
        "people stated as added or removed",
        "The statement of a run that chose pictures by a table promises that nobody can tell who is in the table.",
        "dptrain.statement.facts:make_statement", 'FIXED_TABLE if plan.unit == "person" else ADD_OR_REMOVE',
        "ADD_OR_REMOVE",
        PEOPLE + "test_a_run_states_and_charges_every_person_of_the_chosen_pictures",
    ),
)  # fmt: skip
