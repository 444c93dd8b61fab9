"""Images: the pixels that another reader sees, or a refusal that names the file; none is passed over in silence."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dptrain import DataError
from dptrain.datasets import MOST_PIXELS
from dptrain.datasets.images import read_image
from dptrain.datasets.listing import IMAGE_SUFFIXES
from dptrain.datasets.sources import load_data
from dptrain.detection.augment import Augmentation
from dptrain.detection.data import DetectionDataset

from .harness import answer, cases, check_message, contents, damaged

SHARE = 0.2
_FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "P", "RGB", "CMYK", "YCbCr", "I;16"),
    "WEBP": ("L", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "AVIF": ("L", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
    "MPO": ("RGB",),
}
_SUFFIX = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "PPM": ".png", "GIF": ".png"}
_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "JPEG": ({}, {"progressive": True}, {"quality": 30, "subsampling": 2}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}),
    "WEBP": ({"lossless": True}, {"quality": 90}),
    "PNG": ({}, {"compress_level": 0}),
}
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO")
_ROTATED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


@cache
def picture(mode: str, width: int, height: int) -> Image.Image:
    grey = (np.add.outer(np.arange(height) * 5, np.arange(width) * 3) % 200).astype(np.uint8)
    colour = np.stack([grey, 255 - grey, grey // 2], -1)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 256 + 77)
    if mode in ("LA", "RGBA"):
        return Image.fromarray(np.dstack([colour, np.full_like(grey, 200)])).convert(mode)
    return Image.fromarray(colour).convert(mode)


@cache
def encoded(kind: str, mode: str, option: int, size: tuple[int, int], frames: int, orientation: int) -> bytes:
    image = picture(mode, *size)
    options = dict(_OPTIONS.get(kind, ({},))[option % len(_OPTIONS.get(kind, ({},)))])
    if frames > 1 and kind in _ANIMATED:
        options |= {"save_all": True, "append_images": [picture(mode, *size).rotate(180)] * (frames - 1)}
    if orientation and kind in _ROTATED:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@st.composite
def intact(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """Format, mode and bytes of a sound image file."""
    kind = draw(st.sampled_from(sorted(_FORMATS)))
    mode = draw(st.sampled_from(_FORMATS[kind]))
    size = draw(st.sampled_from([(16, 12), (9, 30), (33, 1), (1, 1), (64, 48)]))
    if kind == "JPEG2000" and min(size) < 9:
        size = (16, 12)
    frames = draw(st.integers(1, 3))
    if kind == "AVIF":  # Pillow's encoder crashes on some small or moving pictures
        size, frames = (64, 48), 1
    turned = 0 if frames > 1 else draw(st.integers(0, 8))  # OpenCV does not turn what moves
    data = encoded(kind, mode, draw(st.integers(0, 3)), size, frames, turned)
    return kind, mode, data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def sound(image: np.ndarray) -> None:
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert image.flags["C_CONTIGUOUS"] and image.size


@cases(SHARE * 0.25, 120)
@example(file=("JPEG", "RGB", encoded("JPEG", "RGB", 0, (16, 12), 1, 6)), suffix=".tif")
@example(file=("AVIF", "RGB", encoded("AVIF", "RGB", 0, (64, 48), 1, 6)), suffix=".png")
@given(file=intact(), suffix=st.sampled_from(["", "", *sorted(IMAGE_SUFFIXES - {".heic", ".heif"})]))
def test_a_sound_file_is_what_pillow_sees_whatever_it_is_called(
    folder: Path, file: tuple[str, str, bytes], suffix: str
) -> None:
    kind, mode, data = file
    path = folder / f"x{suffix or _SUFFIX.get(kind, '.' + kind.lower())}"
    path.write_bytes(data)
    image, refused = answer(lambda: read_image(path, strict=True), path)
    assert refused is None and image is not None, refused
    sound(image)
    with ImageOps.exif_transpose(Image.open(io.BytesIO(data))) as seen:
        assert image.shape[:2] == (seen.height, seen.width)
        if mode == "I;16":
            wanted = np.repeat((np.asarray(seen) >> 8).astype(np.uint8)[..., None], 3, 2)
        else:
            wanted = np.asarray(seen.convert("RGBA").convert("RGB"))[..., ::-1]
    lossy = 14 if kind in ("JPEG", "MPO", "AVIF", "WEBP") or mode == "YCbCr" else 4
    assert np.abs(image.astype(int) - wanted).mean() <= lossy


def twice(path: Path, strict: bool) -> tuple[np.ndarray | None, str | None]:
    """Read again after other memory was used: what a decoder left out must not be whatever lay there."""
    first = answer(lambda: read_image(path, strict=strict), path)
    filler = [np.full(1 << shift, 0xA5, np.uint8) for shift in range(6, 18) for _ in range(3)]
    del filler
    again = answer(lambda: read_image(path, strict=strict), path)
    assert (first[0] is None) == (again[0] is None)
    if first[0] is not None and again[0] is not None:
        sound(first[0])
        assert not strict or np.array_equal(first[0], again[0])  # every image is read strictly before the first step
    return first


@cases(SHARE * 0.4, 150)
@given(data=st.data(), strict=st.booleans())
def test_a_damaged_file_is_read_the_same_every_time_or_refused(folder: Path, data: st.DataObject, strict: bool) -> None:
    kind, _, content = data.draw(intact())
    path = folder / f"d{data.draw(st.sampled_from([_SUFFIX.get(kind, '.' + kind.lower()), '.png', '.tif', '.avif']))}"
    path.write_bytes(data.draw(damaged(content)))
    image, _ = twice(path, strict)
    if image is None:
        return
    labels = np.array([[0, 0.5, 0.5, 0.4, 0.4]], np.float32)
    canvas, boxes = Augmentation(fliplr=0.5, scale=0.2).apply(image, labels, 32, np.random.default_rng(0))
    assert canvas.shape == (32, 32, 3) and np.isfinite(boxes).all()


@cases(SHARE * 0.15, 80)
@given(data=st.data())
def test_a_file_without_its_end_is_refused_or_whole(folder: Path, data: st.DataObject) -> None:
    kind, _, content = data.draw(intact())
    path = folder / f"t{_SUFFIX.get(kind, '.' + kind.lower())}"
    path.write_bytes(content)
    whole = read_image(path, strict=True)
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    image, _ = twice(path, True)
    assert image is None or np.array_equal(image, whole)


def _png(width: int, height: int) -> bytes:
    data = bytearray(encoded("PNG", "RGB", 0, (16, 12), 1, 0))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def _bmp(width: int, height: int) -> bytes:
    data = bytearray(encoded("BMP", "RGB", 0, (16, 12), 1, 0))
    data[18:26] = struct.pack("<II", width, height)
    return bytes(data)


def _gif(width: int, height: int) -> bytes:
    data = bytearray(encoded("GIF", "L", 0, (16, 12), 1, 0))
    size = struct.pack("<HH", min(width, 65535), min(height, 65535))
    at = data.index(b",\0\0\0\0")
    data[6:10], data[at + 5 : at + 9] = size, size
    return bytes(data)


def _jpeg(width: int, height: int, option: int = 0) -> bytes:
    data = bytearray(encoded("JPEG", "RGB", option, (16, 12), 1, 0))
    at = data.index(b"\xff\xc2" if option else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", min(height, 65535), min(width, 65535))
    return bytes(data)


def _progressive(width: int, height: int) -> bytes:
    return _jpeg(width, height, 1)


def _tiff(width: int, height: int) -> bytes:
    data = bytearray(encoded("TIFF", "RGB", 0, (16, 12), 1, 0))
    start = struct.unpack("<I", data[4:8])[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0], 12):
        tag = struct.unpack("<H", data[at : at + 2])[0]
        if tag in (256, 257):
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)
    return bytes(data)


def _webp(width: int, height: int) -> bytes:
    body = encoded("WEBP", "RGB", 0, (16, 12), 1, 0)[12:]
    size = struct.pack("<I", min(width, 1 << 24) - 1)[:3] + struct.pack("<I", min(height, 1 << 24) - 1)[:3]
    body = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size + body
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _jp2(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG2000", "RGB", 0, (16, 12), 1, 0))
    at = data.index(b"\xff\x51")
    data[at + 6 : at + 14] = data[at + 22 : at + 30] = struct.pack(">II", width, height)
    return bytes(data)


def _avif(width: int, height: int) -> bytes:
    data = bytearray(encoded("AVIF", "RGB", 0, (64, 48), 1, 0))
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", width, height)
    return bytes(data)


def _ppm(width: int, height: int) -> bytes:
    return f"P6 {width} {height} 255\n".encode() + bytes(100)


def _hdr(width: int, height: int) -> bytes:
    return f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode() + bytes(100)


_CLAIMS: list[Callable[[int, int], bytes]] = [
    _png, _bmp, _gif, _jpeg, _progressive, _tiff, _webp, _jp2, _avif, _ppm, _hdr
]  # fmt: skip
_SIDES = st.one_of(st.sampled_from([1, 2000, 16383, 60000, 65535, 65536, 10**6, 2**31 - 1]), st.integers(1, 2**31 - 1))


def memory_used(call: Callable[[], object]) -> int:
    """The bytes by which a call raised the most memory that this process ever held."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@cases(SHARE * 0.1, 60)
