"""Bugs in evaluating on a private val split: what an image adds, what is released, and what is charged."""

from __future__ import annotations

from .edits import bug

RUNS = "tests/run/test_private_validation.py::"
NOISED = "tests/detection/test_noised.py::"
COUNTS = "tests/privacy/test_counts.py::"
_SUM = "dptrain.detection.noised:bounded_sum"
_VALIDATION = "dptrain.run.private_validation:PrivateValidation."

VALIDATION_BUGS = (
    bug(
        "val image counted in full",
        "Whatever an image adds is added: 10,000 boxes move the counts by 10,000.",
        _SUM,
        "counts.bounded(of_unit / norm)",
        "(torch.from_numpy(of_unit / norm) * 2**30).long()",
        NOISED + "test_the_sum_is_that_of_every_image_by_itself",
        NOISED + "test_a_group_is_bounded_as_one",
    ),
    bug(
        "bound on the largest count",
        "A vector is shortened by its largest entry, and not by its norm.",
        "dptrain.privacy.counts:bounded",
        "values = values / max(1.0, norm)",
        "return (values / max(1.0, largest) * exact.SENSITIVITY).long()",
        COUNTS + "test_extreme_vectors_are_bounded_too",
        COUNTS + "test_no_vector_adds_more_than_the_bound_whatever_it_holds",
    ),
    bug(
        "true counts released",
        "The noise is drawn, and what is estimated from is the sum without it.",
        "dptrain.privacy.counts:release",
        "noised[_NAME].double()",
        "total.double()",
        COUNTS + "test_the_noise_has_the_law_that_is_accounted",
        RUNS + "test_with_the_door_fixed_no_val_image_changes_what_is_published",
    ),
    bug(
        "noise of the counts past the door",
        "The counts get their noise beside the one door, as much as the multiplier and not as the bound.",
        "dptrain.privacy.counts:release",
        "sensitivity=exact.SENSITIVITY",
        "sensitivity=1",
        COUNTS + "test_what_is_released_went_through_the_door_once_at_the_bound",
        COUNTS + "test_the_noise_has_the_law_that_is_accounted",
        RUNS + "test_what_is_noised_is_what_is_accounted",
    ),
    bug(
        "limit of detections by the val labels",
        "As Ultralytics does: the image with the most boxes decides how many detections of any image count.",
        _SUM,
        "_OVERLAP, _MOST_DETECTIONS, multi_label",
        "_OVERLAP, max(300, dataset.most_boxes), multi_label",
        NOISED + "test_an_image_of_many_boxes_changes_no_limit",
    ),
    bug(
        "val images in batches",
        "Images go through the model together, where rounding lets one change what is found in another.",
        _SUM,
        "StepLoader(dataset, 1, 0, device)",
        "StepLoader(dataset, 8, 0, device)",
        NOISED + "test_the_images_of_a_unit_go_through_the_model_one_at_a_time",
    ),
    bug(
        "val release not charged",
        "The ledger is not told of what evaluating costs the val images.",
        _VALIDATION + "open",
        "line = self.charge.begin(folder, resume, self._journal.steps)",
        "line = ''",
        RUNS + "test_a_run_releases_noised_metrics_once_and_charges_the_val_images",
        RUNS + "test_the_charge_is_reserved_before_a_val_image_is_evaluated_on",
    ),
    bug(
        "one release charged for all",
        "A run that evaluates ten times has the noise and the charge of one that does so once.",
        "dptrain.settings.to_plan:make_release_plan",
        "releases = -(-steps // (config.evaluate_every or steps))",
        "releases = 1",
        RUNS + "test_every_evaluation_is_planned_and_paid_for",
        RUNS + "test_what_is_noised_is_what_is_accounted",
    ),
    bug(
        "val release made again after a crash",
        "A release is counted when it is written down: what a crash cut short is made again, with new noise.",
        _VALIDATION + "evaluate",
        "self.charge.lease(number)\n    self._journal.record(number)",
        "pass",
        RUNS + "test_a_release_that_was_cut_short_stays_spent_and_is_not_made_again",
    ),
    bug(
        "clipping scaled by private val images",
        "The images that scales are measured on are held against the training split alone.",
        "dptrain.run.scales:_by_file",
        "declared.refuse_private_val(private_val)",
        "pass",
        RUNS + "test_the_images_that_clipping_is_scaled_by_are_no_private_val_images",
    ),
    bug(
        "number of val images in the statement",
        "The size of the val split is counted in the folder, and published.",
        _VALIDATION + "facts",
        '"declared_size": self.declared_size',
        '"declared_size": len(self.images)',
        RUNS + "test_the_number_of_val_images_is_never_taken_from_the_folder",
        RUNS + "test_with_the_door_fixed_no_val_image_changes_what_is_published",
    ),
)
