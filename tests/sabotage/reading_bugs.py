"""Bugs in what is read of the data's files, and in what is said of them."""

from __future__ import annotations

from .edits import bug

SILENCE = "tests/privacy/test_silence.py::"
DESCRIPTION = "tests/detection/test_description.py::"
FOLDERS = "tests/datasets/test_real_folders.py::"
REPLACED = "tests/detection/test_replaced_files.py::"

READING_BUGS = (
    bug(
        "codecs heard",
        "Descriptors stay where they are: libjpeg, libpng and libtiff write to the log at every draw of damaged files.",
        "dptrain.datasets.silence:codecs_silenced",
        "_redirect()", "pass",
        SILENCE + "test_a_drawn_image_says_nothing_and_is_the_same_each_time",
        SILENCE + "test_a_run_on_damaged_files_writes_what_a_run_on_sound_ones_writes",
    ),
    bug(
        "codecs heard later",
        "What a codec prints into C's buffer comes out when the descriptors lead to the log again.",
        "dptrain.datasets.silence:_restore",
        "_flush()", "pass",
        SILENCE + "test_what_a_codec_leaves_in_cs_buffer_never_comes_out",
    ),
    bug(
        "workers heard",
        "A worker keeps the screen: what torch, an augmentation or a warning says there tells of the draw.",
        "dptrain.detection.loader:_start_worker",
        "silence_process()", "pass",
        SILENCE + "test_what_a_worker_writes_itself_is_not_heard",
    ),
    bug(
        "a replaced file is read",
        "A file is known by its name: what is there at the draw is trained on.",
        "dptrain.detection.data:DetectionDataset.read",
        "wanted=wanted", "wanted=None",
        REPLACED + "test_a_replaced_file_is_never_trained_on",
    ),
    bug(
        "another file is charged",
        "The ledger hashes what is there when its turn comes, not what the run has read.",
        "dptrain.datasets.contents:read_data",
        "_first.setdefault(str(file), found) != found", "False",
        REPLACED + "test_what_the_ledger_hashes_is_what_is_trained_on",
        REPLACED + "test_a_split_looked_at_twice_in_one_run_is_the_same_both_times",
    ),
    bug(
        "keypoints read as a polygon",
        "Of a pose dataset's rows the box around all numbers is trained on, not the box that they begin with.",
        "dptrain.datasets.labels:_row",
        "values[1:5] if keypoints else values[1:]", "values[1:]",
        FOLDERS + "test_of_keypoint_labels_the_box_is_read_and_no_polygon",
    ),
    bug(
        "activation evaluated",
        "A description's activation is any Python that calls something: Ultralytics runs it.",
        "dptrain.detection.description:is_activation",
        "and all(map(_is_literal, values))", "or True",
        DESCRIPTION + "test_no_activation_is_run_as_code",
    ),
)  # fmt: skip
