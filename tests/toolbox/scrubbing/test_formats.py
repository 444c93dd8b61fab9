"""JPEG, PNG, WebP and TIFF: nothing but the picture is left, and the picture is the same to the last bit."""

from __future__ import annotations

import io
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from dptrain.toolbox.scrubbing.clean import clean, suffix_of
from dptrain.toolbox.scrubbing.cleaned import Damaged

from .pictures import (
    SECRET,
    chunk,
    exif,
    icc,
    jpeg,
    photo,
    segment,
    telling_jpeg,
    telling_png,
    telling_tiff,
    telling_webp,
)

GREY16 = np.arange(61 * 43, dtype=np.uint16).reshape(43, 61) * 25
ALPHA = np.dstack([photo(), np.tile(np.arange(61, dtype=np.uint8) * 4, (43, 1))])
FILES = {
    "jpeg": telling_jpeg(),
    "jpeg upright": telling_jpeg(orientation=1),
    "jpeg progressive": telling_jpeg(progressive=True, quality=60),
    "jpeg grey with restarts": telling_jpeg(photo()[..., 0], restart_marker_blocks=2),
    "jpeg 4:2:0": telling_jpeg(subsampling=2, optimize=True),
    "png": telling_png(),
    "png 16 bit": telling_png(GREY16),
    "png alpha": telling_png(ALPHA),
    "webp": telling_webp(),
    "webp lossless": telling_webp(lossless=True),
    "webp alpha": telling_webp(ALPHA),
    "tiff": telling_tiff(),
    "tiff 16 bit": telling_tiff(GREY16),
    "tiff lzw": telling_tiff(compression="tiff_lzw"),
    "tiff deflate, big": telling_tiff(compression="tiff_adobe_deflate", big=True),
    "tiff jpeg": telling_tiff(compression="jpeg"),
}
WITH_POSITION = {name for name in FILES if not name.startswith("tiff ") or name == "tiff 16 bit"}


def decodes(data: bytes) -> list[np.ndarray]:
    """The pixels as Pillow stores them, as Pillow turns them, and as training reads them."""
    with Image.open(io.BytesIO(data)) as image:
        stored, shown = np.asarray(image), np.asarray(ImageOps.exif_transpose(image))
    buffer = np.frombuffer(data, np.uint8)
    return [stored, shown, cv2.imdecode(buffer, cv2.IMREAD_COLOR), cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)]


@pytest.mark.parametrize("name", FILES)
def test_pixels_and_orientation_are_the_same_to_the_last_bit(name: str) -> None:
    before, after = decodes(FILES[name]), decodes(clean(FILES[name]).data)
    for old, new in zip(before, after, strict=True):
        assert old.dtype == new.dtype and np.array_equal(old, new)


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_was_told_is_left(name: str) -> None:
    cleaned = clean(FILES[name])
    assert SECRET not in cleaned.data and b"2026:01:02" not in cleaned.data
    text = " ".join(cleaned.found)
    for word in ("XMP", "ICC profile", *(("GPS position",) if name in WITH_POSITION else ())):
        assert word in text
    if name.startswith(("jpeg", "webp", "png")):
        assert "thumbnail" in text and "bytes after the image" in text
    with Image.open(io.BytesIO(cleaned.data)) as image:
        kept = dict(image.getexif())
        assert set(kept) <= ({0x0112} if image.format != "TIFF" else {*range(254, 350)} - {270, 271, 305, 306, 315})
        assert getattr(image, "n_frames", 1) == 1
        assert not {"icc_profile", "xmp", "comment", "photoshop"} & image.info.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_clean_file_stays_as_it_is(name: str) -> None:
    once = clean(FILES[name])
    twice = clean(once.data)
    assert twice.found == () and twice.data == once.data


def test_a_picture_straight_from_an_encoder_is_clean() -> None:
    assert clean(jpeg(photo())).found == ()
    for kind in ("PNG", "WEBP", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray(photo()).save(stream, kind)
        assert clean(stream.getvalue()).found == (), kind


@pytest.mark.parametrize("turned", range(1, 9))
def test_every_orientation_is_kept(turned: int) -> None:
    for data in (telling_jpeg(orientation=turned), telling_png(orientation=turned)):
        with Image.open(io.BytesIO(clean(data).data)) as image:
            assert image.getexif().get(0x0112, 1) == turned


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff"])
def test_a_colour_profile_stays_when_asked_for(name: str) -> None:
    with Image.open(io.BytesIO(clean(FILES[name], keep_icc=True).data)) as image:
        assert image.info["icc_profile"] == icc()
    assert "ICC" not in " ".join(clean(FILES[name], keep_icc=True).found)


def test_adobes_colour_transform_is_kept() -> None:
    stream = io.BytesIO()
    Image.fromarray(photo()).convert("CMYK").save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    assert b"Adobe" in data
    cleaned = clean(data[:2] + segment(0xFE, SECRET) + data[2:])
    assert cleaned.found == ("comment",)
    assert np.array_equal(decodes(cleaned.data)[0], decodes(data)[0])


def test_only_the_first_of_several_frames_stays() -> None:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    for kind in ("PNG", "WEBP"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:], lossless=True, default_image=False)
        cleaned = clean(stream.getvalue())
        with Image.open(io.BytesIO(cleaned.data)) as image:
            assert getattr(image, "n_frames", 1) == 1
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(frames[0])), kind
        assert "further frames" in cleaned.found


def test_every_cut_is_an_error_or_the_whole_picture() -> None:
    """No prefix of a file passes for a picture of its own."""
    for name in ("jpeg", "png", "webp", "tiff lzw"):
        whole = clean(FILES[name]).data
        for length in range(0, len(whole), 37):
            with pytest.raises(Damaged):
                clean(whole[:length])


def test_no_damage_makes_it_fail_in_another_way() -> None:
    rng = np.random.default_rng(0)
    for name in ("jpeg", "png", "webp", "tiff", "tiff deflate, big"):
        for _ in range(150):
            data = bytearray(FILES[name])
            for place in rng.integers(0, len(data), 3):
                data[place] = int(rng.integers(256))
            with suppress(Damaged):
                clean(bytes(data))


def test_a_chunk_that_nobody_knows_is_not_kept() -> None:
    data = jpeg(photo())
    for marker in (*range(0xE1, 0xF0), 0xF0, 0xFE, 0xC8):
        assert SECRET not in clean(data[:2] + segment(marker, SECRET) + data[2:]).data, hex(marker)
    stream = io.BytesIO()
    Image.fromarray(photo()).save(stream, "PNG")
    data = stream.getvalue()
    assert SECRET not in clean(data[:33] + chunk(b"quTe", SECRET) + data[33:]).data
    with pytest.raises(Damaged, match="needed to decode"):
        clean(data[:33] + chunk(b"QuTe", SECRET) + data[33:])


def test_the_content_decides_on_the_format() -> None:
    assert [suffix_of(FILES[name]) for name in ("jpeg", "png", "webp", "tiff")] == [".jpg", ".png", ".webp", ".tif"]
    assert suffix_of(b"GIF89a") is None
    assert exif()[:2] == b"MM"
