"""Pixels and geometry, compared with Ultralytics' own reader and dataset."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from ultralytics.data.augment import LetterBox
from ultralytics.utils.patches import imread

from dptrain.datasets.images import Letterbox, read_image
from dptrain.errors import DataError

RNG = np.random.default_rng(0)
GRADIENT = np.add.outer(np.arange(30) * 3, np.arange(40) * 2).astype(np.uint8)
COLOUR = np.stack([GRADIENT, 255 - GRADIENT, GRADIENT // 2], -1)


def write(path, array, **options):
    Image.fromarray(array).save(path, **options)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp", ".avif"])
def test_colour_files_read_as_ultralytics_reads_them(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    write(path, COLOUR)
    image = read_image(path, strict=True)
    assert image.dtype == np.uint8 and image.shape == (30, 40, 3) and image.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(image, imread(path))
    assert np.abs(image.astype(int) - COLOUR[..., ::-1]).mean() < 12  # BGR


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("animated.webp", "RGB", {"save_all": True, "lossless": True}), ("alpha.webp", "RGBA", {}),
        ("pages.tif", "RGB", {"save_all": True}), ("packed.tiff", "RGB", {"save_all": True, "compression": "tiff_lzw"}),
        ("grey_pages.tif", "L", {"save_all": True}), ("print.jpg", "CMYK", {}), ("print.tif", "CMYK", {}),
        ("scan.tif", "1", {}), ("scan.png", "1", {}), ("grey_alpha.png", "LA", {}), ("x.jp2", "RGB", {}),
        ("x.mpo", "RGB", {"save_all": True}),
    ],
)  # fmt: skip
def test_of_pages_and_modes_ultralytics_and_we_read_the_same(name, mode, options, tmp_path):
    more = {"append_images": [Image.fromarray(255 - COLOUR).convert(mode)]} if "save_all" in options else {}
    Image.fromarray(COLOUR).convert(mode).save(tmp_path / name, **options, **more)
    theirs = imread(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name, strict=True), theirs)


def test_an_iphone_picture_is_one_line(tmp_path):
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(DataError, match=r"x\.heic: HEIC .* convert them to JPEG or PNG"):
        read_image(tmp_path / "x.heic", strict=True)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_alpha_palette(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    cv2.imwrite(str(path), (GRADIENT.astype(np.uint16) << 8) + 77)
    np.testing.assert_array_equal(read_image(path), np.repeat(GRADIENT[..., None], 3, 2))
    cv2.imwrite(str(path), (COLOUR.astype(np.uint16) << 8) + 77)
    np.testing.assert_array_equal(read_image(path), COLOUR)
    np.testing.assert_array_equal(read_image(path), imread(path))
    write(path, GRADIENT)
    np.testing.assert_array_equal(read_image(path), np.repeat(GRADIENT[..., None], 3, 2))
    write(path, np.dstack([COLOUR, GRADIENT]))  # RGBA
    np.testing.assert_array_equal(read_image(path), imread(path))
    if suffix == ".png":  # OpenCV darkens a TIFF's colours by its alpha
        np.testing.assert_array_equal(read_image(path), COLOUR[..., ::-1])
    Image.fromarray(GRADIENT).convert("P").save(path)
    assert read_image(path).shape == (30, 40, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation, tmp_path):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(path, COLOUR, exif=exif, quality=100, subsampling=0)
    image = read_image(path)
    assert image.shape[:2] == ((40, 30) if orientation > 4 else (30, 40))
    np.testing.assert_array_equal(image, imread(path))

    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))[..., ::-1]
    assert np.abs(image.astype(int) - upright).max() <= 4


def damaged(path, kind):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no image")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif kind == "gone":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "gone", "folder"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".avif"])
def test_a_damaged_file_is_one_line(kind, suffix, tmp_path, capfd):
    path = tmp_path / f"x{suffix}"
    write(path, RNG.integers(0, 255, (60, 60, 3), np.uint8))
    damaged(path, kind)
    with pytest.raises(DataError) as caught:
        read_image(path, strict=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    capfd.readouterr()


def test_a_jpeg_without_its_end_is_found_whatever_opencv_does(tmp_path, monkeypatch):
    path = tmp_path / "x.jpg"
    write(path, RNG.integers(0, 255, (60, 60, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-400])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((60, 60, 3), np.uint8))  # as OpenCV 4 does
    with pytest.raises(DataError, match="damaged JPEG"):
        read_image(path, strict=True)


def test_a_tiff_without_its_palette_is_refused_and_not_coloured_by_guess(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(COLOUR).convert("P").save(path)
    whole = read_image(path)
    data = path.read_bytes()
    for end in range(len(data) - 1, 0, -37):
        path.write_bytes(data[:end])
        try:
            assert np.array_equal(read_image(path), whole), end
        except DataError as error:
            assert "damaged" in str(error)


def test_a_png_with_a_flipped_bit_is_refused_before_the_first_step(tmp_path):
    """OpenCV 5 does not look at its checksums, and gives memory as pixels where the data end early."""
    path = tmp_path / "x.png"
    write(path, RNG.integers(0, 255, (40, 40, 3), np.uint8))
    data = bytearray(path.read_bytes())
    for place in (data.index(b"IDAT") + 40, len(data) // 2, data.index(b"IEND") - 9):
        changed = data.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"x\.png: .*damaged"):
            read_image(path, strict=True)


def test_floats_and_heic_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    cv2.imwrite(str(path), COLOUR.astype(np.float32))
    with pytest.raises(DataError, match="float32"):
        read_image(path)
    path = tmp_path / "x.heic"
    path.write_bytes(b"anything")
    with pytest.raises(DataError, match="convert"):
        read_image(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a file this user may not read")
def test_no_permission(tmp_path):
    path = tmp_path / "x.png"
    write(path, COLOUR)
    path.chmod(0)
    with pytest.raises(DataError, match="permission"):
        read_image(path)


@pytest.mark.parametrize("shape", [(30, 40), (41, 23), (41, 25), (64, 64), (100, 333), (1, 500), (7, 5), (63, 64)])
@pytest.mark.parametrize("imgsz", [64, 96])
def test_letterbox_is_that_of_ultralytics_dataset(shape, imgsz):
    """Their dataset scales the longer side, rounding the other up, and then pads."""
    image = RNG.integers(0, 255, (*shape, 3), np.uint8)
    place = Letterbox.fit(*shape, imgsz)
    ratio = imgsz / max(shape)
    side = [min(int(np.ceil(length * ratio)), imgsz) for length in shape]
    resized = image if ratio == 1 else cv2.resize(image, side[::-1], interpolation=cv2.INTER_LINEAR)
    theirs = LetterBox(imgsz, scaleup=False)(image=resized)
    np.testing.assert_array_equal(place.pad(place.resize(image)), theirs)


def test_boxes_go_to_the_canvas_and_back():
    place = Letterbox.fit(30, 40, 64)
    assert (place.width, place.height, place.left, place.top) == (64, 48, 0, 8)
    boxes = place.to_canvas(np.array([[0.5, 0.5, 1, 1], [0.25, 0.75, 0.5, 0.5]], np.float32))
    np.testing.assert_allclose(boxes, [[0.5, 0.5, 1, 0.75], [0.25, 0.6875, 0.5, 0.375]])
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1) * 64
    np.testing.assert_allclose(place.to_image(corners, 30, 40), [[0, 0, 40, 30], [0, 15, 20, 30]], atol=1e-4)
    assert place.to_image(np.array([[-9.0, 0, 99, 64]]), 30, 40).tolist() == [[0, 0, 40, 30]]


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "x.tif"), ("PNG", "x.tif"), ("AVIF", "x.png")])
def test_rotation_is_applied_whatever_the_file_is_called(kind, name, tmp_path):
    """Boxes drawn on the upright picture would otherwise lie beside their objects."""
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / name, COLOUR, format=kind, exif=exif)
    assert read_image(tmp_path / name).shape == (40, 30, 3)


def test_later_pages_of_a_tiff_are_never_decoded(tmp_path):
    """A thousand of them would all be held in memory; only the first is a picture."""
    page = Image.fromarray(COLOUR)
    page.save(tmp_path / "x.tif", save_all=True, append_images=[page] * 3)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    data[-2000:] = b"\xff" * 2000
    (tmp_path / "x.tif").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), COLOUR[..., ::-1])
