"""EXIF blocks: the orientation that stays, and what else is in them, in words."""

from __future__ import annotations

import io
import struct
import warnings

from PIL import ExifTags, Image

_ORIENTATION = 0x0112
_SERIALS = (0xA431, 0xA435, 0xC62F)  # body, lens, camera
_OWNERS = (0x013B, 0xA430, 0x9C9D, 0x8298, 0x013C)  # artist, owner, author, copyright, host computer
_TIMES = (0x0132, 0x9003, 0x9004, 0x882A, 0xC71B)
_CAMERA = (0x010F, 0x0110, 0xA433, 0xA434, 0x0131)
_NOTES = (0x927C, 0x9286, 0x010E, 0xC634, 0x9C9C)


def orientation(block: bytes) -> int:
    """Return the orientation, 1 to 8, of an EXIF block as it begins with its byte order; 1 where it has none."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        start = struct.unpack_from(f"{order}I", block, 4)[0]
        for at in range(struct.unpack_from(f"{order}H", block, start)[0]):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * at)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def minimal(turned: int) -> bytes:
    """Return the EXIF block that says how the image is turned, and nothing else; empty where it is not."""
    if turned == 1:
        return b""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, _ORIENTATION, 3, 1, turned, 0, 0)


def describe(block: bytes) -> list[str]:
    """Say what an EXIF block gives away, without the values; nothing for one of :func:`minimal`."""
    if block == minimal(orientation(block)):
        return []
    exif = Image.Exif()
    try:
        with warnings.catch_warnings(action="ignore"):
            exif.load(block)
            main, sub = dict(exif), dict(exif.get_ifd(ExifTags.IFD.Exif))
            gps, thumbnail = exif.get_ifd(ExifTags.IFD.GPSInfo), exif.get_ifd(ExifTags.IFD.IFD1)
    except Exception:  # Pillow fails in many ways on damaged blocks
        return ["EXIF (damaged)"]
    tags = {tag for tag, value in (main | sub).items() if value not in ("", b"", None)}
    words = [
        name
        for name, known in (
            ("camera", _CAMERA), ("serial number", _SERIALS), ("owner", _OWNERS), ("time", _TIMES), ("notes", _NOTES)
        )
        if tags & set(known)
    ]  # fmt: skip
    found = [f"EXIF: {', '.join(words)}" if words else "EXIF"]
    if gps:
        found.append("GPS position")
    if thumbnail:
        found.append("thumbnail")
    return found


def icc_words(profile: bytes) -> str:
    """Name an ICC profile that goes."""
    try:
        from PIL import ImageCms

        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except Exception:
        name = ""
    return f"ICC profile ({name[:60]})" if name else "ICC profile"
