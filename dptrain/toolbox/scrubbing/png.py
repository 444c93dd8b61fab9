"""PNG without its metadata: chunks are copied or left out, the compressed pixels are never touched."""

from __future__ import annotations

import re
import struct
import zlib

from . import exif
from .cleaned import Cleaned, Damaged, trailing

_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_SHOWN = {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"cICP"}  # how the same numbers are shown
_TEXT = {b"tEXt", b"zTXt", b"iTXt"}
_FRAMES = {b"acTL", b"fcTL", b"fdAT"}


def clean_png(data: bytes, keep_icc: bool = False) -> Cleaned:
    """Keep the image, its palette, transparency and how it is to be shown; leave out every other chunk.

    Of an animation the still picture is kept, which is what training reads. Source: the PNG specification, third
    edition (W3C 2025).

    Raises:
        Damaged: A chunk is cut off or does not fit its checksum, or is needed to decode and not known.
    """
    kept: list[bytes] = [data[:8]]
    found: list[str] = []
    turned: int | None = None
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise Damaged("the end of the picture is missing")
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        payload = chunk[8:-4]
        if len(chunk) < 12 + length:
            raise Damaged("a chunk is cut off")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise Damaged(f"a chunk ({kind.decode('latin-1')}) does not fit its checksum")
        if (kind == b"IHDR") != (at == 8):
            raise Damaged("the header is not the first chunk")
        at += len(chunk)
        if kind in _CRITICAL or kind in _SHOWN or (kind == b"iCCP" and keep_icc):
            kept.append(chunk)
        elif not kind[0] & 32:
            raise Damaged(f"a chunk that is needed to decode ({kind.decode('latin-1')}) is not known")
        elif kind == b"eXIf":
            found += exif.describe(payload)
            turned = exif.orientation(payload) if turned is None else turned
        else:
            found.append(_words(kind, payload))
    block = exif.minimal(turned or 1)
    if block:
        kept.insert(2, struct.pack(">I", len(block)) + b"eXIf" + block + _crc(b"eXIf" + block))
    found += trailing(data[at:])
    return Cleaned(b"".join(kept), tuple(dict.fromkeys(found)))


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def _words(kind: bytes, payload: bytes) -> str:
    if kind == b"iCCP":
        try:
            profile = zlib.decompressobj().decompress(payload.split(b"\0", 1)[1][1:], 1 << 24)
        except (zlib.error, IndexError):
            profile = b""
        return exif.icc_words(profile)
    if kind in _TEXT:
        keyword = payload.split(b"\0", 1)[0]
        if keyword == b"XML:com.adobe.xmp":
            return "XMP"
        profile_of = re.fullmatch(rb"Raw profile type (exif|iptc|xmp|APP1)", keyword)
        if profile_of:
            return {b"iptc": "IPTC", b"xmp": "XMP"}.get(profile_of[1], "EXIF")
        return "text"
    if kind in _FRAMES:
        return "further frames"
    return "time" if kind == b"tIME" else f"chunk {kind.decode('latin-1')}"
