"""No byte about an image reaches a descriptor while a run draws it, whatever its codec has to say."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import dptrain
from dptrain import DataError, PrivacyPlan
from dptrain.datasets import silence
from dptrain.datasets.images import read_image
from dptrain.datasets.silence import codecs_silenced
from dptrain.detection.data import Augmentation, DetectionDataset, StepLoader, load_data
from dptrain.privacy.sampling import Draw

from ..conftest import dataset_maker, run_options
from .noisy_images import by_chance, by_hand

BUFFER = ctypes.create_string_buffer(1 << 12)  # of C's stdout, for as long as the process lives
AUGMENTED = Augmentation(fliplr=0.5, hsv_h=0.1, hsv_s=0.5, hsv_v=0.3, scale=0.3, translate=0.1, crop=0.5)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Damaged files that the strict check lets through."""
    kept = _sound_enough(tmp_path_factory.mktemp("noisy"), [*by_hand(), *by_chance(500, seed=7)])
    suffixes = {file.suffix for file in kept}
    assert suffixes == {".jpg", ".png", ".tif", ".bmp", ".webp", ".jp2", ".avif"} and len(kept) > 150
    return kept


@pytest.fixture(scope="module")
def noisy_val(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Others, for a validation split: no picture may be in both."""
    return _sound_enough(tmp_path_factory.mktemp("val"), [*by_hand(100), *by_chance(20, seed=8)])


def _sound_enough(folder: Path, files: list[tuple[str, bytes]]) -> list[Path]:
    kept = []
    with _to_nowhere():  # Pillow's warnings come from the check, which may speak
        for name, content in files:
            file = folder / name
            file.write_bytes(content)
            try:
                read_image(file, strict=True)
            except DataError:
                continue
            kept.append(file)
    return kept


@contextmanager
def _to_nowhere() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _in_splits(folder: Path, train: list[Path], val: list[Path]) -> Path:
    """A dataset of these files and two sound ones."""
    data = dataset_maker(folder)(train=1, val=1)
    for split, files in (("train", train), ("val", val)):
        for file in files:
            (data.parent / "images" / split / file.name).write_bytes(file.read_bytes())
    return data


class _Noted(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_the_codecs_do_speak(noisy: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Else the tests below would show nothing."""
    for file in noisy:
        if file.suffix != ".avif":
            cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    said = capfd.readouterr().err
    assert all(word in said for word in ("Corrupt JPEG data", "libpng warning", "TIFF_Warning"))


def test_a_drawn_image_says_nothing_and_is_the_same_each_time(
    noisy: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    noted, root = _Noted(), logging.getLogger()
    level = root.level
    root.addHandler(noted)
    root.setLevel(logging.DEBUG)
    level_of_opencv = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_VERBOSE)  # this part goes to descriptor 1
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for file in noisy:
                np.testing.assert_array_equal(read_image(file), read_image(file))
    finally:
        cv2.utils.logging.setLogLevel(level_of_opencv)
        root.removeHandler(noted)
        root.setLevel(level)
    assert capfd.readouterr() == ("", "")
    assert not warned and not noted.lines


def test_what_a_codec_leaves_in_cs_buffer_never_comes_out(
    noisy: list[Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    c, decode = ctypes.CDLL(None), cv2.imdecode
    c.setvbuf(silence._STDOUT, BUFFER, 0, len(BUFFER))  # as it is without PYTHONUNBUFFERED

    def prints(*arguments: Any) -> np.ndarray:
        c.printf(b"private")
        return decode(*arguments)

    monkeypatch.setattr(cv2, "imdecode", prints)
    c.printf(b"public ")
    read_image(noisy[0])
    c.printf(b"too")
    c.fflush(None)
    assert capfd.readouterr() == ("public too", "")


def test_the_descriptors_lead_where_they_did(capfd: pytest.CaptureFixture[str]) -> None:
    """After errors, within itself, and after the last of several threads."""
    with pytest.raises(ValueError, match="x"), codecs_silenced(), codecs_silenced():
        os.write(2, b"private")
        raise ValueError("x")
    os.write(2, b"one ")
    gate = threading.Barrier(8)

    def work() -> None:
        for _ in range(50):
            with codecs_silenced():
                os.write(1, b"private")
        gate.wait()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"two")
    os.write(1, b"three")
    assert capfd.readouterr() == ("three", "one two")


@pytest.mark.parametrize("closed", ["1", "2", "1 2"])
def test_a_process_without_descriptors_decodes_and_keeps_them_closed(closed: str) -> None:
    code = f"""
import os
for number in ({closed.replace(" ", ",")},):
    os.close(number)
from dptrain.datasets import silence
from dptrain.datasets.silence import codecs_silenced
with codecs_silenced():
    assert os.fstat(1).st_rdev == os.fstat(2).st_rdev == os.stat(os.devnull).st_rdev
for number in ({closed.replace(" ", ",")},):
    try:
        os.fstat(number)
    except OSError:
        continue
    os._exit(3)
os._exit(0)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_process_forked_meanwhile_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    with codecs_silenced():
        child = os.fork()
        if not child:
            with codecs_silenced():
                os.write(2, b"private")
            os.write(2, b"child")
            os._exit(0)
        os.waitpid(child, 0)
    assert capfd.readouterr() == ("", "child")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_damaged_files_writes_what_a_run_on_sound_ones_writes(
    workers: int, noisy: list[Path], noisy_val: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = PrivacyPlan(0.9, 2, 1.0, 1.0, 1e-3, 5)
    hand = [file for file in noisy if not file.name.startswith("chance")]
    chosen = [*hand, *noisy[len(hand) :: 20]]
    said = []
    for name, files in (("sound", []), ("damaged", chosen)):
        data = _in_splits(tmp_path / name / "pets", files, noisy_val if files else [])
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # of the check
            options = run_options(tmp_path / name, plan=plan, workers=workers, tracking={"enabled": False})
            dptrain.train(data=data, **options)
        out, err = capfd.readouterr()
        lines = [line for line in out.splitlines() if not line.startswith(("budget:", "step", "done:"))]
        assert err == ""
        said.append((len(out.splitlines()), lines))
    assert said[0] == said[1]


class Talks(DetectionDataset):
    def sample(self, index: int, seed: int = 0) -> dict[str, Any]:
        print(f"drew {index}", flush=True)
        logging.getLogger("x").critical("drew %d", index)
        warnings.warn(f"drew {index}", stacklevel=1)
        os.write(2, b"drew")
        return super().sample(index, seed)


class Breaks(DetectionDataset):
    def sample(self, index: int, seed: int = 0) -> dict[str, Any]:
        raise RuntimeError("two\nlines")


@pytest.fixture
def forked() -> Iterator[None]:
    """Workers as Linux has them until Python 3.14, with what this process has in memory."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("forked")
def test_what_a_worker_writes_itself_is_not_heard(
    noisy: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside the codecs: torch's own threads in a worker, a warning of an augmentation, a print left behind."""

    dataset = Talks(load_data(_in_splits(tmp_path, noisy[:3], [])), "train", 64, AUGMENTED)
    capfd.readouterr()
    for step in StepLoader(dataset, 2, workers=2).steps(iter([Draw(np.arange(4), 1), Draw(np.arange(2), 2)])):
        list(step)
    assert capfd.readouterr() == ("", "")


def test_an_error_in_a_worker_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = Breaks(load_data(dataset_maker(tmp_path)(train=2)), "train", 64)
    with pytest.raises(DataError, match=r"^a loader worker failed \(RuntimeError: two lines\); workers=0 shows where$"):
        list(next(StepLoader(dataset, 2, workers=1).steps(iter([Draw(np.arange(2), 1)]))))
    assert capfd.readouterr() == ("", "")
