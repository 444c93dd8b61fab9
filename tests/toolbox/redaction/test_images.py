"""Image files and folders: what is covered, what else a file could leak, what is written and what never is."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from dptrain.commands.main import main
from dptrain.errors import ConfigError, DataError
from dptrain.toolbox.redaction import redact
from dptrain.toolbox.redaction.sheet import ContactSheet

from .scenes import GREY, WEIGHTS, digit_scenes, greyness, textured

SECRET = b"48.8584 N 2.2945 E"


def photo_with_secrets(file: Path, orientation: int = 1) -> bytes:
    """Write a JPEG whose EXIF holds a place, and a thumbnail of the whole picture; return the thumbnail."""
    picture = textured(240, 320)
    thumbnail = cv2.imencode(".jpg", cv2.resize(picture, (160, 120)))[1].tobytes()
    # TIFF: IFD0 (orientation, GPS) -> GPS IFD; IFD1 (the thumbnail).
    gps_at, ifd1_at = 8 + 2 + 2 * 12 + 4, 8 + 2 + 2 * 12 + 4 + 2 + 12 + 4
    text_at = ifd1_at + 2 + 2 * 12 + 4
    thumb_at = text_at + len(SECRET)
    tiff = b"II*\0" + struct.pack("<I", 8)
    tiff += struct.pack("<HHHIIHHII", 2, 0x0112, 3, 1, orientation, 0x8825, 4, 1, gps_at) + struct.pack("<I", ifd1_at)
    tiff += struct.pack("<HHHII", 1, 0x001C, 7, len(SECRET), text_at) + struct.pack("<I", 0)
    tiff += struct.pack("<HHHIIHHII", 2, 0x0201, 4, 1, thumb_at, 0x0202, 4, 1, len(thumbnail)) + struct.pack("<I", 0)
    tiff += SECRET + thumbnail
    exif = b"Exif\0\0" + tiff
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + SECRET + b"</x:xmpmeta>"
    plain = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data for data in (exif, xmp))
    file.write_bytes(plain[:2] + segments + plain[2:])
    return thumbnail


def markers(data: bytes) -> list[int]:
    """The markers of a JPEG up to its pixels."""
    found, place = [], 2
    while place < len(data):
        marker, length = data[place + 1], struct.unpack(">H", data[place + 2 : place + 4])[0]
        found.append(marker)
        if marker == 0xDA:
            return found
        place += 2 + length
    return found


def test_a_thumbnail_that_shows_the_unblurred_picture_is_gone_and_so_is_all_else_beside_the_pixels(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "photo.jpg", tmp_path / "out.jpg"
    thumbnail = photo_with_secrets(source)
    with Image.open(source) as photo:  # the file is what it claims to be
        exif = photo.getexif()
        assert exif.get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(thumbnail) and exif.get_ifd(0x8825)
    assert thumbnail in source.read_bytes() and source.read_bytes().count(SECRET) == 2

    redact(source, target, regions=["0%,0%,100%,50%"], method="gaussian")
    data = target.read_bytes()
    assert SECRET not in data and b"Exif" not in data and b"http" not in data
    assert data.count(b"\xff\xd8\xff") == 1 and data.endswith(b"\xff\xd9")  # no picture inside the picture
    assert set(markers(data)) <= {0xE0, 0xDB, 0xC0, 0xC2, 0xC4, 0xDD, 0xDA}  # JFIF, tables, pixels; no APP1, no comment
    with Image.open(target) as after:
        assert not after.getexif() and "icc_profile" not in after.info


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_other_formats_carry_nothing_beside_the_pixels_either(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"photo{suffix}"
    picture = Image.fromarray(textured(60, 80))
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    options: dict[str, object] = {"exif": exif} if suffix != ".bmp" else {}
    if suffix == ".png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("Comment", SECRET.decode())
        options["pnginfo"] = info
    picture.save(source, **options)
    assert suffix == ".bmp" or SECRET in source.read_bytes()
    redact(source, tmp_path / f"out{suffix}", regions=["10,10,30,30"])
    assert SECRET not in (tmp_path / f"out{suffix}").read_bytes()
    with Image.open(tmp_path / f"out{suffix}") as after:
        assert dict(after.getexif()).keys().isdisjoint({0x010E, 0x8825}) and after.size == (80, 60)


def test_a_region_lies_on_the_picture_as_it_is_shown(tmp_path: Path) -> None:
    """Orientation 6: what is stored at the left is shown at the top."""
    source = tmp_path / "photo.jpg"
    photo_with_secrets(source, orientation=6)
    redact(source, tmp_path / "out.png", regions=["0%,0%,100%,25%"])
    after = cv2.imread(str(tmp_path / "out.png"))
    with Image.open(source) as photo:
        upright = np.asarray(ImageOps.exif_transpose(photo))[..., ::-1]
    assert after.shape == upright.shape == (320, 240, 3)
    assert (after[:80] == GREY).all()
    assert np.abs(after[80:].astype(int) - upright[80:]).mean() < 3


def test_every_digit_is_covered_the_tree_is_kept_and_the_report_says_what_was_found(tmp_path: Path) -> None:
    source, target = tmp_path / "photos", tmp_path / "safe"
    truth = digit_scenes(source / "deep/er", 14)
    (source / "notes.txt").write_text("not a picture")
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    report = redact(source, target, weights=WEIGHTS, imgsz=128, conf=0.1)

    covered = [
        greyness(cv2.imread(str(target / f"deep/er/{number:03}.png")), box)
        for number, boxes in enumerate(truth)
        for box in boxes
    ]
    assert np.mean(np.array(covered) > 0.95) >= 0.97
    untouched = np.mean([greyness(cv2.imread(str(file)), np.array([0, 0, 128, 128])) for file in target.rglob("*.png")])
    assert untouched < 0.6  # it does not simply cover everything
    assert {file: file.read_bytes() for file in before} == before
    assert [file for file in target.rglob("*") if file.is_file() and file.suffix != ".png"] == []

    written = json.loads((tmp_path / "safe.redaction/report.json").read_text())
    assert written["summary"] == report.summary() and written["summary"]["skipped"] == 1
    assert written["settings"]["conf"] == 0.1 and len(written["weights_sha256"]) == 64
    entry = next(item for item in written["files"] if item["source"] == "deep/er/000.png")
    with (tmp_path / "safe.redaction/boxes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    mine = [row for row in rows if row["file"] == "deep/er/000.png"]
    assert len(mine) == entry["boxes"]["detected"] == sum(entry["labels"].values()) >= len(truth[0])
    assert min(float(row["confidence"]) for row in mine) == entry["least_confidence"] > 0.1
    assert len(rows) == written["summary"]["boxes"]
    sheet = cv2.imread(str(tmp_path / "safe.redaction/contact_sheet.jpg"))
    assert sheet.shape[1] == 6 * 240 and sheet.std() > 20


@pytest.mark.parametrize(("searched", "caption"), [(True, "none a.png"), (False, "a.png")])
def test_a_picture_is_called_doubtful_only_where_a_model_looked(
    searched: bool, caption: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[str] = []
    monkeypatch.setattr("dptrain.toolbox.redaction.sheet.cv2.putText", lambda sheet, text, *rest: written.append(text))
    shown = ContactSheet(searched)
    shown.add("a.png", np.zeros((20, 20, 3), np.uint8), [])
    assert shown.write(tmp_path / "sheet.jpg") and written == [caption]


def test_only_the_classes_that_were_asked_for_are_redacted(tmp_path: Path) -> None:
    digit_scenes(tmp_path / "photos", 6)
    report = redact(tmp_path / "photos", tmp_path / "safe", weights=WEIGHTS, imgsz=128, classes="3,7")
    labels = {label for entry in report.files for label in entry.labels}
    assert labels and labels <= {"3", "7"}
    with pytest.raises(ConfigError, match="finds no class face: it knows 0, 1"):
        redact(tmp_path / "photos", tmp_path / "other", weights=WEIGHTS, classes=("3", "face"))
    assert not (tmp_path / "other").exists()


def test_batches_of_any_size_find_the_same(tmp_path: Path) -> None:
    digit_scenes(tmp_path / "photos", 7)
    wide = cv2.resize(cv2.imread(str(tmp_path / "photos/000.png")), (256, 128))
    cv2.imwrite(str(tmp_path / "photos/wide.png"), wide)
    found = [
        redact(tmp_path / "photos", tmp_path / f"safe{size}", weights=WEIGHTS, imgsz=128, batch_size=size).files
        for size in (1, 5)
    ]
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a.source, a.labels) == (b.source, b.labels)


def test_originals_and_other_files_are_never_overwritten_unless_asked(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "a.png"), textured(40, 50))
    (tmp_path / "link").symlink_to(photos)
    os.link(photos / "a.png", tmp_path / "hard.png")
    before = (photos / "a.png").read_bytes()
    region = {"regions": ["0,0,10,10"]}
    refused = {
        photos / "a.png": (photos / "a.png", "is an original"),
        photos: (photos, "is an original"),
        tmp_path / "link": (photos, "is an original"),
    }
    for target, (source, words) in refused.items():
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match=words):
                redact(source, target, overwrite=overwrite, **region)
    with pytest.raises(ConfigError, match="is an original"):
        redact(photos / "a.png", tmp_path / "hard.png", overwrite=True, **region)
    with pytest.raises(ConfigError, match="is inside"):
        redact(photos, photos / "safe", **region)
    with pytest.raises(ConfigError, match="give -o OUT, or --in-place"):
        redact(photos, **region)
    (tmp_path / "b.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="already exists"):
        redact(photos / "a.png", tmp_path / "b.png", **region)
    assert (tmp_path / "b.png").read_bytes() == b"mine" and (photos / "a.png").read_bytes() == before

    redact(photos / "a.png", tmp_path / "b.png", overwrite=True, **region)
    assert (cv2.imread(str(tmp_path / "b.png"))[:10, :10] == GREY).all()
    with pytest.raises(ConfigError, match="has other names"):  # hard.png would go on showing the original
        redact(photos, in_place=True, **region)
    (tmp_path / "hard.png").unlink()
    redact(photos, in_place=True, **region)
    assert (cv2.imread(str(photos / "a.png"))[:10, :10] == GREY).all()
    for report, words in (
        (photos / "reports", "is inside"),
        (tmp_path / "photos.redaction", "report.json already exists"),
    ):
        with pytest.raises(ConfigError, match=words):
            redact(photos, tmp_path / "more", report=report, **region)
    assert not (tmp_path / "more").exists()


def test_a_picture_that_cannot_be_redacted_is_not_written_and_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg", "c.png"):
        cv2.imwrite(str(photos / name), textured(40, 50))
    (photos / "b.jpg").write_bytes((photos / "a.jpg").read_bytes()[:900])
    (photos / "d.heic").write_bytes(b"heic")
    cv2.imwrite(str(photos / "small.png"), textured(8, 8))
    status = main(f"redact {photos} -o {tmp_path / 'safe'} --region 10,10,20,20".split())
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and "3 of 5 files could not be redacted" in error
    assert sorted(file.name for file in (tmp_path / "safe").iterdir()) == ["a.jpg", "c.png"]
    files = json.loads((tmp_path / "safe.redaction/report.json").read_text())["files"]
    assert {item["source"]: item["status"] for item in files} == {
        "a.jpg": "redacted", "b.jpg": "failed", "c.png": "redacted", "d.heic": "failed", "small.png": "failed"
    }  # fmt: skip
    assert "outside a picture of 8 x 8" in next(item["reason"] for item in files if item["source"] == "small.png")


def test_a_stop_leaves_whole_files_and_a_report_of_what_was_not_done(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(60):
        cv2.imwrite(str(photos / f"{number:02}.png"), textured(64, 64, number))
    with pytest.raises(KeyboardInterrupt):
        redact(
            photos, tmp_path / "safe", regions=["0,0,10,10"], batch_size=1,
            on_file=lambda entry, done, total: os.kill(os.getpid(), signal.SIGINT) if done == 5 else None,
        )  # fmt: skip
    written = {file.name for file in (tmp_path / "safe").iterdir()}
    files = json.loads((tmp_path / "safe.redaction/report.json").read_text())["files"]
    assert {item["source"] for item in files if item["status"] == "redacted"} == written
    assert 5 <= len(written) < 60 and sum(item["status"] == "not done" for item in files) == 60 - len(written)
    assert all(cv2.imread(str(tmp_path / "safe" / name)) is not None for name in written)


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), textured(64, 64))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        redact(tmp_path / "a.png", tmp_path / "out/b.png", regions=["0,0,10,10"])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("a.png --region 0,0,1,1", "give -o OUT, or --in-place"),
        ("a.png -o b.png", "nothing to redact"),
        ("a.png -o b.png --classes face --region 0,0,1,1", "classes need weights"),
        ("a.png -o b.png --region 0,0,1", "region '0,0,1' is not x1,y1,x2,y2"),
        ("a.png -o b.png --region 5,0,1,9", "is not a rectangle"),
        ("a.png -o b.png --region 0%,0,1,9", "all four in percent"),
        ("a.png -o b.png --region 0,0,1,1 --method blur", "--method=blur is not one of fill, gaussian"),
        ("a.png -o b.png --region 0,0,1,1 --conf 2", "conf=2.0"),
        ("a.png -o b.png --region 0,0,1,1 --hold -1", "hold=-1"),
        ("a.png -o b.png --region 0,0,1,1 --on-miss pray", "--on-miss=pray"),
        ("a.png -o b.gif --region 0,0,1,1", "cannot be written as .gif"),
        ("a.png -o b.png --region 900,900,990,990", "outside a picture"),
        ("a.png -o b.png --region 0,0,1,1 --frames 3", "frames=3"),
        ("no.png -o b.png --region 0,0,1,1", "no.png: no such file"),
        ("a.png -o b.png --weights no.pt", "checkpoint 'no.pt': no such file"),
        ("a.png -o a.txt/b.png --region 0,0,1,1", "a.txt is not a folder"),
        ("a.png -o b.png --region 0,0,1,1 --report a.txt/b", "a.txt is not a folder"),
        ("a.txt -o b.png --region 0,0,1,1", "neither an image nor a video"),
        ("a.seal -o b --region 0,0,1,1", "dptrain unseal it first"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    arguments: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(textured(40, 50)).save(io.BytesIO(), "png")
    cv2.imwrite("a.png", textured(40, 50))
    for name in ("a.txt", "a.seal"):
        Path(name).write_text("x")
    assert main(["redact", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.seal", "a.txt"]


def test_a_damaged_single_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match="damaged"):
        redact(tmp_path / "a.jpg", tmp_path / "b.jpg", regions=["0,0,10,10"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jpg"]
