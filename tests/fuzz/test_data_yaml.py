"""data.yaml: whatever it holds, the images that it lists are read, or it is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from dptrain.datasets.sources import load_data
from dptrain.errors import is_control

from .harness import answer, cases, contents, damaged

SHARE = 0.15
IMAGES = {
    "train": ["images/train/a.png", "images/train/b.JPG", "images/train/deep/c.webp"],
    "val": ["images/val/d.png"],
    "test": ["images/test/e.png"],
}
LISTS = {
    "lists/train.txt": "./../images/train/a.png\n\n./../images/train/b.JPG\n",
    "lists/gone.txt": "./../images/train/gone.png\n",
    "lists/nul.txt": "a\0b.png\n",
    "lists/long.txt": f"./{'x' * 300}.png\n",
    "lists/odd.txt": "notes.doc\n",
    "lists/twice.txt": "./../images/train/a.png\n./../images/train/a.png\n",
    "lists/empty.txt": "\n",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in (name for names in IMAGES.values() for name in names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "lists").mkdir()
    for name, text in LISTS.items():
        (folder / name).write_text(text)
    (folder / "lists" / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(folder / "pipe")
    (folder / "ring").mkdir()
    for name in ("one", "two"):  # two links to their own folder: 2^40 ways through it
        (folder / "ring" / name).symlink_to(".")
    (folder / "loop").symlink_to("loop")
    return folder


_WORDS = st.sampled_from(
    ["images/train", "images/val", "images/test", "images/train/a.png", "images", ".", "", " ", "images/none", "pipe",
     "ring", "loop", "../images/train", "~nobody-of-this-name/x", "~", "a\0b", "x" * 300, "\ud800", "a\nb", "data.yaml",
     "https://example.org/x.zip", *LISTS, "lists/bytes.txt"]
)  # fmt: skip
_SCALARS = st.one_of(
    _WORDS, st.none(), st.booleans(), st.integers(-2, 5), st.sampled_from([10**9, 10**30, 1e300]),
    st.floats(), st.text(max_size=6), st.dates(),
)  # fmt: skip
_ENTRY = st.one_of(
    st.sampled_from(["images/train", "images/val"]), _WORDS, _SCALARS, st.lists(_WORDS, max_size=3),
    st.lists(_SCALARS, max_size=2), st.dictionaries(_WORDS, _WORDS, max_size=1),
)  # fmt: skip
_NAME = st.one_of(st.sampled_from(["cat", "dog", "Cat", " cat", "0", "1"]), _SCALARS)
_NAMES = st.one_of(
    st.just(["cat", "dog"]),
    st.lists(_NAME, max_size=4),
    st.dictionaries(
        st.one_of(st.integers(-1, 3), st.sampled_from(["0", "1", "x", 1.0, True, None])), _NAME, max_size=3
    ),
    _SCALARS,
)
_COUNT = st.one_of(st.integers(-1, 3), _SCALARS)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A data.yaml that is mostly as it should be."""
    data: dict[str, Any] = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]}
    for key, values in (("train", _ENTRY), ("val", _ENTRY), ("test", _ENTRY), ("names", _NAMES), ("nc", _COUNT),
                        ("path", _SCALARS), ("validation", _ENTRY), ("download", _WORDS)):  # fmt: skip
        kind = draw(st.integers(0, 7))
        if kind == 0:
            data.pop(key, None)
        elif kind == 1:
            data[key] = draw(values)
    return data


def listed(root: Path, entry: Any) -> set[Path] | None:
    """The images that an entry stands for, by a reading of our own; None where it is none that should pass."""
    files: set[Path] = set()
    for item in entry if isinstance(entry, list) else [entry]:
        if not isinstance(item, str) or not item.strip() or "\0" in item:
            return None
        if item.startswith("lists/"):
            if item != "lists/train.txt":
                return None
            files |= {root / "images/train/a.png", root / "images/train/b.JPG"}
            continue
        place = os.path.normpath(root / (item.removeprefix("../") if item.startswith("../") else item))
        found = {root / name for names in IMAGES.values() for name in names
                 if str(root / name) == place or str(root / name).startswith(place + os.sep)}  # fmt: skip
        if not found:
            return None
        files |= found
    return files


