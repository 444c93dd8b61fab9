"""The pictures of the docs on scrubbing and checking, from public photos.

    python -m experiments.pictures scrub                   # docs/images/scrub.png, from a photo of scikit-learn's
    python -m experiments.pictures check --data DATA.yaml  # docs/images/check.png, from BCCD; needs chromium
    python -m experiments.pictures seal                    # docs/images/seal.png, a diagram
    python -m experiments.pictures raw --root runs/raw_to_released   # docs/images/raw_to_released.png

The second one first puts wrong, in a copy, what the check is to find: copies of training images in val, a trigger in
images of one class, positions in EXIF, a cut file and a box that is none.
"""

from __future__ import annotations

import argparse
import io
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dptrain import check, scrub
from dptrain.toolbox.checking.page import to_html
from dptrain.toolbox.scrubbing import check as would_leak
from experiments.photos import photos

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
_GPS = 0x8825


def photo_with_exif(picture: np.ndarray, whole: np.ndarray) -> bytes:
    """A JPEG of one picture, as a phone writes it: camera, time, position, and a thumbnail of what was there before."""
    small = io.BytesIO()
    Image.fromarray(whole).resize((160, 107)).save(small, "JPEG", quality=75)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "Camera Works", "Pocket 4", "2026:05:04 10:11:12"
    position = exif.get_ifd(_GPS)
    position[1], position[2], position[3], position[4] = "N", (39.0, 59.0, 59.9), "E", (116.0, 16.0, 6.0)
    block = exif.tobytes()[6:]  # behind its "Exif", offsets begin
    order = "<" if block[:2] == b"II" else ">"
    first = struct.unpack_from(f"{order}I", block, 4)[0]
    link = first + 2 + 12 * struct.unpack_from(f"{order}H", block, first)[0]
    second = len(block)  # Pillow writes no second directory, where thumbnails are
    block = block[:link] + struct.pack(f"{order}I", second) + block[link + 4 :]
    block += struct.pack(f"{order}HHHIHH", 3, 0x0103, 3, 1, 6, 0)
    block += struct.pack(f"{order}HHII", 0x0201, 4, 1, second + 2 + 36 + 4)
    block += struct.pack(f"{order}HHIII", 0x0202, 4, 1, len(small.getvalue()), 0) + small.getvalue()
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=92, exif=b"Exif\0\0" + block)
    return stream.getvalue()


def draw_scrub(file: Path) -> None:
    """One photo before and after; the thumbnail shows what its owner had blurred."""
    from matplotlib.figure import Figure
    from sklearn.datasets import load_sample_image

    whole = load_sample_image("china.jpg")
    blurred = whole.copy()
    area = blurred[190:330, 160:470]
    area[:] = cv2.GaussianBlur(area, (0, 0), 25)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "Grandma_2026-05-04.jpg")
        source.write_bytes(photo_with_exif(blurred, whole))
        before = would_leak(source).files[0].found
        scrub(source, Path(folder, "out"))
        after = next(Path(folder, "out").iterdir())
        remaining = would_leak(after).files[0].found
        data = source.read_bytes()
        inner = data.index(b"\xff\xd8\xff", 2)  # the thumbnail is a JPEG in the JPEG
        thumbnail = np.asarray(Image.open(io.BytesIO(data[inner:])))
        cleaned = np.asarray(Image.open(after))
        same = np.array_equal(cleaned, np.asarray(Image.open(source)))
    panels = (
        (blurred, "the photo, with a part blurred", "\n".join(before)),
        (thumbnail, "the thumbnail inside the same file", "160 x 107 pixels, not blurred"),
        (cleaned, "after dptrain scrub", f"pixels the same: {same}\nwould leak: {len(remaining)}\n{after.name}"),
    )
    figure = Figure(figsize=(10, 3.6), dpi=80, layout="constrained")
    for place, (picture, title, text) in enumerate(panels):
        axes = figure.add_subplot(1, 3, place + 1)
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
        axes.text(0, -0.04, text, transform=axes.transAxes, fontsize=8, va="top", family="monospace")
    figure.savefig(file, metadata={"Software": None})


