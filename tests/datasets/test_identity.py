"""One picture is one picture, however it is turned; and two are two."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.datasets.identity import canonical, identity

from .turned import views


def drawn(kind: str, shape: tuple[int, int]) -> np.ndarray:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    if kind == "framed":  # the first rows and columns decide nothing
        edge = min(shape) // 3
        picture[:edge] = picture[shape[0] - edge :] = 7
        picture[:, :edge] = picture[:, shape[1] - edge :] = 7
    if kind == "few values":
        picture &= 1
    if kind == "mirrored":
        picture = np.maximum(picture, picture[:, ::-1])
    if kind == "one grey":
        picture[:] = 114
    return picture


@pytest.mark.parametrize("kind", ["noise", "framed", "few values", "mirrored", "one grey"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (7, 7), (12, 13), (13, 12), (24, 36)])
def test_the_eight_turns_and_mirror_images_are_one_picture(kind: str, shape: tuple[int, int]) -> None:
    picture = drawn(kind, shape)
    assert len({identity(view) for view in views(picture)}) == 1
    assert any(np.array_equal(canonical(picture), view) for view in views(picture)), "it is a view of the picture"


def test_one_value_of_one_pixel_makes_another_picture() -> None:
    """Anywhere, also where the views are told apart long before it."""
    picture = drawn("noise", (9, 12))
    found = {identity(picture)}
    for place in np.ndindex(picture.shape):
        changed = picture.copy()
        changed[place] ^= 1
        found.add(identity(changed))
    assert len(found) == picture.size + 1


def test_the_shape_and_the_colours_count() -> None:
    picture = drawn("noise", (4, 6))
    others = [picture.reshape(2, 12, 3), picture.reshape(3, 8, 3), np.ascontiguousarray(picture[..., ::-1]), picture]
    assert len({identity(other) for other in others}) == 4