def check(file: Path, document: Any) -> None:
    root = file.parent
    before = contents(root / "images")
    found, refused = answer(lambda: load_data(file), file, ".txt", "images/", "ring")
    assert contents(root / "images") == before
    if found is None or not isinstance(document, dict):
        assert refused is not None
        return
    assert not any(isinstance(key, bool) for key in document.get("names") or ()) or isinstance(document["names"], list)
    names = document.get("names")
    if names is not None:
        assert list(found.names.values()) == [
            str(value).strip() for _, value in
            (enumerate(names) if isinstance(names, list) else sorted(names.items(), key=lambda pair: int(pair[0])))
        ]  # fmt: skip
    if document.get("nc") is not None:
        assert int(float(document["nc"])) == len(found.names)
    assert sorted(found.names) == list(range(len(found.names)))
    assert all(name and not any(map(is_control, name)) for name in found.names.values())
    if document.get("path") in (None, "", "."):
        validation = document.get("val", document.get("validation"))
        for entry, files in ((document.get("train"), found.train), (validation, found.val)):
            if entry is not None and entry != []:
                wanted = listed(root, entry)
                assert wanted is not None, entry
                assert {path.resolve() for path in files} == {path.resolve() for path in wanted}
                assert len(files) == len(wanted)


@cases(SHARE * 0.5, 250)
@example(document={"train": "images/train", "nc": 10**9})
@example(document={"train": "ring", "names": ["cat"]})
@example(document={"path": "x" * 300, "train": "images/train", "names": ["cat"]})
@given(document=documents())
def test_a_structured_document_is_read_or_refused(root: Path, document: dict[str, Any]) -> None:
    (root / "data.yaml").write_text(yaml.safe_dump(document, allow_unicode=False), encoding="utf-8")
    check(root / "data.yaml", document)


_SNIPPETS = st.sampled_from(
    ["train: images/train", "val: images/val", "names: [cat, dog]", "names: {0: cat, 1: dog}", "nc: 2", "nc: 0x2",
     "names: {0: cat, 0: dog}", "train: images/val", "day: 2001-99-99", "n: !!int ''", "n: !!float abc", "x: !%0Ay z",
     "x: !!python/object/apply:os.system ['touch ran']", "a: &a [*a]", "names: &a [*a]", "? [a, b]\n: c", "<<: {nc: 2}",
     "<<: [1]", "x: !!timestamp x", "x: " + "[" * 1500, "- - -", "%YAML 9.9", "---", "...", "nc: 1_0",
     "names: [yes, no]",
     "x: !!set {a}", "x: !!binary '*'", "\t", "x: \"\\ud800\"", "train: \"a\\0b\"", "nc: 1:30", "!!map []",
     "names: [1e400]",
     "x: !!omap [a]", "x: !!bool maybe", f"names: [0x{'f' * 5000}]", f"nc: 0x{'f' * 5000}",
     "names: {'1.0': a, '0.0': b}"]
)  # fmt: skip


@cases(SHARE * 0.25, 80)
@example(lines=["train: images/train", "names: [cat]", "x: " + "[" * 1500])
@example(lines=["train: images/train", "names: {0: cat, 0: dog}"])
@given(lines=st.lists(_SNIPPETS, max_size=5))
def test_lines_of_yaml_in_any_order_are_read_or_refused(root: Path, lines: list[str]) -> None:
    (root / "data.yaml").write_text("\n".join(lines), encoding="utf-8")
    answer(lambda: load_data(root / "data.yaml"), root / "data.yaml")
    assert not (root / "ran").exists() and not Path("ran").exists()


_PLAIN = b"path: .\ntrain: images/train\nval: [images/val]\nnames: {0: cat, 1: dog}\nnc: 2\n"


@cases(SHARE * 0.25, 150)
@given(content=st.one_of(damaged(_PLAIN), st.binary(max_size=60)))
def test_damaged_bytes_are_read_or_refused(root: Path, content: bytes) -> None:
    (root / "data.yaml").write_bytes(content)
    answer(lambda: load_data(root / "data.yaml"), root)
