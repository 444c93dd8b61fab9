"""JPEG without its metadata: marker segments are copied or left out, the compressed pixels are never touched."""

from __future__ import annotations

import re
import struct

from . import exif
from .cleaned import Cleaned, Damaged, trailing

_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
# Frames, tables, restart intervals, number of lines: what a decoder needs.
_PICTURE = {*range(0xC0, 0xC8), *range(0xC9, 0xD0), 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xF7, 0xF8}
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # a literal first: searched for at memory speed
_XMP = (b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0")


def clean_jpeg(data: bytes, keep_icc: bool = False) -> Cleaned:
    """Keep frames, tables, scans, the JFIF density and Adobe's colour transform; leave out every other segment.

    Sources: ITU-T T.81 annex B (markers), ITU-T T.871 (JFIF), ITU-T T.872 (Adobe's APP14).

    Raises:
        Damaged: A segment is cut off, or the end of the picture is missing.
    """
    head, body, found = [b"\xff\xd8"], bytearray(), []
    turned: int | None = None
    profile = b""
    at = 2
    while True:
        marker, at = _marker(data, at)
        if marker == _EOI:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        if marker == _SOI or at + 2 > len(data):
            raise Damaged("a segment begins where none can")
        length = struct.unpack_from(">H", data, at)[0]
        segment, payload = data[at : at + length], data[at + 2 : at + length]
        at += length
        if length < 2 or at > len(data):
            raise Damaged("a segment is cut off")
        if marker in _PICTURE:
            body += bytes((0xFF, marker)) + segment
        elif marker == _SOS:
            following = _AFTER_SCAN.search(data, at)
            if following is None:
                raise Damaged("the end of the picture is missing")
            body += b"\xff\xda" + segment + data[at : following.start()]
            at = following.start()
        elif marker == 0xE0 and payload[:5] == b"JFIF\0" and len(payload) >= 14:
            if len(payload) > 14:
                found.append("thumbnail")
            if len(head) == 1:
                head.append(_segment(0xE0, payload[:12] + b"\0\0"))
        elif marker == 0xEE and payload[:5] == b"Adobe" and len(payload) >= 12:
            if len(payload) > 12:
                found.append("APP14")
            body += _segment(0xEE, payload[:12])
        elif marker == 0xE1 and payload[:4] == b"Exif":
            found += exif.describe(payload[6:])
            turned = exif.orientation(payload[6:]) if turned is None else turned
        elif marker == 0xE2 and payload[:12] == b"ICC_PROFILE\0":
            profile += payload[14:]
            if keep_icc:
                body += _segment(0xE2, payload)
        else:
            found.append(_words(marker, payload))
    if profile and not keep_icc:
        found.append(exif.icc_words(profile))
    block = exif.minimal(turned or 1)
    if block:
        head.append(_segment(0xE1, b"Exif\0\0" + block))
    found += trailing(data[at:])
    return Cleaned(b"".join(head) + bytes(body) + b"\xff\xd9", tuple(dict.fromkeys(found)))


def _marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker at ``at``, after any fill bytes, and where its segment begins."""
    if data[at : at + 1] != b"\xff":
        raise Damaged("the end of the picture is missing" if at >= len(data) else "bytes between segments")
    while data[at : at + 1] == b"\xff":
        at += 1
    if at >= len(data):
        raise Damaged("the end of the picture is missing")
    return data[at], at + 1


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def _words(marker: int, payload: bytes) -> str:
    if marker == _COM:
        return "comment"
    if marker == 0xE1 and payload.startswith(_XMP):
        return "XMP"
    if marker == 0xED:
        return "IPTC" if b"8BIM\x04\x04" in payload else "Photoshop data"
    if marker == 0xE0 and payload[:4] == b"JFXX":
        return "thumbnail"
    if marker == 0xE2 and payload[:4] == b"MPF\0":
        return "list of further pictures"
    return f"APP{marker - 0xE0}" if 0xE0 <= marker <= 0xEF else f"segment {marker:02X}"
