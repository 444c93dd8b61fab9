"""Image files that are damaged where it does not matter: they decode, and the codecs have something to say of them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


def _pixels(seed: int) -> Image.Image:
    """Smooth enough for every codec, and another picture for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
    return small.resize((80, 60), Image.Resampling.BICUBIC)


def _encoded(kind: str, seed: int, **options: object) -> bytes:
    stream = io.BytesIO()
    _pixels(seed).save(stream, kind, **options)
    return stream.getvalue()


def _chunk(name: bytes, data: bytes, flip: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ flip)


def _png_with(chunk: bytes, seed: int) -> bytes:
    png = _encoded("PNG", seed)
    return png[:33] + chunk + png[33:]


def _tiff_with(tags: list[tuple[int, int, int, int]], seed: int) -> bytes:
    """More entries in the only directory, which moves to the end of the file."""
    tiff = _encoded("TIFF", seed)
    start = struct.unpack_from("<I", tiff, 4)[0]
    count = struct.unpack_from("<H", tiff, start)[0]
    entries = [struct.unpack_from("<HHII", tiff, start + 2 + 12 * number) for number in range(count)]
    entries = sorted({entry[0]: entry for entry in [*entries, *tags]}.values())
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    moved = tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:]
    return moved + struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)


def by_hand(first: int = 0) -> Iterator[tuple[str, bytes]]:
    """Name and content of files that OpenCV's codecs complain of, as they come from cameras and careless tools.

    Each is another picture; those of another ``first`` (a multiple of 100) are others again.
    """
    jpeg = _encoded("JPEG", first + 20)
    table = jpeg.index(b"\xff\xdb")
    yield "stray_before_tables.jpg", jpeg[:table] + b"\x00\x01\x02" + jpeg[table:]
    jpeg = _encoded("JPEG", first + 21)
    scan = jpeg.index(b"\xff\xda")
    yield "stray_before_scan.jpg", jpeg[:scan] + b"private" + jpeg[scan:]
    jpeg = _encoded("JPEG", first + 22)
    yield "stray_before_end.jpg", jpeg[:-2] + b"\x00" * 9 + jpeg[-2:]
    jpeg = _encoded("JPEG", first + 23)
    yield "stray_zeros_in_the_scan.jpg", jpeg[:-30] + b"\x00\x00\xff\x00" + jpeg[-30:]
    jpeg = _encoded("JPEG", first + 24)
    yield "restart_out_of_place.jpg", jpeg[:-40] + b"\xff\xd3" + jpeg[-40:]
    jpeg = _encoded("JPEG", first + 25)
    yield "bad_version.jpg", jpeg.replace(b"JFIF\0\x01", b"JFIF\0\x09", 1)
    jpeg = _encoded("JPEG", first + 26)
    yield "wrong_tail.jpg", jpeg[:-12] + bytes(range(10)) + jpeg[-2:]
    yield "bad_profile.png", _png_with(_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 20)), first + 2)
    yield "cut_profile.png", _png_with(_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 20)[:9]), first + 3)
    yield "wrong_gamma.png", _png_with(_chunk(b"gAMA", b"\xff" * 4), first + 4)
    yield "wrong_srgb.png", _png_with(_chunk(b"sRGB", b"\x09") + _chunk(b"sRGB", b"\x00"), first + 5)
    yield "wrong_text.png", _png_with(_chunk(b"zTXt", b"name\0\0" + b"not compressed"), first + 6)
    yield "wrong_time.png", _png_with(_chunk(b"tIME", bytes([0, 0, 99, 99, 99, 99, 99])), first + 7)
    yield "wrong_whitepoint.png", _png_with(_chunk(b"cHRM", b"\xff" * 32), first + 8)
    yield "wrong_exif.png", _png_with(_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff"), first + 9)
    tiff = [(40000 + number, 4, 1, number) for number in range(3)]
    yield "unknown_tags.tif", _tiff_with(tiff, first + 10)
    yield "odd_resolution.tif", _tiff_with([(282, 2, 4, 0), (700, 7, 4, 9), (37724, 99, 4, 9)], first + 11)
    bmp = bytearray(_encoded("BMP", first + 12))
    bmp[2:6] = struct.pack("<I", 7)
    yield "wrong_size.bmp", bytes(bmp)
    webp = _encoded("WEBP", first + 13)
    yield "stray_chunk.webp", webp[:4] + struct.pack("<I", len(webp) + 4) + webp[8:] + b"ABCD\4\0\0\0junk"
    yield "stray_tail.jp2", _encoded("JPEG2000", first + 14) + b"\0\0\0\x10junkjunkjunk"
    yield "stray_tail.avif", _encoded("AVIF", first + 15) + b"\0\0\0\x0cfreejunk"
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 1
    cut = exif.tobytes()[:-7]
    yield "cut_exif.avif", _encoded("AVIF", first + 16, exif=cut)


def by_chance(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` pictures with random bytes changed, put in or taken out; always the same ones for a seed."""
    random_ = random.Random(seed)
    kinds: list[tuple[str, str, dict[str, object]]] = [
        ("JPEG", "jpg", {}),
        ("JPEG", "jpg", {"progressive": True}),
        ("JPEG", "jpg", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
        ("PNG", "png", {}),
        ("TIFF", "tif", {}),
        ("TIFF", "tif", {"compression": "tiff_lzw"}),
        ("TIFF", "tif", {"compression": "jpeg"}),
        ("BMP", "bmp", {}),
        ("WEBP", "webp", {}),
        ("JPEG2000", "jp2", {}),
        ("AVIF", "avif", {}),
    ]
    for number in range(count):
        kind, suffix, options = kinds[random_.randrange(len(kinds))]
        changed = bytearray(_encoded(kind, seed * 10_000 + number, **options))
        for _ in range(random_.randint(1, 3)):
            at = random_.choice([random_.randrange(len(changed)), random_.randrange(min(400, len(changed)))])
            change = random_.randrange(3)
            if change == 0:
                changed[at] = random_.randrange(256)
            elif change == 1:
                changed[at:at] = random_.randbytes(random_.randint(1, 6))
            else:
                del changed[at : at + random_.randint(1, 3)]
        yield f"chance_{number:04}.{suffix}", bytes(changed)
