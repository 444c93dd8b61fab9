"""Image files: pixels in, redacted pixels out, and nothing that was stored beside them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ...errors import DataError
from ...support.files import write_atomically

#: Suffixes that images are written with, and OpenCV's settings for them: hardly any loss beyond the redaction.
WRITTEN = {
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
    ".bmp": [],
    ".tif": [],
    ".tiff": [],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 95],
}


def refuse_suffix(file: Path) -> None:
    """Refuse an image name that nothing can be written under.

    Raises:
        DataError: It names the ones that can.
    """
    if file.suffix.lower() not in WRITTEN:
        kind = file.suffix or "a name without suffix"
        raise DataError(f"{file}: images cannot be written as {kind}; convert it to one of {' '.join(WRITTEN)}")


def write_image(file: Path, image: np.ndarray) -> None:
    """Write uint8 BGR pixels atomically, encoded afresh: no EXIF, no XMP, no colour profile, no thumbnail.

    Raises:
        DataError: The format cannot hold the picture, such as one of 20,000 pixels as WebP.
        OSError: The file cannot be written.
    """
    try:
        done, data = cv2.imencode(file.suffix.lower(), image, WRITTEN[file.suffix.lower()])
    except cv2.error:
        done = False
    if not done:
        height, width = image.shape[:2]
        raise DataError(f"{file}: a picture of {width} x {height} pixels cannot be written as {file.suffix}; use PNG")
    write_atomically(file, lambda stream: stream.write(data.tobytes()))
