"""A detector misses; the frames in which it does must still be redacted."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.toolbox.redaction.settings import Box
from dptrain.toolbox.redaction.tracking import BoxTracker, fill_gaps

HEIGHT, WIDTH = 200, 400


def at(x: float, y: float = 80, side: float = 40, label: str = "face") -> Box:
    return Box(int(x), int(y), int(x + side), int(y + side), label, 0.8, "detected")


def covers(boxes: list[Box], target: Box) -> bool:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for box in boxes:
        mask[box.y1 : box.y2, box.x1 : box.x2] = True
    return bool(mask[target.y1 : target.y2, target.x1 : target.x2].all())


def all_boxes(frames: list[list[Box]], hold: int) -> list[list[Box]]:
    tracker = BoxTracker(hold, HEIGHT, WIDTH)
    forward = [tracker.update(boxes)[0] for boxes in frames]
    return fill_gaps(frames, forward, len(frames), hold, HEIGHT, WIDTH)


@pytest.mark.parametrize("speed", [0, 3, 9])
def test_frames_of_a_miss_stay_covered_while_the_object_moves(speed: int) -> None:
    truth = [at(20 + speed * number) for number in range(20)]
    frames = [[] if 8 <= number < 13 else [box] for number, box in enumerate(truth)]
    found = all_boxes(frames, hold=6)
    assert all(covers(boxes, box) for boxes, box in zip(found, truth, strict=True))
    assert not all(covers(boxes, box) for boxes, box in zip(all_boxes(frames, hold=0), truth, strict=True))


def test_frames_before_the_first_detection_are_covered() -> None:
    truth = [at(100)] * 12
    found = all_boxes([[]] * 5 + [[box] for box in truth[5:]], hold=5)
    assert all(covers(boxes, truth[0]) for boxes in found)


def test_a_box_is_held_for_the_frames_that_were_asked_for_and_no_longer() -> None:
    frames = [[at(100)]] * 3 + [[]] * 10
    assert [bool(boxes) for boxes in all_boxes(frames, hold=4)] == [True] * 7 + [False] * 6


def test_whatever_the_tracker_makes_of_them_detections_are_redacted() -> None:
    rng = np.random.default_rng(0)
    frames = [[at(*rng.integers(0, 150, 2), side=int(rng.integers(5, 50))) for _ in range(rng.integers(0, 6))]
              for _ in range(60)]  # fmt: skip
    for frame, boxes in zip(frames, all_boxes(frames, hold=3), strict=True):
        assert boxes[: len(frame)] == frame


def test_two_objects_that_cross_keep_boxes_of_their_own() -> None:
    left = [at(20 + 10 * number, 80) for number in range(20)]
    right = [at(300 - 10 * number, 90) for number in range(20)]
    frames = [[b] if number in (9, 10) else [a, b] for number, (a, b) in enumerate(zip(left, right, strict=True))]
    found = all_boxes(frames, hold=4)
    assert all(covers(boxes, target) for boxes, target in zip(found, left, strict=True))


@pytest.mark.parametrize(
    ("track", "missed"),
    [
        ([at(100), at(100), at(100)], True),  # it stood there, and is not found
        ([at(100)], False),  # one flicker
        ([at(-30, side=60), at(-40, side=60), at(-50, side=60)], False),  # it has left over the left edge
        ([at(0), at(0), at(0)], True),  # it stands at the edge
    ],
)
def test_only_an_object_that_was_followed_and_has_not_left_is_missed(track: list[Box], missed: bool) -> None:
    tracker = BoxTracker(5, HEIGHT, WIDTH)
    for box in track:
        tracker.update([box._replace(x1=max(box.x1, 0))])
    held, miss = tracker.update([])
    assert held and miss is missed


def test_a_second_box_of_one_object_that_goes_is_no_miss() -> None:
    tracker = BoxTracker(5, HEIGHT, WIDTH)
    for _ in range(3):
        tracker.update([at(100, label="3"), at(103, label="8")])
    held, miss = tracker.update([at(101, label="3")])
    assert len(held) == 1 and not miss


def test_held_boxes_are_called_held_and_keep_label_and_confidence() -> None:
    tracker = BoxTracker(2, HEIGHT, WIDTH)
    tracker.update([at(50, label="plate")])
    (box,), _ = tracker.update([])
    assert (box.origin, box.label, box.confidence) == ("held", "plate", 0.8)