@given(make=st.sampled_from(_CLAIMS), width=_SIDES, height=_SIDES, suffix=st.sampled_from([".png", ".avif", ".tif"]))
def test_a_claimed_size_costs_a_bounded_memory(
    folder: Path, make: Callable[[int, int], bytes], width: int, height: int, suffix: str
) -> None:
    path = folder / f"c{suffix}"
    path.write_bytes(make(width, height))
    assert memory_used(lambda: answer(lambda: read_image(path, strict=True), path)) < 1 << 31


@pytest.mark.parametrize("make", [_png, _bmp, _gif, _jpeg, _progressive, _tiff, _webp, _ppm, _hdr])
@pytest.mark.parametrize("strict", [False, True])
def test_a_file_of_a_few_bytes_that_claims_a_gigapixel_is_refused_for_that(
    make: Callable[[int, int], bytes], strict: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(make(60000, 60000))
    assert path.stat().st_size < 2000
    with pytest.raises(DataError, match=rf"claims more than {MOST_PIXELS:,} pixels"):
        read_image(path, strict=strict)
    path.write_bytes(make(20000, 20000))
    with pytest.raises(DataError, match="pixels"):
        read_image(path, strict=strict)


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling", "endless"])
def test_what_is_no_ordinary_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("gone" if kind == "dangling" else "/dev/zero")
    assert answer(lambda: read_image(path), path)[1] is not None


@cases(SHARE * 0.1, 40)
@given(data=st.data())
def test_a_dataset_holds_every_image_that_it_lists_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One image fewer would change who is in the dataset."""
    root = tmp_path_factory.mktemp("dataset")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    names, broken = [], False
    for number in range(data.draw(st.integers(1, 4))):
        kind, _, content = data.draw(intact())
        name = f"{number}{_SUFFIX.get(kind, '.' + kind.lower())}"
        (root / "images" / name).write_bytes(content)
        match data.draw(st.integers(0, 9)):
            case 0:
                (root / "images" / name).write_bytes(b"")
                broken = True
            case 1:
                (root / "images" / name).write_bytes(content[: len(content) // 5])
                broken = True
            case 2:
                (root / "images" / name).unlink()
                (root / "images" / name).symlink_to("gone")
                broken = True
        (root / "labels" / f"{number}.txt").write_text("0 .5 .5 .5 .5\n" * data.draw(st.integers(0, 1)))
        names.append(name)
    (root / "data.yaml").write_text("train: images\nnames: [thing]\n")
    before = contents(root)
    found, refused = answer(lambda: DetectionDataset(load_data(root / "data.yaml"), "train", 32), root / "images")
    assert contents(root) == before
    assert broken == (refused is not None), refused
    if found is not None:
        assert [file.name for file in found.image_files] == sorted(names) and len(found) == len(names)
        assert all(found[index]["img"].shape == (3, 32, 32) for index in range(len(found)))


def test_the_first_broken_image_is_the_one_named(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for number in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "labels" / "0.txt").write_text("")
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [thing]\n")
    with pytest.raises(DataError) as caught:
        DetectionDataset(load_data(tmp_path / "data.yaml"), "train", 32)
    check_message(str(caught.value), tmp_path / "images" / "2.png")
