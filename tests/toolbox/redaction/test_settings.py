"""Boxes only ever grow on their way from the detector to the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.errors import ConfigError, DataError
from dptrain.toolbox.redaction import RedactionSettings, Region
from dptrain.toolbox.redaction.settings import grown

HEIGHT, WIDTH = 90, 160
SIDE = st.floats(0, 1)


@given(st.tuples(SIDE, SIDE, SIDE, SIDE), st.floats(0, 2))
def test_a_grown_box_covers_the_detection_and_its_margin_and_stays_in_the_picture(
    sides: tuple[float, ...], margin: float
) -> None:
    x1, x2 = sorted(value * WIDTH for value in sides[:2])
    y1, y2 = sorted(value * HEIGHT for value in sides[2:])
    (box,) = grown(np.array([[x1, y1, x2, y2, 0.5, 0]]), margin, HEIGHT, WIDTH, {0: "face"})
    assert box.x1 <= max(x1 - margin * (x2 - x1), 0) and box.x2 >= min(x2 + margin * (x2 - x1), WIDTH)
    assert box.y1 <= max(y1 - margin * (y2 - y1), 0) and box.y2 >= min(y2 + margin * (y2 - y1), HEIGHT)
    assert 0 <= box.x1 < box.x2 <= WIDTH and 0 <= box.y1 < box.y2 <= HEIGHT
    assert box.x1 >= x1 - margin * (x2 - x1) - 1.001  # and no more than was asked


def test_regions_are_pixels_or_percent() -> None:
    assert Region.parse("10,20,30,40").box(HEIGHT, WIDTH)[:4] == (10, 20, 30, 40)
    assert Region.parse("0%, 50%, 25%, 100%").box(HEIGHT, WIDTH)[:4] == (0, 45, 40, 90)
    assert Region.parse((150, 80, 500, 500)).box(HEIGHT, WIDTH)[:4] == (150, 80, 160, 90)  # cut at the edge
    with pytest.raises(DataError, match="outside"):
        Region.parse("160,0,170,10").box(HEIGHT, WIDTH)
    for wrong in ("1,2,3", "a,b,c,d", "nan,0,1,1", "-1,0,5,5", "0%,0%,120%,50%", "9,9,9,9"):
        with pytest.raises(ConfigError, match="region"):
            RedactionSettings(regions=(wrong,))


def test_settings_go_through_json_as_they_are() -> None:
    import json

    settings = RedactionSettings(classes="face, plate", regions="1,2,3,4")
    assert settings.classes == ("face", "plate")
    assert json.loads(json.dumps(settings.as_dict()))["regions"] == [
        {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0, "relative": False}
    ]
