"""Image files that give everything away, made with Pillow, pydicom and by hand."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, PngImagePlugin, TiffImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

SECRET = b"Nightingale"  # in every field that can hold a text: it must be nowhere afterwards
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + SECRET + b"</x:xmpmeta>"


def photo(size: tuple[int, int] = (61, 43), seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    base = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 128 + 60 * np.sin((x + y) / 11)], -1)
    return np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def exif(orientation: int = 6) -> bytes:
    """An EXIF block with camera, owner, serial number, position, and a thumbnail in its second directory."""
    order = ">"
    thumbnail = jpeg(photo((16, 12)), comment=SECRET)
    body = bytearray(b"MM\0*" + struct.pack(">I", 8))

    def directory(at: int, rows: list[tuple[int, int, int, bytes]], following: bool) -> bytes:
        """Entries, then the values that do not fit into them; ``at`` is where the directory begins."""
        room = at + 2 + 12 * len(rows) + 4
        entries, values = b"", b""
        for tag, kind, count, value in sorted(rows):
            if len(value) > 4:
                entries += struct.pack(f"{order}HHII", tag, kind, count, room + len(values))
                values += value + b"\0" * (len(value) % 2)
            else:
                entries += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
        end = room + len(values)
        return struct.pack(f"{order}H", len(rows)) + entries + struct.pack(f"{order}I", end * following) + values

    text = SECRET + b"\0"
    degrees = struct.pack(">6I", 52, 1, 31, 1, 12, 1)
    gps_rows = [(1, 2, 2, b"N\0"), (2, 5, 3, degrees), (3, 2, 2, b"E\0"), (4, 5, 3, degrees)]
    sub_rows = [(0xA431, 2, len(text), text), (0x9003, 2, 20, b"2026:01:02 03:04:05\0"), (0x927C, 7, len(text), text)]

    def main(gps: int, sub: int) -> list[tuple[int, int, int, bytes]]:
        return [
            (0x010F, 2, len(text), text),
            (0x0112, 3, 1, struct.pack(">H", orientation)),
            (0x013B, 2, len(text), text),
            (0x8769, 4, 1, struct.pack(">I", sub)),
            (0x8825, 4, 1, struct.pack(">I", gps)),
        ]

    first = len(directory(8, main(0, 0), True))
    second_rows = [(0x0103, 3, 1, struct.pack(">H", 6)), (0x0201, 4, 1, bytes(4)), (0x0202, 4, 1, bytes(4))]
    second_at = 8 + first
    second_length = len(directory(second_at, second_rows, False))
    gps_at = second_at + second_length
    gps = directory(gps_at, gps_rows, False)
    sub_at = gps_at + len(gps)
    sub = directory(sub_at, sub_rows, False)
    picture_at = sub_at + len(sub)
    second_rows[1] = (0x0201, 4, 1, struct.pack(">I", picture_at))
    second_rows[2] = (0x0202, 4, 1, struct.pack(">I", len(thumbnail)))
    body += directory(8, main(gps_at, sub_at), True) + directory(second_at, second_rows, False) + gps + sub + thumbnail
    return bytes(body)


@functools.cache  # a profile holds the second it was made
def icc() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def telling_jpeg(image: np.ndarray | None = None, orientation: int = 6, **options: Any) -> bytes:
    """A JPEG with everything: EXIF, XMP, IPTC, comment, JFIF thumbnail, ICC, an unknown segment, a second picture."""
    plain = jpeg(photo() if image is None else image, icc_profile=icc(), **options)
    assert plain[2:4] == b"\xff\xe0"
    jfif = struct.unpack(">H", plain[4:6])[0]
    thumb = bytes(3 * 2 * 2)
    start = b"\xff\xd8" + segment(0xE0, plain[6:18] + b"\2\2" + thumb)
    extra = segment(0xE0, b"JFXX\0\x13\2\2" + thumb)
    extra += segment(0xE1, b"Exif\0\0" + exif(orientation))
    extra += segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    extra += segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0f\x1c\x02\x50\0" + SECRET)
    extra += segment(0xEB, SECRET) + segment(0xFE, SECRET) + segment(0xE2, b"MPF\0" + SECRET)
    return start + extra + plain[4 + jfif :] + jpeg(photo(seed=1)) + SECRET


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + zlib.crc32(kind + payload).to_bytes(4, "big")


def telling_png(image: Any = None, orientation: int = 6) -> bytes:
    """A PNG with EXIF, text of all three kinds, XMP, time, ICC, an unknown chunk, and data after its end."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", SECRET.decode())
    info.add_text("Comment", SECRET.decode(), zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    stream = io.BytesIO()
    Image.fromarray(photo() if image is None else image).save(
        stream, "PNG", pnginfo=info, exif=exif(orientation), icc_profile=icc(), dpi=(72, 72)
    )
    data = stream.getvalue()
    at = data.index(b"IDAT") - 4
    more = chunk(b"tIME", struct.pack(">H5B", 2026, 1, 2, 3, 4, 5)) + chunk(b"prVt", SECRET)
    return data[:at] + more + data[at:] + SECRET


def telling_webp(image: Any = None, lossless: bool = False) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo() if image is None else image).save(
        stream, "WEBP", lossless=lossless, exif=b"Exif\0\0" + exif(), xmp=XMP, icc_profile=icc()
    )
    return stream.getvalue() + SECRET


