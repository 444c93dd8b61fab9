"""Checkpoints that Ultralytics has released: known by their content, and fetched where a bare name is not here.

What is fetched is not opened before its sha256 is the pinned one. A checkpoint without a pinned one is never fetched.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import ModelError
from .environment import is_offline, ultralytics_folder
from .files import write_atomically

logger = logging.getLogger(__name__)

RELEASE = "v8.4.0"  # of github.com/ultralytics/assets: where Ultralytics 8.4 fetches all of them
ADDRESS = f"https://github.com/ultralytics/assets/releases/download/{RELEASE}"
_COCO = "COCO 2017 train"
# YOLO26 went to COCO from weights of Objects365: train_args of yolo26n.pt name yolo26n-objv1-150.pt.
_MADE_FROM = {"yolov8": _COCO, "yolo11": _COCO, "yolo26": f"Objects365 v1, then {_COCO}"}
_WAITS = (10.0, 60.0)  # seconds for a connection, and between two parts of an answer
_PART = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """What a released file must be: its length in bytes, and its content."""

    size: int
    sha256: str


# docs/training.md says where they are from.
CHECKPOINTS = {
    "yolov8n.pt": Checkpoint(6549796, "f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36"),
    "yolov8s.pt": Checkpoint(22588772, "1f47a78bf100391c2a140b7ac73a1caae18c32779be7d310658112f7ac9aa78a"),
    "yolov8m.pt": Checkpoint(52136884, "5d4a90cdc7a21786cc59cd19778e9eafff836df9e2da32524737c7ee6efe4fe5"),
    "yolov8l.pt": Checkpoint(87792836, "64c9115303f6a25575f82200d1b22ec409fa6bd7d08d0313884fc20d919478cd"),
    "yolov8x.pt": Checkpoint(136890692, "3df4ada6b4dad6d657868f2fdf7faecfb34dcfccf3a25c4b82079064718524c8"),
    "yolo11n.pt": Checkpoint(5613764, "0ebbc80d4a7680d14987a577cd21342b65ecfd94632bd9a8da63ae6417644ee1"),
    "yolo11s.pt": Checkpoint(19313732, "85a76fe86dd8afe384648546b56a7a78580c7cb7b404fc595f97969322d502d5"),
    "yolo11m.pt": Checkpoint(40684120, "d5ffc1a674953a08e11a8d21e022781b1b23a19b730afc309290bd9fb5305b95"),
    "yolo11l.pt": Checkpoint(51387343, "9ebd0e09d59811db4b1d61e2bc6730649608b1ac47f8dd01e2da6bca7c20023f"),
    "yolo11x.pt": Checkpoint(114636239, "7bc158aa95c0ebfdd87f70f01653c1131b93e92522dbe15c228bcd742e773a24"),
    "yolo26n.pt": Checkpoint(5544453, "9b09cc8bf347f0fc8a5f7657480587f25db09b34bf33b0652110fb03a8ad4fef"),
    "yolo26s.pt": Checkpoint(20422725, "646f8bc3fe0a656803d95c294f7852321748cb29d13466a1af8862e2db384a1b"),
    "yolo26m.pt": Checkpoint(44255705, "401cea9ab23ad19246ff7744859816bc599f350e93c9dd30367b6f0a0745d0b7"),
    "yolo26l.pt": Checkpoint(53211173, "9fe3c544f2b19bebad7ea41e76d7ad3d88b7c2f10d11d24430c5311f6b32db26"),
    "yolo26x.pt": Checkpoint(118667365, "9fdd44a31c504547ffb81d2c6d9e6dac3493c8eaa8b0398d3f43bae6c7003e92"),
}


def made_from(sha256: str) -> str | None:
    """Return what public data made a released checkpoint, in words; None where the content is another."""
    name = next((name for name, known in CHECKPOINTS.items() if known.sha256 == sha256), None)
    return None if name is None else f"{_MADE_FROM[name[:6]]}, by Ultralytics' release {RELEASE} of {name}"


def found_start(start: str | Path, setting: str = "model", download: bool = True) -> str:
    """Return where a checkpoint is: a bare name that is not here is looked for, and fetched, as Ultralytics does.

    That is in the weights folder of its settings, then in its release, from which the file comes into the working
    directory. Any other path is returned as it is, and so is a name that is nowhere.

    Args:
        start: A checkpoint or a model description.
        setting: What its setting is called, for messages.
        download: Whether it may be fetched; ``YOLO_OFFLINE`` in the environment forbids it too.

    Raises:
        ModelError: It is not here and cannot be fetched, or what came is another file, of which nothing is kept.
    """
    name = str(start)
    if Path(name).name != name or Path(name).suffix != ".pt" or Path(name).exists():
        return name
    folder = ultralytics_folder("weights")
    if (folder / name).is_file():
        return str(folder / name)
    known = CHECKPOINTS.get(name)
    if known is None and not name.startswith("yolo"):
        return name
    by_hand = f"get {ADDRESS}/{name} and put it into {Path.cwd()}"
    missing = f"{setting}={name}: no such file, here or in {folder}, and"
    if known is None:
        raise ModelError(f"{missing} only the detectors of YOLOv8, 11 and 26 are fetched: if you trust it, {by_hand}")
    if not download or is_offline():
        why = "YOLO_OFFLINE is set" if download else "download=false"
        raise ModelError(f"{missing} {why}: {by_hand}")
    logger.warning("fetching %s from %s (%.1f MB)", name, f"{ADDRESS}/{name}", known.size / 1e6)
    try:
        write_atomically(Path(name), lambda stream: _fetch(name, known, stream, f"{missing} it was not fetched"))
    except OSError as error:
        raise ModelError(
            f"{missing} {Path.cwd()} cannot be written ({error.strerror}): get {ADDRESS}/{name}, and give its path"
        ) from error
    return name


def _fetch(name: str, known: Checkpoint, stream: IO[bytes], missing: str) -> None:
    """Write a file of the release into a stream; what is raised stands for all that can go wrong on the way.

    Raises:
        ModelError: It did not come, or something else did.
    """
    import requests

    address = f"{ADDRESS}/{name}"
    digest, size = hashlib.sha256(), 0
    try:
        plain = {"Accept-Encoding": "identity"}
        with requests.get(address, stream=True, timeout=_WAITS, headers=plain) as answer:
            if answer.status_code != 200:
                raise ModelError(
                    f"{missing}: {address} answered {answer.status_code} {answer.reason}; get it elsewhere, and put it "
                    f"into {Path.cwd()}"
                )
            for part in answer.iter_content(_PART):
                size += len(part)
                if size > known.size:
                    break
                digest.update(part)
                stream.write(part)
    except requests.RequestException as error:
        how = "no answer in time" if isinstance(error, requests.Timeout) else "no connection, or one that broke off"
        raise ModelError(f"{missing} ({how}): get {address} and put it into {Path.cwd()}") from error
    if digest.hexdigest() != known.sha256 or size > known.size:
        short = f"; it ended after {size} of {known.size} bytes" if size < known.size else ""
        raise ModelError(
            f"{missing}: what {address} sent is not the released file, by its sha256{short}; nothing is kept: try "
            f"again, or put the right file into {Path.cwd()}"
        )
