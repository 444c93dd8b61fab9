"""Bugs that let the number of images in a pass, or what fills it up, show in other images' gradients."""

from __future__ import annotations

from .edits import bug

TIES = "tests/privacy/test_neighbours.py::test_labels_tied_to_the_last_digit_change_no_other_images_gradient"
FILLED = "tests/gradients/test_filled.py::test_blank_examples_add_nothing_even_where_their_gradient_is_not_finite"

SHAPE_BUGS = (
    bug(
        "last batch not filled up",
        "The last pass of a draw has as many rows as are left: one image more changes how the others are rounded.",
        "dptrain.gradients:clipped_gradient_sum",
        "0 < count < rows_at_once and", "0 < count < 0 and",
        TIES, FILLED,
    ),
    bug(
        "blank rows count",
        "What fills a pass up is clipped and added to the sum like an image.",
        "dptrain.gradients:_of_the_first", "weigh(squared_norms[:count])", "weigh(squared_norms)[:len(squared_norms)]",
        FILLED,
    ),
)  # fmt: skip
