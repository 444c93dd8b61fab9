"""Bugs in what a picture is, and where the same picture may not be twice."""

from __future__ import annotations

from .edits import bug

MANIFEST = "tests/ledger/test_manifest.py::"

IDENTITY_BUGS = (
    bug(
        "a turned picture is another picture",
        "The pixels are hashed as they are decoded: without its EXIF orientation a photo has a fresh budget.",
        "dptrain.datasets.identity:identity",
        "canonical(image)", "np.ascontiguousarray(image)",
        "tests/datasets/test_identity.py::test_the_eight_turns_and_mirror_images_are_one_picture",
        MANIFEST + "test_a_photo_whose_orientation_was_cut_out_is_the_same",
    ),
)  # fmt: skip