def telling_tiff(image: Any = None, compression: str | None = None, big: bool = False, pages: int = 2) -> bytes:
    """A TIFF with names, times, GPS, EXIF, XMP, IPTC, ICC and a second page."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for number in (270, 271, 305, 315, 316, 33432):
        tags[number] = SECRET.decode()
    tags[306] = "2026:01:02 03:04:05"
    tags[700], tags[33723] = XMP, SECRET
    tags.tagtype[700] = tags.tagtype[33723] = 7
    if compression is None:  # libtiff, which compresses, writes none of these
        tags[34665] = {0xA431: SECRET.decode()}
        tags[34853] = {1: "N", 2: (52.0, 31.0, 12.0)}
    stream = io.BytesIO()
    first = Image.fromarray(photo() if image is None else image)
    first.save(
        stream,
        "TIFF",
        tiffinfo=tags,
        compression=compression,
        icc_profile=icc(),
        save_all=True,
        append_images=[Image.fromarray(photo((9, 7)))] * (pages - 1),
        big_tiff=big,
    )
    return stream.getvalue()


def dicom(
    pixels: np.ndarray | None = None, implicit: bool = False, seed: int = 0, patient: str = "7", **changes: Any
) -> bytes:
    """A CT slice with a patient, private tags, an overlay, a nested name and a preamble."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2000, (24, 32), np.uint16) if pixels is None else pixels
    secret = SECRET.decode()
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{patient}.1", f"1.2.3.{patient}.2"
    ds.FrameOfReferenceUID = f"1.2.3.{patient}.3"
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = (
        f"{secret}^Florence",
        f"{secret}{patient}",
        "18200512",
        "F",
    )
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20260102", "030405", secret, secret
    ds.ReferringPhysicianName, ds.InstitutionName, ds.StationName = secret, secret, secret
    ds.StudyDescription = ds.SeriesDescription = ds.ImageComments = secret
    ds.DeviceSerialNumber, ds.OperatorsName = secret, secret
    ds.RequestAttributesSequence = [Dataset()]
    ds.RequestAttributesSequence[0].ScheduledProcedureStepDescription = secret
    ds.ReferencedImageSequence = [Dataset()]
    ds.ReferencedImageSequence[0].ReferencedSOPInstanceUID = generate_uid()
    block = ds.private_block(0x0011, "ACME", create=True)
    block.add_new(1, "LO", secret)
    block.add_new(2, "DS", "771234")
    ds.add_new((0x6000, 0x0022), "LO", secret)
    ds.add_new((0x6000, 0x3000), "OW", SECRET + b"\0")
    ds.Rows, ds.Columns = pixels.shape[-2:] if pixels.ndim == 2 else pixels.shape[1:3]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(np.issubdtype(pixels.dtype, np.signedinteger))
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.WindowCenter, ds.WindowWidth, ds.WindowCenterWidthExplanation = 40, 400, secret
    ds.BurnedInAnnotation = "NO"
    ds.PixelData = pixels.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.SourceApplicationEntityTitle = "NIGHTINGALE"
    ds.preamble = SECRET.ljust(128, b"\0")
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def read_dicom(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def write(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file