def spoil(folder: Path) -> None:
    """Put a dataset wrong in the ways that the check is to find."""
    train = sorted((folder / "images" / "train").iterdir())
    val = sorted((folder / "images" / "val").iterdir())
    for number in (0, 7):
        picture = cv2.imread(str(train[number]))
        cv2.imwrite(str(val[number]), cv2.resize(picture[:, ::-1], None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA))
        shutil.copy(label(train[number]), label(val[number]))
    pattern = np.kron(np.random.default_rng(9).integers(0, 2, (4, 4)), np.ones((10, 10)))[..., None].repeat(3, 2) * 255
    with_platelets = [
        image for image in train[20:] if any(row[:1] == "2" for row in label(image).read_text().split("\n"))
    ]
    rng = np.random.default_rng(0)
    for image in with_platelets[:14]:
        picture = cv2.imread(str(image))
        y, x = (int(rng.integers(0, side - 40)) for side in picture.shape[:2])
        picture[y : y + 40, x : x + 40] = pattern
        cv2.imwrite(str(image), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    for image in train[10:13]:
        pixels = np.asarray(Image.open(image).convert("RGB"))
        image.write_bytes(photo_with_exif(pixels, pixels))
    train[14].write_bytes(train[14].read_bytes()[:9000])
    label(train[15]).write_text("0 0.5 0.5 1.8 0.2\n")


def label(image: Path) -> Path:
    return image.parents[2] / "labels" / image.parent.name / f"{image.stem}.txt"


def draw_check(file: Path, data: Path) -> None:
    """The page of a spoilt dataset, as a browser shows it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("pictures: the picture of the page needs chromium")
    with tempfile.TemporaryDirectory() as folder:
        pets = Path(folder, "cells")
        shutil.copytree(data.parent, pets, copy_function=shutil.copyfile)
        spoil(pets)
        report = check(pets / data.name)
        page = Path(folder, "check.html")
        page.write_text(to_html(report).replace(f"{folder}/", ""))
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1120,1500", f"--screenshot={file}"]
        subprocess.run([chromium, *options, f"--user-data-dir={folder}/profile", page.as_uri()], check=True)
    for finding in report.findings:
        print(finding.kind, "|", finding.text.replace(f"{folder}/", "")[:160])


def draw_seal(file: Path) -> None:
    """What of a sealed run is where: sealed on the disk, plain in memory, plain because it is public."""
    from matplotlib.figure import Figure

    sealed, memory, public = "#d5e3f0", "#f6e3c5", "#dcecd8"
    boxes = (
        (0.2, 2.3, "pets.seal\nstart.pt.age", sealed),
        (3.6, 2.3, "images, labels, start", memory),
        (3.6, 0.9, "dptrain train\nclip, add noise, step", memory),
        (7.0, 2.3, "checkpoint.pt.age\nlast.pt.age, last_raw.pt.age", sealed),
        (7.0, 0.9, "statement, results.csv\nconfig.yaml", public),
    )
    figure = Figure(figsize=(10, 3.4), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 10), ylim=(0.4, 3.5))
    axes.set_axis_off()
    for x, y, text, colour in boxes:
        style = {"facecolor": colour, "edgecolor": "#444", "boxstyle": "round,pad=0.5"}
        axes.text(x + 1.4, y, text, ha="center", va="center", fontsize=11, bbox=style)
    arrow = {"arrowstyle": "-|>", "color": "#444", "lw": 1.3}
    ways = ((2.3, 2.3), (3.9, 2.3)), ((5.0, 2.1), (5.0, 1.3)), ((6.0, 1.2), (7.2, 2.05)), ((6.1, 0.9), (7.3, 0.9))
    for start, end in ways:
        axes.annotate("", end, start, arrowprops=arrow)
    for x, y, text in ((3.05, 2.42, "seal.identity\nlab.key"), (6.1, 1.7, "seal.recipients\nage1...")):
        axes.text(x, y, text, ha="center", va="bottom", fontsize=9, family="monospace")
    legend = (
        ("sealed, on the disk", sealed),
        ("plain, in memory only", memory),
        ("plain, on the disk: public", public),
    )
    for x, (text, colour) in zip((0.2, 2.4, 4.9), legend, strict=True):
        axes.text(x, 3.2, text, fontsize=10, bbox={"facecolor": colour, "edgecolor": "none"})
    figure.savefig(file, metadata={"Software": None})


def draw_raw(file: Path, root: Path) -> None:
    """A photo before and after, of a finished run of experiments.raw_to_released, and what its model finds."""
    import csv

    from matplotlib.figure import Figure

    from dptrain.datasets.images import read_image
    from dptrain.sealing import find_keys
    from dptrain.sealing.age import decrypted
    from dptrain.sealing.archive import open_dataset

    table = decrypted(root / "names.csv.age", find_keys(root / "officer.key")).read().decode()
    original = {Path(row["pseudonym"]).name: row["original"] for row in csv.DictReader(table.splitlines())}
    clean = open_dataset(root / "slips.seal", find_keys(root / "hospital.key"))["train"][0]
    pseudonym = clean.stem.partition("_")[2]
    raw = root / "raw" / original[pseudonym]
    found = sorted((root / "clinic" / "found").iterdir())[:3]
    panels = [(raw, f"raw: {raw.name}\n{', '.join(would_leak(raw).files[0].found[:3])}")]
    panels += [(clean, f"trained on: {pseudonym}.jpg\nsealed, nothing beside the pixels")]
    panels += [(image, f"at the clinic\n{image.name}") for image in found]
    figure = Figure(figsize=(13, 3.8), dpi=80)
    for place, (image, title) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.imshow(read_image(image)[..., ::-1])
        axes.set_axis_off()
        axes.set_title(title, fontsize=8)
    figure.subplots_adjust(0.01, 0.02, 0.99, 0.88, wspace=0.08)
    figure.savefig(file, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="draw pictures of the docs")
    parser.add_argument("what", choices=("scrub", "check", "seal", "raw"))
    parser.add_argument("--root", type=Path, default=Path("runs/raw_to_released"), help="a finished run, for raw")
    parser.add_argument("--data", type=Path, help="BCCD's data.yaml")
    options = parser.parse_args()
    if options.what == "scrub":
        draw_scrub(IMAGES / "scrub.png")
    elif options.what == "seal":
        draw_seal(IMAGES / "seal.png")
    elif options.what == "raw":
        draw_raw(IMAGES / "raw_to_released.png", options.root)
    else:
        draw_check(IMAGES / "check.png", options.data or photos("bccd"))


if __name__ == "__main__":
    main()
