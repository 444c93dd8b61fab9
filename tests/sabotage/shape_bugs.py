"""Bugs that let the number of images in a pass, or what fills it up, show in other images' gradients."""

from __future__ import annotations

from .edits import bug

ARITHMETIC = "tests/gradients/test_arithmetic.py::"
FILLED = "tests/gradients/test_filled.py::test_blank_examples_add_nothing_even_where_their_gradient_is_not_finite"

SHAPE_BUGS = (
    bug(
        "last batch not filled up",
        "The last pass of a draw has as many examples as are left: one image more changes how the others are rounded.",
        "dptrain.gradients:clipped_gradient_sum",
        "0 < count < examples_at_once and", "0 < count < 0 and",
        FILLED,
    ),
    bug(
        "blank examples count",
        "What fills a pass up is clipped and added to the sum like an image.",
        "dptrain.gradients:_of_the_first", "weigh(squared_norms[:count])", "weigh(squared_norms)[:len(squared_norms)]",
        FILLED,
    ),
    bug(
        "an image rounded by its place",
        "Activations are computed as they lie: what is left over at the end of a tensor is rounded by another routine.",
        "dptrain.gradients.arithmetic:everywhere_alike",
        "blank_of(x, x.numel())", "0",
        ARITHMETIC + "test_an_elementwise_function_rounds_alike_in_every_place",
    ),
    bug(
        "TF32 left on",
        "A GPU's convolutions keep 10 bits of what they multiply: a gradient is longer in the sum than when measured.",
        "dptrain.gradients.arithmetic:full_precision", '"ieee"', '"tf32"',
        ARITHMETIC + "test_every_pass_is_in_full_precision_and_settings_are_put_back",
    ),
    bug(
        "doubles on mps",
        "A run on an Apple GPU begins, is charged, and fails where the noise is made in double precision.",
        "dptrain.support.devices:refuse_single_precision", 'device == "mps"', "False",
        ARITHMETIC + "test_apples_gpus_are_refused_before_anything_is_reserved",
        "tests/privacy/test_exact_runs.py::"
        "test_a_device_without_double_precision_is_refused_before_anything_is_written",
    ),
)  # fmt: skip
