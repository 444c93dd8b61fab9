"""TIFF without its metadata: the first page's strips or tiles are copied as they are into a file of their own."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from . import exif
from .cleaned import Cleaned, Damaged
from .jpeg import clean_jpeg

# What a decoder needs of a page: shape, sample layout, compression, colours, resolution. TIFF 6.0 and its supplements.
_KEPT = {
    256, 257, 258, 259, 262, 266, 274, 277, 278, 282, 283, 284, 292, 293, 296, 317, 320, 321, 322, 323, 332, 334, 336,
    338, 339, 340, 341, 347, 529, 530, 531, 532,
}  # fmt: skip
_PLACES = {273: 279, 324: 325}  # strips and tiles: where they are, and how long
_ICC = 34675
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NAMES = {
    700: "XMP", 33723: "IPTC", 34377: "Photoshop data", 34665: "EXIF", 34853: "GPS position", 330: "further pictures",
    306: "time", 315: "owner", 33432: "owner", 271: "camera", 272: "camera", 305: "software", 316: "host computer",
    270: "description", 285: "page name", 269: "document name", 33550: "map position", 33922: "map position",
    34735: "map position",
}  # fmt: skip
_FURTHER = 254  # NewSubfileType: this page is a thumbnail or a mask


@dataclass(frozen=True)
class _Entry:
    kind: int
    count: int
    value: bytes


_NONE = _Entry(3, 0, b"")


def clean_tiff(data: bytes, keep_icc: bool = False) -> Cleaned:
    """Keep the first page's picture and the tags needed to decode it, in a new file of the same byte order.

    Further pages go, since thumbnails are often kept there; training reads the first page. BigTIFF becomes classic
    TIFF. Source: TIFF 6.0 (Adobe 1992).

    Raises:
        Damaged: A tag or the picture points outside the file, or it has none.
    """
    order = "<" if data[:2] == b"II" else ">"
    entries, following = _read(data, order)
    places = next((tag for tag in _PLACES if tag in entries), None)
    if places is None or 513 in entries:
        raise Damaged("it contains no picture, or one of the old JPEG kind; save it again")
    pieces = _pieces(data, order, entries, places)
    if entries.get(259, _NONE).value[:2] == struct.pack(f"{order}H", 7):  # JPEG, with room for comments in each piece
        pieces = [clean_jpeg(piece).data for piece in pieces]
    kept = {tag: entry for tag, entry in entries.items() if tag in _KEPT or (tag == _ICC and keep_icc)}
    if kept.get(274) == _Entry(3, 1, struct.pack(f"{order}H", 1)):
        del kept[274]
    cleaned = _write(order, kept, places, pieces)
    found = [_words(tag, entry) for tag, entry in sorted(entries.items()) if _tells(tag, keep_icc)]
    if 34665 in entries:
        found += [word for word in exif.describe(data) if word not in ("GPS position", "thumbnail")]
        found = [word for word in found if word != "EXIF" or not any(other[:5] == "EXIF:" for other in found)]
    if following:
        found.append("further pages")
    if not found and len(data) > len(cleaned) + 16 * len(kept):  # room that no tag points to
        found.append(f"{len(data) - len(cleaned)} bytes that belong to no tag")
    return Cleaned(cleaned, tuple(dict.fromkeys(found)))


def _tells(tag: int, keep_icc: bool) -> bool:
    structural = tag in _KEPT or tag in _PLACES or tag in _PLACES.values() or tag in (_FURTHER, 255)
    return not structural and not (tag == _ICC and keep_icc)


def _words(tag: int, entry: _Entry) -> str:
    return exif.icc_words(entry.value) if tag == _ICC else _NAMES.get(tag, f"tag {tag}")


def _read(data: bytes, order: str) -> tuple[dict[int, _Entry], int]:
    """The tags of the first page, and where the next one begins (0: nowhere)."""
    big = data[2:4] in (b"+\0", b"\0+")
    place, head, step, number = ("Q", "Q", 20, "HHQ") if big else ("I", "H", 12, "HHI")
    inline = 8 if big else 4
    try:
        start = struct.unpack_from(f"{order}{place}", data, 8 if big else 4)[0]
        count = struct.unpack_from(f"{order}{head}", data, start)[0]
        first = start + struct.calcsize(head)
        if count > 4096:
            raise Damaged("its list of tags is too long")
        entries: dict[int, _Entry] = {}
        for at in range(first, first + step * count, step):
            tag, kind, values = struct.unpack_from(f"{order}{number}", data, at)
            size = _SIZES.get(kind, 1) * values
            where = at + step - inline
            if size > inline:
                where = struct.unpack_from(f"{order}{place}", data, where)[0]
            if tag in _KEPT or tag in _PLACES or tag in _PLACES.values() or tag == _ICC:
                if kind not in _SIZES or where + size > len(data):
                    raise Damaged(f"tag {tag} points outside the file")
                entries.setdefault(tag, _Entry(kind, values, data[where : where + size]))
            else:
                entries.setdefault(tag, _Entry(kind, values, b""))
        following = struct.unpack_from(f"{order}{place}", data, first + step * count)[0]
    except struct.error:
        raise Damaged("its list of tags is cut off") from None
    return entries, following


def _numbers(order: str, entry: _Entry) -> list[int]:
    code = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(entry.kind)
    if code is None:
        raise Damaged("an offset or a length is not a whole number")
    return list(struct.unpack(f"{order}{entry.count}{code}", entry.value))


def _pieces(data: bytes, order: str, entries: dict[int, _Entry], places: int) -> list[bytes]:
    starts = _numbers(order, entries[places])
    if _PLACES[places] not in entries:
        raise Damaged("the lengths of its strips are missing; save it again")
    lengths = _numbers(order, entries[_PLACES[places]])
    if len(starts) != len(lengths) or any(a + n > len(data) for a, n in zip(starts, lengths, strict=True)):
        raise Damaged("the picture points outside the file")
    return [data[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def _write(order: str, kept: dict[int, _Entry], places: int, pieces: list[bytes]) -> bytes:
    """A classic TIFF of one page: header, pieces, values that need room, tags."""
    kept = {tag: _classic(order, entry) for tag, entry in kept.items()}
    body = bytearray(8)
    starts = []
    for piece in pieces:
        starts.append(len(body))
        body += piece + b"\0" * (len(piece) % 2)
    if len(body) > 0xF0000000:
        raise Damaged("it is too large for a classic TIFF; cut it into tiles")
    pack = f"{order}{len(pieces)}I"
    kept[places] = _Entry(4, len(pieces), struct.pack(pack, *starts))
    kept[_PLACES[places]] = _Entry(4, len(pieces), struct.pack(pack, *map(len, pieces)))
    tags = bytearray()
    for tag, entry in sorted(kept.items()):
        value = entry.value.ljust(4, b"\0")
        if len(entry.value) > 4:
            value = struct.pack(f"{order}I", len(body))
            body += entry.value + b"\0" * (len(entry.value) % 2)
        tags += struct.pack(f"{order}HHI", tag, entry.kind, entry.count) + value
    body[:8] = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", len(body))
    return bytes(body) + struct.pack(f"{order}H", len(kept)) + bytes(tags) + bytes(4)


def _classic(order: str, entry: _Entry) -> _Entry:
    """The same value without the 64-bit kinds of BigTIFF."""
    if entry.kind not in (16, 17, 18):
        return entry
    numbers = struct.unpack(f"{order}{entry.count}{'q' if entry.kind == 17 else 'Q'}", entry.value)
    try:
        return _Entry(4, entry.count, struct.pack(f"{order}{entry.count}I", *numbers))
    except struct.error:
        raise Damaged("a tag is too large for a classic TIFF") from None
