"""Label files: every object that was written is read, once and as it was written, or the line is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dptrain.datasets.labels import TOLERANCE, read_labels

from .harness import answer, cases, damaged

SHARE = 0.15
CLASSES = 4


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels") / "x.txt"


_SPELLINGS = st.sampled_from(["{!r}", "{:.6f}", "{:g}", "{:+.3f}", "{:e}", "{:.10f}"])


@st.composite
def boxes(draw: st.DrawFn) -> list[str]:
    w, h = draw(st.floats(1e-4, 1)), draw(st.floats(1e-4, 1))
    x, y = draw(st.floats(w / 2, 1 - w / 2)), draw(st.floats(h / 2, 1 - h / 2))
    return [draw(_SPELLINGS).format(value) for value in (x, y, w, h)]


@st.composite
def polygons(draw: st.DrawFn) -> list[str]:
    values = draw(st.lists(st.floats(0, 1), min_size=6, max_size=14).filter(lambda v: len(v) % 2 == 0))
    return [draw(_SPELLINGS).format(value) for value in values]


@st.composite
def label_files(draw: st.DrawFn, objects: st.SearchStrategy[list[str]]) -> list[tuple[str, list[str]]]:
    """Class and numbers of every line, as words."""
    kinds = st.integers(0, CLASSES - 1).map(lambda n: draw(st.sampled_from(["{}", "{}.0", "{:02}", "+{}"])).format(n))
    return draw(st.lists(st.tuples(kinds, objects), max_size=6))


_ENDS = st.sampled_from(["\n", "\r\n", "\n\n", " \n", "\t\n"])


def kept(rows: list[tuple[str, list[str]]]) -> list[list[float]]:
    """What must be read, by numpy: in order, a repeated line once; empty boxes are none."""
    seen: set[tuple[np.float32, ...]] = set()
    found = []
    for kind, words in rows:
        numbers = tuple(np.array([float(kind), *map(float, words)]).astype(np.float32))
        if numbers not in seen:
            seen.add(numbers)
            points = np.array(list(map(float, words)))
            if len(points) != 4:
                low, high = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
                points = np.concatenate([(low + high) / 2, high - low])
            found.append([float(kind), *points])
    return found


@cases(SHARE * 0.5, 200)
@given(data=st.data(), end=_ENDS, gap=st.sampled_from([" ", "  ", "\t"]), mark=st.booleans())
def test_what_was_written_is_read(file: Path, data: st.DataObject, end: str, gap: str, mark: bool) -> None:
    rows = data.draw(label_files(st.one_of(boxes(), polygons())))
    text = "".join(gap.join([kind, *words]) + end for kind, words in rows)
    file.write_text(text, encoding="utf-8-sig" if mark else "utf-8")
    wanted = kept(rows)
    found, refused = answer(lambda: read_labels(file, CLASSES), file)
    flat = [row for row in wanted if np.float32(row[3]) <= 0 or np.float32(row[4]) <= 0]
    over = [row for row in wanted if np.abs(np.array(row[1:3]) - 0.5).max() > 1 or max(row[3:]) > 1]
    if refused is not None:  # rounding may leave a box without area
        assert flat or over, refused
        return
    assert found is not None and not flat
    assert found.dtype == np.float32 and found.shape == (len(wanted), 5)
    np.testing.assert_allclose(found, np.array(wanted).reshape(-1, 5), rtol=1e-6, atol=1e-7)


_WORDS = st.one_of(
    st.sampled_from(["0", "1", "3", "4", "-0", "-1", "0.5", ".5", "1e-46", "1e-300", "1e39", "1.7e308", "-1.7e308",
                     "nan", "inf", "0x1", "1_0", "\uff11", "", "cat", "\0", "\x1c", "\u2028", "1e400",
                     "9" * 400, "\u0661"]),
    st.floats(0, 1).map(str), st.text(max_size=3),
)  # fmt: skip


@cases(SHARE * 0.3, 250)
@example(lines=[["0", ".5", ".5", "1e-46", ".1"]])
@example(lines=[["0", ".5", ".5", ".1", ".1"], ["-0", ".5", ".5", ".1", ".1"]])
@example(lines=[["1e39", ".5", ".5", ".1", ".1"]])
@given(lines=st.lists(st.lists(_WORDS, max_size=9), max_size=4))
def test_any_words_are_sound_rows_or_refused(file: Path, lines: list[list[str]]) -> None:
    file.write_bytes("\n".join(map(" ".join, lines)).encode("utf-8", "surrogatepass"))
    check_rows(file)


@cases(SHARE * 0.1, 100)
@given(
    lines=st.lists(st.one_of(boxes(), st.lists(_WORDS, max_size=12)).map(lambda words: ["1", *words]), max_size=6),
    keypoints=st.sampled_from([0, 0, 2, 6]),
)
def test_a_file_without_its_bad_lines_reads_the_same(file: Path, lines: list[list[str]], keypoints: int) -> None:
    """So what is left out depends on the line, and nothing else of a file on it."""
    file.write_bytes("\n".join(map(" ".join, lines)).encode("utf-8", "surrogatepass"))
    dropped: list[str] = []
    found, refused = answer(lambda: read_labels(file, CLASSES, keypoints, dropped), file)
    if refused is not None:
        assert "not UTF-8" in refused
        return
    bad = {int(line.removeprefix(f"{file}:").partition(":")[0]) for line in dropped}
    text = file.read_bytes().decode("utf-8-sig").splitlines()
    file.write_text("\n".join(line for number, line in enumerate(text, start=1) if number not in bad), newline="")
    again, refused = answer(lambda: read_labels(file, CLASSES, keypoints), file)
    assert refused is None and len(bad) == len(dropped)
    np.testing.assert_array_equal(again, found)
    for number in bad:
        file.write_text(text[number - 1], newline="")
        assert answer(lambda: read_labels(file, CLASSES, keypoints), file)[1] is not None


@cases(SHARE * 0.2, 150)
@given(
    content=st.one_of(
        damaged(b"0 0.5 0.5 0.2 0.1\n1 0.25 0.25 0.125 0.25\r\n3 0.1 0.9 0.1 0.1"), st.binary(max_size=80)
    )
)
def test_damaged_bytes_are_sound_rows_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    check_rows(file)


def check_rows(file: Path) -> None:
    """No line is passed over: as many rows as there are different lines; and no row that a loss would stumble over."""
    found, refused = answer(lambda: read_labels(file, CLASSES), file)
    if refused is not None:
        return
    assert found is not None
    text = file.read_bytes().decode("utf-8-sig")
    lines = {tuple(np.float32(float(word)) + np.float32(0) for word in line.split()) for line in text.splitlines()} - {
        ()
    }
    assert len(found) == len(lines)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    assert set(found[:, 0]) <= set(range(CLASSES)) and not np.signbit(found[:, 0]).any()
    assert (found[:, 3:] > 0).all()
    assert (found[:, 1:3] - found[:, 3:] / 2 >= -TOLERANCE - 1e-6).all()
    assert (found[:, 1:3] + found[:, 3:] / 2 <= 1 + TOLERANCE + 1e-6).all()


@pytest.mark.parametrize("kind", ["dangling", "pipe", "loop", "folder", "inside a file"])
def test_a_label_that_is_there_and_cannot_be_read_is_never_background(tmp_path: Path, kind: str) -> None:
    """Only a file that is not there means that nobody drew a box."""
    file = tmp_path / "x.txt"
    if kind == "dangling":
        file.symlink_to(tmp_path / "not-fetched")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_text("0 .5 .5 .1 .1")
        file = file / "y.txt"
    found, refused = answer(lambda: read_labels(file, CLASSES), file)
    assert found is None and refused is not None
