"""Image files to 8-bit pixels, and the letterbox that Ultralytics' own validation applies to them."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin

from ..errors import DataError
from . import MOST_PIXELS
from .contents import content_hash, read_data
from .silence import codecs_silenced, pillow_silenced

PADDING = 114
_MEND = "replace it with an intact copy or remove it"
_TOO_LARGE = f"the image claims more than {MOST_PIXELS:,} pixels; cut it into tiles or shrink it"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_image(path: Path, *, strict: bool = False, wanted: bytes | None = None) -> np.ndarray:
    """Decode an image file as stock Ultralytics does, without its downloads and its repairs on disk.

    EXIF rotation is applied, grey is repeated over three channels, alpha is dropped, 16-bit keeps its high byte; of
    several pages or frames the first counts. The content decides on the decoder, whatever the file is called.

    Args:
        path: The file.
        strict: Also refuse a JPEG whose end is missing, which older OpenCV versions fill with grey in silence, and a
            PNG that does not fit its checksums, which newer ones fill with whatever lay in memory.
        wanted: What :func:`check_image` returned of the file as it must be.

    Returns:
        uint8 array of shape (height, width, 3), BGR.

    Raises:
        DataError: The file cannot be read, is damaged or too large, has a pixel type other than 8- or 16-bit integers,
            or is not what is wanted.
    """
    return _pixels(path, _read(path, wanted), strict)


def check_image(path: Path) -> bytes:
    """Refuse what :func:`read_image` refuses with ``strict``; return the hash of the file's bytes."""
    data = _read(path, None)
    _pixels(path, data, strict=True)
    return content_hash(data)


def _read(path: Path, wanted: bytes | None) -> bytes:
    try:
        return read_data(path, wanted=wanted)
    except OSError as error:
        raise DataError(f"{path}: cannot read the image ({error.strerror}); check path and permission") from None


def _pixels(path: Path, data: bytes, strict: bool) -> np.ndarray:
    if not data:
        raise DataError(f"{path}: the image file is empty (0 bytes); {_MEND}")
    suffix = path.suffix.lower()
    if suffix in {".heic", ".heif"}:
        raise DataError(f"{path}: HEIC images cannot be decoded here; convert them to JPEG or PNG")
    if strict and data[:2] == b"\xff\xd8":
        _refuse_cut_jpeg(path, data)
    if strict and data[:8] == b"\x89PNG\r\n\x1a\n":
        _refuse_damaged_png(path, data)
    with codecs_silenced():
        image = _decode(path, data, suffix)
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"{path}: pixels of type {image.dtype} are not 8- or 16-bit integers; convert it to 8-bit PNG")
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[..., :3])


def _decode(path: Path, data: bytes, suffix: str) -> np.ndarray:
    """Pixels as OpenCV gives them; any failure of a decoder is a DataError."""
    buffer = np.frombuffer(data, np.uint8)
    image: np.ndarray | None = None
    try:
        if data[:4] in _TIFF:
            if not _has_colours(data):  # OpenCV would make some up
                raise DataError(f"{path}: the image is damaged, its palette is not in the file; {_MEND}")
            # OpenCV's colour flag misreads some multi-band TIFFs.
            image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
            if image is not None and (image.ndim != 3 or image.shape[2] < 3):
                image = None
        elif suffix == ".avif" or data[4:12] in (b"ftypavif", b"ftypavis"):
            image = _decode_avif(path, data)
        if image is None:
            image = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
    except (cv2.error, MemoryError) as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise DataError(f"{path}: {_TOO_LARGE}") from None
        image = None
    if image is None or image.size == 0:
        raise DataError(f"{path}: the image is damaged or not in a format that OpenCV reads; {_MEND}")
    return image


def _refuse_damaged_png(path: Path, data: bytes) -> None:
    try:
        PngImagePlugin.PngImageFile(io.BytesIO(data)).verify()
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        if fits := image.width * image.height <= MOST_PIXELS:
            image.load()
    except Exception as error:  # as above
        raise DataError(f"{path}: damaged PNG ({type(error).__name__}: {error}); {_MEND}") from None
    if not fits:
        raise DataError(f"{path}: {_TOO_LARGE}")


