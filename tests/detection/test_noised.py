"""What an image adds to the counts, what is estimated from them, and that no image moves them beyond the bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dptrain import ModelError
from dptrain.detection import load_model, noised, tallies
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.estimates import NAMES, NOISED_KEYS, SD_KEYS, estimate
from dptrain.detection.noised import bounded_sum, evaluate_noised
from dptrain.detection.tallies import CELLS, FITS, SCORES, tally
from dptrain.privacy import counts, noise
from dptrain.privacy.exact import SENSITIVITY
from dptrain.privacy.streams import NoiseStream
from dptrain.privacy.units import UnitExamples

from ..conftest import SMALL, MakeDataset

CPU = torch.device("cpu")


def statistics(
    scores: list[float], passed: list[int], kinds: list[int] | None = None, objects: tuple[int, ...] = ()
) -> dict[str, Any]:
    tp = np.arange(10)[None] < np.array(passed, dtype=int).reshape(-1, 1)
    return {
        "tp": tp,
        "conf": np.array(scores, dtype=np.float32),
        "pred_cls": np.array(kinds if kinds is not None else [0] * len(scores), dtype=np.float32),
        "target_cls": np.array(objects, dtype=np.float32),
    }


def test_a_detection_is_in_the_cell_of_its_score_its_fit_and_its_class() -> None:
    found = tally(statistics([0.99, 0.5, 0.5], [10, 0, 4], [1, 0, 1], (1, 1, 0)), 2)
    assert found.shape == (2, CELLS)
    middle = int((SCORES >= 0.5).sum())
    expected = np.zeros((2, CELLS))
    expected[1, len(FITS)] = 1.0  # the highest score, at every threshold
    expected[0, middle * (1 + len(FITS))] = tallies.FALSE_WEIGHTS[middle]
    expected[1, middle * (1 + len(FITS)) + 2] = 1.0  # at 4 thresholds
    expected[:, -1] = np.array([1, 2]) * tallies.OBJECT_WEIGHT
    np.testing.assert_array_equal(found, expected)


def test_scores_that_are_too_low_or_no_numbers_count_for_nothing() -> None:
    found = tally(statistics([float(SCORES[-1]) / 2, float("nan"), 0.0, -1.0], [10, 10, 0, 3]), 1)
    assert not found.any()


def test_an_image_without_objects_and_detections_adds_nothing() -> None:
    assert not tally(statistics([], []), 3).any()


@pytest.mark.parametrize(
    "image",
    [
        statistics([0.9] * 10_000, [10] * 10_000, None, (0,) * 10_000),
        statistics([0.9] * 300, [0] * 300),
        statistics([], [], None, (1,) * 10_000),
        statistics([float("nan")] * 9, [10] * 9, None, (0,)),
        statistics([], []),
    ],
    ids=["10,000 boxes", "all false", "objects only", "NaN", "nothing"],
)
def test_no_image_adds_more_than_the_bound(image: dict[str, Any]) -> None:
    whole = counts.bounded(tally(image, 2))
    assert sum(int(v) ** 2 for v in whole.flatten().tolist()) <= SENSITIVITY**2


def test_a_perfect_detector_is_found_to_be_one() -> None:
    images = [tally(statistics([0.95, 0.9], [10, 10], [0, 1], (0, 1)), 2) for _ in range(50)]
    found = estimate(np.sum(images, axis=0), 0.0)
    assert found.classes == 2
    whole = {name: value for name, value in found.values.items() if name != "mAP50-95"}
    assert whole == dict.fromkeys(NAMES[:-1], pytest.approx(1.0))
    assert 0.9 < found.values["mAP50-95"] <= 1  # within a cell, half are taken to pass the last threshold


def test_one_that_finds_nothing_is_found_to_find_nothing() -> None:
    images = [tally(statistics([0.95], [0], [0], (0,)), 1) for _ in range(50)]
    assert estimate(np.sum(images, axis=0), 0.0).values == dict.fromkeys(NAMES, 0.0)


def made_up(count: int, seed: int) -> list[dict[str, Any]]:
    """Images of one to four objects, whose detections score higher where they are right."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(count):
        kinds = rng.integers(0, 2, rng.integers(1, 5))
        passed = np.where(rng.random(len(kinds)) < 0.7, rng.integers(1, 11, len(kinds)), 0)
        scores = 1 / (1 + np.exp(-rng.normal(np.where(passed > 0, 0.8, -1.0), 1.0)))
        noise_scores = rng.uniform(0.001, 0.4, 3)
        images.append(
            statistics(
                [*scores, *noise_scores], [*passed, 0, 0, 0], [*kinds, *rng.integers(0, 2, 3)], tuple(map(int, kinds))
            )
        )
    return images


