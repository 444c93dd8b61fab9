"""Bugs in what is read of the data's files, and in what is said of them."""

from __future__ import annotations

from .edits import bug

SILENCE = "tests/privacy/test_silence.py::"

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
)  # fmt: skip
