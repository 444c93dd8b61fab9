"""WebP without its metadata: RIFF chunks are copied or left out, the compressed pixels are never touched."""

from __future__ import annotations

import struct

from . import exif
from .cleaned import Cleaned, Damaged, trailing

_ICC, _ALPHA, _EXIF, _ANIMATION = 0x20, 0x10, 0x08, 0x02


def clean_webp(data: bytes, keep_icc: bool = False) -> Cleaned:
    """Keep the picture and its transparency; leave out every other chunk. Source: RFC 9649.

    Of an animation the first frame is kept, which is what training reads, if it fills the canvas.

    Raises:
        Damaged: A chunk is cut off, there is no picture, or the first frame of an animation is only a part of it.
    """
    size = struct.unpack_from("<I", data, 4)[0] + 8
    if size > len(data):
        raise Damaged("the end of the picture is missing")
    found: list[str] = []
    header, profile, picture, block = b"", b"", b"", b""
    frames = 0
    for kind, payload in _chunks(data[12:size]):
        if kind == b"VP8X" and len(payload) >= 10:
            header = payload[:10]
        elif kind in (b"VP8 ", b"VP8L", b"ALPH") and not frames:
            picture += _chunk(kind, payload)
        elif kind == b"ANMF":
            frames += 1
            picture = picture or _frame(header, payload)
        elif kind == b"ICCP":
            profile = payload
        elif kind == b"EXIF":
            raw = payload[6:] if payload[:6] == b"Exif\0\0" else payload
            found += exif.describe(raw)
            block = block or raw
        elif kind != b"ANIM":
            found.append("XMP" if kind == b"XMP " else f"chunk {kind.decode('latin-1').strip()}")
    if not picture:
        raise Damaged("it contains no picture")
    if frames:
        found.append("further frames" if frames > 1 else "animation")
    if profile and not keep_icc:
        found.append(exif.icc_words(profile))
        profile = b""
    block = exif.minimal(exif.orientation(block))
    body = picture
    if header:
        flags = header[0] & ~(_ICC | _EXIF | 0x04 | _ANIMATION) | (_ICC * bool(profile)) | (_EXIF * bool(block))
        if frames:
            flags = flags & ~_ALPHA | (_ALPHA * (picture[:4] == b"ALPH" or picture[:4] == b"VP8L"))
        body = _chunk(b"VP8X", bytes((flags, 0, 0, 0)) + header[4:])
        body += _chunk(b"ICCP", profile) if profile else b""
        body += picture + (_chunk(b"EXIF", block) if block else b"")
    found += trailing(data[size:])
    cleaned = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    return Cleaned(cleaned, tuple(dict.fromkeys(found)))


def _chunks(body: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 0
    while at < len(body):
        if at + 8 > len(body):
            raise Damaged("a chunk is cut off")
        kind, length = struct.unpack_from("<4sI", body, at)
        payload = body[at + 8 : at + 8 + length]
        if len(payload) < length:
            raise Damaged("a chunk is cut off")
        chunks.append((kind, payload))
        at += 8 + length + length % 2
    return chunks


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)


def _frame(header: bytes, payload: bytes) -> bytes:
    """The picture of an animation's first frame, which must lie over the whole canvas."""
    if len(payload) < 16 or payload[:6] != bytes(6) or payload[6:12] != header[4:10]:
        raise Damaged("the first frame of the animation is only a part of the picture; save it as a still image")
    wanted = (b"ALPH", b"VP8 ", b"VP8L")
    return b"".join(_chunk(kind, part) for kind, part in _chunks(payload[16:]) if kind in wanted)