def exactly(images: list[dict[str, Any]]) -> np.ndarray:
    from ultralytics.utils.metrics import DetMetrics

    metrics = DetMetrics(names={0: "a", 1: "b"})
    for number, image in enumerate(images):
        metrics.update_stats({**image, "target_img": np.unique(image["target_cls"]), "im_name": str(number)})
    metrics.process(plot=False)
    return np.array(metrics.mean_results()[2:])


def test_without_noise_the_estimates_are_near_ultralytics_own() -> None:
    images = made_up(400, 3)
    found = estimate(sum(tally(image, 2) for image in images), 0.0)
    np.testing.assert_allclose([found.values["mAP50"], found.values["mAP50-95"]], exactly(images), atol=0.03)


@pytest.mark.parametrize(("size", "most"), [(1000, 0.07), (5000, 0.04)])
def test_with_the_noise_of_epsilon_1_they_come_nearer_with_more_images(size: int, most: float) -> None:
    """Seeded throughout."""
    images = made_up(size, 4)
    multiplier = counts.ReleasePlan.calibrate(epsilon=1.0, delta=size**-1.1).noise_multiplier
    norm = tallies.norm_for(size, multiplier)
    total = sum(counts.bounded(tally(image, 2) / norm) for image in images)
    found = estimate(norm * counts.release(total, multiplier, NoiseStream(5)), norm * multiplier)
    np.testing.assert_allclose([found.values["mAP50"], found.values["mAP50-95"]], exactly(images), atol=most)
    assert 0 < found.sd["mAP50"] < most


def test_the_norm_follows_from_declared_numbers() -> None:
    assert tallies.norm_for(None, 0.1) == tallies.norm_for(250, 3.0) == 1.0
    assert 1 < tallies.norm_for(5000, 3.5) < tallies.norm_for(5000, 1.0) <= 4.0 == tallies.norm_for(10**9, 1.0)


def test_noise_alone_gives_numbers_in_their_range_and_says_how_little_they_are_worth() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        found = estimate(rng.normal(0, 3, (3, CELLS)), 3.0)
        assert all(0 <= value <= 1 for value in found.values.values())
    assert found.sd["mAP50"] > 0.05
    assert set(found.row()) == {*NOISED_KEYS, *SD_KEYS}


@pytest.fixture(scope="module")
def detector() -> Any:
    torch.manual_seed(0)
    return load_model(SMALL, 2).eval()


def split(make_dataset: MakeDataset, **changes: Any) -> DetectionDataset:
    return DetectionDataset(load_data(make_dataset(**changes)), "val", 64)


def each(dataset: DetectionDataset) -> UnitExamples:
    return UnitExamples(range(len(dataset)))


@pytest.mark.parametrize("norm", [0.2, 1.0, 4.0])
def test_the_sum_is_that_of_every_image_by_itself(make_dataset: MakeDataset, detector: Any, norm: float) -> None:
    """One image more moves the sum by its own bounded part, and none of the others changes."""
    dataset = split(make_dataset, val=5)
    whole = bounded_sum(detector, dataset, each(dataset), CPU, norm)
    parts = []
    for number in range(len(dataset)):
        only = _Only(each(dataset), number)
        parts.append(bounded_sum(detector, dataset, only, CPU, norm))  # type: ignore[arg-type]
    assert torch.equal(whole, sum(parts))
    assert all(sum(int(v) ** 2 for v in part.flatten().tolist()) <= SENSITIVITY**2 for part in parts)
    assert any(bool(part.any()) for part in parts)


class _Only:
    """A split of which one unit is left."""

    def __init__(self, units: UnitExamples, unit: int) -> None:
        self._units, self._unit = units, unit

    def __len__(self) -> int:
        return 1

    def examples(self, unit: int) -> np.ndarray:
        return self._units.examples(self._unit)


