"""What every cleaner of a file format gives back, and which cleaner a file's first bytes ask for."""

from __future__ import annotations

from .cleaned import Cleaned, Damaged

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def suffix_of(data: bytes) -> str | None:
    """Return the suffix for what a file holds, by its first bytes; None where it is none that can be scrubbed."""
    if data[:3] == b"\xff\xd8\xff":
        return ".jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return ".png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[:4] in _TIFF:
        return ".tif"
    if data[128:132] == b"DICM":
        return ".dcm"
    return None


def clean(data: bytes, keep_icc: bool = False) -> Cleaned:
    """Strip a JPEG, PNG, WebP or TIFF file of all but its first picture and what is needed to show it.

    What is kept is listed format by format, and everything else goes: a block that is not known here is not kept. Of
    EXIF the orientation alone is kept, so a rotated photo, and boxes drawn on it, stay as they are shown.

    Args:
        data: The file.
        keep_icc: Keep the colour profile. It can name a device and the day it was calibrated, and training does not
            read it, so it goes unless asked for.

    Raises:
        Damaged: It is not one of these formats, or its structure is broken.
    """
    suffix = suffix_of(data)
    if suffix == ".jpg":
        from .jpeg import clean_jpeg as cleaner
    elif suffix == ".png":
        from .png import clean_png as cleaner
    elif suffix == ".webp":
        from .webp import clean_webp as cleaner
    elif suffix == ".tif":
        from .tiff import clean_tiff as cleaner
    else:
        raise Damaged("neither JPEG, PNG, WebP nor TIFF")
    return cleaner(data, keep_icc)