def _has_colours(data: bytes) -> bool:
    """Whether the palette of a TIFF's first page, if it is one of colour numbers, lies within the file."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        start = struct.unpack_from(f"{order}I", data, 4)[0]
        count = struct.unpack_from(f"{order}H", data, start)[0]
        tags = {
            tag: (number, struct.unpack_from(f"{order}{'H' if kind == 3 and number < 3 else 'I'}", data, at + 8)[0])
            for at in range(start + 2, start + 2 + 12 * count, 12)
            for tag, kind, number in [struct.unpack_from(f"{order}HHI", data, at)]
        }
    except struct.error:
        return True  # cut off further ahead, or a BigTIFF: OpenCV has the last word
    if tags.get(262, (1, 0))[1] != 3:
        return True
    number, place = tags.get(320, (0, 0))
    return number > 0 and place + 2 * number <= len(data)


def _decode_avif(path: Path, data: bytes) -> np.ndarray | None:
    """AVIF through Pillow's own plugin; ``Image.open`` is avoided as Ultralytics patches it to install packages."""
    Image.init()
    if "AVIF" not in Image.OPEN:
        return None
    try:
        with pillow_silenced():
            image = Image.OPEN["AVIF"][0](io.BytesIO(data), "")
            if image.width * image.height <= MOST_PIXELS:
                with ImageOps.exif_transpose(image) as upright:
                    return cv2.cvtColor(np.asarray(upright.convert("RGB")), cv2.COLOR_RGB2BGR)
    except Exception:  # damaged EXIF data alone fails in half a dozen ways
        return None
    raise DataError(f"{path}: {_TOO_LARGE}")


def _refuse_cut_jpeg(path: Path, data: bytes) -> None:
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        if fits := image.width * image.height <= MOST_PIXELS:
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))  # 1/8 size, but reads every byte
            image.load()
    except Exception as error:  # markers that lie about their length end in struct.error, KeyError and others
        raise DataError(f"{path}: damaged JPEG ({type(error).__name__}: {error}); {_MEND}") from None
    if not fits:
        raise DataError(f"{path}: {_TOO_LARGE}")


@dataclass(frozen=True)
class Letterbox:
    """Where an image of a given size lies on the square canvas.

    The geometry is that of Ultralytics' dataset: the longer side is scaled to the canvas (up as well as down), the
    shorter one rounded up, and the rest is padded with grey on both sides. Lengths are in pixels.
    """

    imgsz: int
    width: int
    height: int
    left: int
    top: int

    @classmethod
    def fit(cls, height: int, width: int, imgsz: int) -> Letterbox:
        """The place of an image of ``height`` x ``width`` pixels on a canvas of ``imgsz`` x ``imgsz``."""
        ratio = imgsz / max(height, width)
        if ratio != 1:
            width, height = min(math.ceil(width * ratio), imgsz), min(math.ceil(height * ratio), imgsz)
        # The 0.1 is Ultralytics': an odd pixel of padding goes to the right and to the bottom.
        return cls(imgsz, width, height, round((imgsz - width) / 2 - 0.1), round((imgsz - height) / 2 - 0.1))

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image at its size on the canvas, without the padding."""
        if image.shape[:2] == (self.height, self.width):
            return image
        return cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def pad(self, resized: np.ndarray) -> np.ndarray:
        """The resized image on its canvas, shape (imgsz, imgsz, 3)."""
        if resized.shape[:2] == (self.imgsz, self.imgsz):
            return resized
        canvas = np.full((self.imgsz, self.imgsz, 3), PADDING, np.uint8)
        canvas[self.top : self.top + self.height, self.left : self.left + self.width] = resized
        return canvas

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """xywh boxes in parts of the image to xywh boxes in parts of the canvas, shape (m, 4)."""
        size = np.array([self.width, self.height, self.width, self.height], np.float32)
        shift = np.array([self.left, self.top, 0, 0], np.float32)
        return (boxes * size + shift) / np.float32(self.imgsz)

    def to_image(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """xyxy boxes in canvas pixels to xyxy boxes in pixels of the original image, cut at its edges, shape (m, 4)."""
        shift = np.array([self.left, self.top] * 2, np.float32)
        scale = np.array([width / self.width, height / self.height] * 2, np.float32)
        return np.clip((boxes - shift) * scale, 0, np.array([width, height] * 2, np.float32))