def test_a_group_is_bounded_as_one(make_dataset: MakeDataset, detector: Any) -> None:
    dataset = split(make_dataset, val=6)
    group = bounded_sum(detector, dataset, UnitExamples(["anna"] * 6), CPU)
    assert sum(int(v) ** 2 for v in group.flatten().tolist()) <= SENSITIVITY**2
    apart = bounded_sum(detector, dataset, each(dataset), CPU)
    assert sum(int(v) ** 2 for v in apart.flatten().tolist()) > SENSITIVITY**2, "the test needs more than one's share"


def test_an_image_of_many_boxes_changes_no_limit(make_dataset: MakeDataset, detector: Any) -> None:
    """Ultralytics raises its limit of detections to the most boxes of an image, which would change the others' too."""
    file = make_dataset(val=2)
    label = next(iter((file.parent / "labels" / "val").glob("*.txt")))
    label.write_text("\n".join(f"0 0.5 0.5 {0.1 + i * 1e-4:.5f} 0.2" for i in range(400)))
    dataset = DetectionDataset(load_data(file), "val", 64)
    limits = []
    head, real = detector.model[-1], noised._detect

    def detect(model: Any, images: Any, conf: float, iou: float, max_det: int, multi_label: bool) -> Any:
        limits.append((max_det, head.max_det, len(images)))
        return real(model, images, conf, iou, max_det, multi_label)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noised, "_detect", detect)
        bounded_sum(detector, dataset, each(dataset), CPU)
    assert limits == [(300, 300, 1)] * 2, "one image at a time, and a limit that no image moves"


def test_the_images_of_a_unit_go_through_the_model_one_at_a_time(make_dataset: MakeDataset, detector: Any) -> None:
    dataset, seen = split(make_dataset, val=4), []
    real = noised._detect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            noised,
            "_detect",
            lambda model, images, *rest, **how: seen.append(len(images)) or real(model, images, *rest, **how),
        )
        bounded_sum(detector, dataset, UnitExamples(["anna"] * 4), CPU)
    assert seen == [1, 1, 1, 1]


def test_the_true_counts_go_through_the_door_once_and_nothing_else_comes_out(
    make_dataset: MakeDataset, detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the door fixed, two splits that differ in an image give the same estimates."""
    one = split(make_dataset, val=3)
    passed: list[torch.Tensor] = []

    def door(value: dict[str, torch.Tensor], **stated: Any) -> dict[str, torch.Tensor]:
        passed.append(value["counts"].clone())
        generator = torch.Generator().manual_seed(0)
        shape = value["counts"].shape
        return {"counts": (torch.randn(shape, generator=generator) * 5 * SENSITIVITY).long()}

    monkeypatch.setattr(noise, "privatize", door)
    found = []
    for units in (each(one), _Only(each(one), 1)):
        found.append(
            evaluate_noised(detector, one, units, noise_multiplier=1.0, stream=NoiseStream(0))  # type: ignore[arg-type]
        )
    assert found[0] == found[1]
    assert len(passed) == 2
    assert not torch.equal(*passed)
    assert not any(torch.equal(p, torch.zeros_like(p)) for p in passed[:1])


def test_the_model_is_left_as_it_was(make_dataset: MakeDataset) -> None:
    model = load_model(SMALL, 2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dataset = split(make_dataset)
    evaluate_noised(model, dataset, each(dataset), noise_multiplier=1.0, stream=NoiseStream(0))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_of_other_classes_is_refused(make_dataset: MakeDataset) -> None:
    dataset = split(make_dataset)
    with pytest.raises(ModelError, match="the model has 5 classes"):
        evaluate_noised(load_model(SMALL, 5), dataset, each(dataset), noise_multiplier=1.0, stream=NoiseStream(0))


def test_every_object_is_counted_once(make_dataset: MakeDataset, detector: Any) -> None:
    dataset = split(make_dataset, val=5)
    seen: list[np.ndarray] = []
    with pytest.MonkeyPatch.context() as patch:
        real = noised.tally
        patch.setattr(noised, "tally", lambda *given: seen.append(real(*given)) or seen[-1])
        bounded_sum(detector, dataset, each(dataset), CPU)
    objects = sum(found[:, -1].sum() for found in seen) / tallies.OBJECT_WEIGHT
    assert objects == sum(len(dataset.labels(i)) for i in range(len(dataset)))
