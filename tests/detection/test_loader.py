"""The step loader: exactly the draws, whatever the workers, and no worker left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dptrain.detection import loader as loader_module
from dptrain.detection.data import Augmentation, DetectionDataset, StepLoader, collate, load_data, to_device
from dptrain.errors import DataError
from dptrain.gradients import UnitBatch
from dptrain.privacy.sampling import Draw
from dptrain.privacy.units import UnitExamples

DRAWS = [[], [0, 3, 4], [], [], [5], [0, 1, 2, 3, 4, 5], [2], []]


def draws(rows=DRAWS):
    return (SimpleNamespace(indices=np.array(row, dtype=np.int64), seed=100 + i) for i, row in enumerate(rows))


@pytest.fixture
def dataset(make_dataset):
    return DetectionDataset(load_data(make_dataset()), "train", 64, Augmentation(fliplr=0.5, hsv_v=0.3, crop=0.3))


def alive() -> list:
    return [child for child in multiprocessing.active_children() if "Process" in child.name]


def gone() -> bool:
    for _ in range(100):
        if not alive():
            return True
        time.sleep(0.05)
    return False


def test_collate_and_to_device():
    samples = [
        {"img": torch.full((3, 4, 4), i, dtype=torch.uint8), "cls": torch.full((m, 1), i), "bboxes": torch.rand(m, 4)}
        for i, m in enumerate([2, 0, 1])
    ]
    batch = collate(samples)
    assert batch["img"].dtype == torch.uint8 and batch["img"].shape == (3, 3, 4, 4)
    assert batch["batch_idx"].tolist() == [0, 0, 2] and batch["batch_idx"].dtype == torch.float32
    assert batch["cls"].shape == (3, 1) and batch["bboxes"].shape == (3, 4)
    moved = to_device({**batch, "img": torch.full((3, 3, 4, 4), 255, dtype=torch.uint8)}, "cpu")
    assert moved["img"].dtype == torch.float32 and (moved["img"] == 1).all()
    none = collate([samples[1]])
    assert none["batch_idx"].shape == (0,) and none["cls"].shape == (0, 1) and none["bboxes"].shape == (0, 4)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_draw_is_one_step_and_every_index_comes_once(dataset, workers, share, monkeypatch):
    monkeypatch.setattr(loader_module, "_room_to_share", lambda *_: share)
    seen = []
    for row, step in zip(DRAWS, StepLoader(dataset, 2, workers).steps(draws()), strict=True):
        batches = list(step)
        assert [len(batch["img"]) for batch in batches] == [len(row[i : i + 2]) for i in range(0, len(row), 2)]
        want = [dataset.sample(index, 100 + len(seen)) for index in row]
        if row:
            images = torch.cat([batch["img"] for batch in batches])
            torch.testing.assert_close(images, torch.stack([s["img"] for s in want]).float() / 255, rtol=0, atol=0)
            boxes = torch.cat([batch["bboxes"] for batch in batches])
            torch.testing.assert_close(boxes, torch.cat([s["bboxes"] for s in want]), rtol=0, atol=0)
        seen.append(row)
    assert seen == DRAWS and gone()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_every_drawn_unit_comes_once_and_whole(dataset, workers, size):
    """Whatever the physical batch and the workers: the examples of a unit are never in two batches."""
    units = UnitExamples(["a", "b", "a", "c", "b", "a"], most=2, copies=2)
    loader = StepLoader(dataset, size, workers, units=units)
    drawn = [[], [0, 1, 2], [1], []]
    for number, (row, step) in enumerate(zip(drawn, loader.steps(draws(drawn)), strict=True)):
        batches = list(step)
        seed = 100 + number
        assert all(isinstance(batch, UnitBatch) for batch in batches)
        counts = [count for batch in batches for count in torch.bincount(batch.units).tolist()]
        assert counts == [2 * len(units.chosen(unit, seed)) for unit in row]
        assert all(len(batch.units) <= max(size, 4) for batch in batches)
        assert size < 100 or len(batches) <= 1, "units that fit in one batch are in one"
        rows = [int(index) for unit in row for index in units.chosen(unit, seed)]
        want = [sample["img"] for index in rows for sample in dataset.samples(index, seed, 2)]
        got = [image for batch in batches for image in batch.examples["img"]]
        assert len(got) == len(want)
        for image, sample in zip(got, want, strict=True):
            torch.testing.assert_close(image, sample.float() / 255, rtol=0, atol=0)
    assert gone()


def test_copies_of_an_image_differ_and_the_first_is_the_only_one_of_a_single(dataset):
    first, *others = dataset.samples(3, 7, 4)
    torch.testing.assert_close(first["img"], dataset.sample(3, 7)["img"], rtol=0, atol=0)
    assert all(not torch.equal(first["img"], other["img"]) for other in others)
    again = dataset.samples(3, 7, 2)[1]
    torch.testing.assert_close(again["img"], others[0]["img"], rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rows", [[], [[]], [[], []], [[1]]])
def test_few_or_empty_draws(dataset, workers, rows):
    steps = StepLoader(dataset, 4, workers).steps(draws(rows))
    assert [sum(len(batch["img"]) for batch in step) for step in steps] == [len(row) for row in rows]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_left_of_a_step_does_not_leak_into_the_next(dataset, workers):
    steps = StepLoader(dataset, 2, workers).steps(draws([[0, 1, 2, 3, 4], [5], [], [1]]))
    next(next(steps))  # one batch of three
    (only,) = next(steps)
    torch.testing.assert_close(only["img"][0], dataset.sample(5, 101)["img"].float() / 255)
    assert list(next(steps)) == []
    (last,) = next(steps)
    torch.testing.assert_close(last["img"][0], dataset.sample(1, 103)["img"].float() / 255)


def test_without_workers_no_draw_is_read_ahead(dataset):
    read = []

    def watched():
        for draw in draws():
            read.append(draw.seed)
            yield draw

    steps = StepLoader(dataset, 2).steps(watched())
    for count in range(1, 4):
        next(steps)
        assert len(read) == count


@pytest.mark.parametrize("how", ["close", "drop", "error"])
def test_workers_end_with_the_generator(dataset, how):
    before = signal.getsignal(signal.SIGCHLD)
    steps = StepLoader(dataset, 1, 2).steps(draws([[0, 1, 2]] * 50))
    next(next(steps))
    assert len(alive()) == 2
    if how == "close":
        steps.close()
    elif how == "drop":
        del steps
        gc.collect()
    else:
        with pytest.raises(KeyError):
            steps.throw(KeyError)
    assert gone()
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_went_bad_is_one_line(dataset, workers):
    dataset.image_files[4].write_bytes(b"gone bad")
    steps = StepLoader(dataset, 2, workers).steps(draws([[0, 1], [2, 3, 4], [5]]))
    assert len(list(next(steps))) == 1
    with pytest.raises(DataError, match=r"004\.png: changed after it was checked") as caught:
        for step in steps:
            list(step)
    assert "\n" not in str(caught.value) and gone()


def test_a_dead_worker_is_an_error_not_a_gap(dataset):
    steps = StepLoader(dataset, 1, 2).steps(draws([[0, 1, 2]] * 200))
    next(next(steps))
    for child in alive():
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.2)  # torch's own handler would raise here, in the middle of somebody's step
    with pytest.raises(DataError, match="a loader worker died") as caught:
        for step in steps:
            list(step)
    assert "\n" not in str(caught.value) and gone()


def test_an_error_of_the_draws_passes_through(dataset):
    def failing():
        yield from draws([[0, 1]])
        raise KeyError("sampler")

    for workers in (0, 1):
        with pytest.raises(KeyError):
            for step in StepLoader(dataset, 2, workers).steps(failing()):
                list(step)
        assert gone()


def test_little_shared_memory_is_noticed(monkeypatch):
    monkeypatch.setattr(loader_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    assert loader_module._room_to_share(64, 8, 2)
    assert not loader_module._room_to_share(640, 64, 2)


def test_sizes_are_checked(dataset):
    with pytest.raises(ValueError, match="physical_batch_size=0"):
        StepLoader(dataset, 0)


def test_workers_answer_where_the_temporary_folder_has_a_long_name(dataset, tmp_path, monkeypatch):
    """Too long for the address of a socket, by which a worker would hand its shared memory over."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert not loader_module._room_to_share(64, 1, 1)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert loader_module._room_to_share(64, 1, 1)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    loader = StepLoader(dataset, 2, workers=1)
    steps = [list(batches) for batches in loader.steps(iter([Draw(np.arange(3), 7)]))]
    assert [len(batch["img"]) for batch in steps[0]] == [2, 1]
