"""Bugs in what a picture is, and where the same picture may not be twice."""

from __future__ import annotations

from .edits import bug, bugs

MANIFEST = "tests/ledger/test_manifest.py::"
REPEATS = "tests/datasets/test_repeats.py::"
ANNOTATIONS = "tests/datasets/test_annotations.py::"
PUBLIC = "tests/run/test_declared_public.py::"

_TRAINING = "dptrain.run.declared_public:refuse_shared"

IDENTITY_BUGS = (
    bug(
        "a turned picture is another picture",
        "The pixels are hashed as they are decoded: without its EXIF orientation a photo has a fresh budget.",
        "dptrain.datasets.identity:identity",
        "canonical(image)", "np.ascontiguousarray(image)",
        "tests/datasets/test_identity.py::test_the_eight_turns_and_mirror_images_are_one_picture",
        MANIFEST + "test_a_photo_whose_orientation_was_cut_out_is_the_same",
    ),
    bug(
        "the same picture twice",
        "Nobody looks whether two training images are one picture: k copies of a photo move the sum by k clip norms.",
        "dptrain.datasets.repeats:refuse_repeats",
        "if copies:", "if False:",
        REPEATS + "test_the_first_two_files_are_named_and_the_others_counted",
        REPEATS + "test_one_photo_twice_starts_no_run",
    ),
    bug(
        "val not compared with the ledger",
        "Images that are private in another project are validated on: their metrics are released without noise.",
        "dptrain.run.prepare:_compared",
        "declared.pictures, declared.refuse_protected(config.budget)", 'declared.pictures, ""',
        PUBLIC + "test_an_image_that_a_ledger_protects_is_no_public_one",
    ),
    bugs(
        "val compared by bytes",
        "A training image that was saved as BMP, or turned, is another image to the check of the val split.",
        [
            (_TRAINING, "{picture: file for file, picture in train.items()}", "{f.read_bytes(): f for f in train}"),
            (
                _TRAINING,
                "[file for file, picture in pictures.items() if picture in private]",
                "[f for f in pictures if f.read_bytes() in private]",
            ),
            (_TRAINING, "private[pictures[first]]", "private[first.read_bytes()]"),
        ],
        PUBLIC + "test_a_training_image_among_public_ones_is_refused_under_any_name",
        PUBLIC + "test_a_val_image_that_is_a_training_image_in_another_format_starts_no_run",
    ),
    bug(
        "copies drawn as images",
        "Copies of a picture are let in as one image, and drawn one by one: four of them move the sum by 4 C.",
        "dptrain.run.prepare:_units", "if config.privacy.copies_are_one:", "if False:",
        "tests/datasets/test_repeats.py::test_copies_that_count_as_one_image_move_the_sum_by_one_clip_norm",
    ),
    bug(
        "boxes of a COCO file not charged",
        "The ledger looks for text beside the images, and finds none: other boxes are the same dataset to it.",
        "dptrain.ledger.manifest:label_hash", "if boxes is None else", "if True else",
        ANNOTATIONS + "test_a_replaced_annotation_is_found_and_the_charge_is_that_of_the_converted_dataset",
        ANNOTATIONS + "test_a_resumed_run_with_other_annotations_is_refused",
    ),
    bug(
        "one label file decides for all",
        "Images are VOC unless one has YOLO text: adding that one takes the boxes of all others away.",
        "dptrain.datasets.voc:is_voc", "if found is not None and text is not None:",
        "if text: return False\n    if False:",
        ANNOTATIONS + "test_one_image_does_not_decide_how_the_others_are_read",
    ),
    bug(
        "entities of a VOC file",
        "XML with a document type is read: a few lines of it can stand for gigabytes.",
        "dptrain.datasets.voc:_parsed",
        "parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse", "pass",
        ANNOTATIONS + "test_what_is_wrong_in_a_voc_file_is_one_line",
    ),
)  # fmt: skip
