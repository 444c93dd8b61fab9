"""What was redacted, with what confidence: one entry a file, and a line a box."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...support.files import to_json, write_atomically, write_text
from .settings import Box

REPORT, BOXES, SHEET = "report.json", "boxes.csv", "contact_sheet.jpg"
_COLUMNS = ("file", "frame", "seconds", "label", "confidence", "x1", "y1", "x2", "y2", "origin")


@dataclass
class FileReport:
    """What happened to one file.

    Attributes:
        source: The file, below the source folder where that is one.
        output: What was written; empty where nothing was.
        kind: ``image``, ``video`` or ``stream``.
        status: ``redacted``; ``untouched`` (nothing was found, and the file was written without its metadata);
            ``failed`` or ``not done`` (nothing was written); ``skipped`` (not a picture).
        reason: Why nothing was written; of a stream that broke off, why it did: what came before is written.
        frames: Pictures that were written.
        boxes: By origin, the number of boxes.
        labels: By class, the number of detected boxes.
        least_confidence: Of the detected boxes; None without any.
        whole_frames: Frames that were redacted whole after a miss.
        dropped: Frames of a live stream that were left out since they came faster than they could be redacted.
        unreadable: Packets of a video that could not be decoded; their frames were left out.
        label_file: Where the labels of a dataset's image were written; empty where it has none.
    """

    source: str
    output: str = ""
    kind: str = "image"
    status: str = "not done"
    reason: str = ""
    frames: int = 0
    boxes: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    least_confidence: float | None = None
    whole_frames: int = 0
    dropped: int = 0
    unreadable: int = 0
    label_file: str = ""

    def count(self, boxes: Sequence[Box]) -> None:
        """Add the boxes of one frame."""
        self.frames += 1
        for box in boxes:
            self.boxes[box.origin] = self.boxes.get(box.origin, 0) + 1
            if box.origin == "detected":
                self.labels[box.label] = self.labels.get(box.label, 0) + 1
                least = self.least_confidence
                self.least_confidence = box.confidence if least is None else min(least, box.confidence)
            self.whole_frames += box.origin == "frame"

    def done(self) -> None:
        """Say what became of a file that was written."""
        self.status = "redacted" if sum(self.boxes.values()) else "untouched"


@dataclass
class RedactionReport:
    """The outcome of :func:`dptrain.redact`.

    Attributes:
        files: One entry a file, in order.
        settings: As :meth:`dptrain.toolbox.redaction.RedactionSettings.as_dict`.
        weights: The weights' file, or None.
        weights_sha256: Its hash.
        data: The data.yaml that went along with a dataset, None where there is none.
        folder: Where ``report.json``, ``boxes.csv`` and ``contact_sheet.jpg`` were written. They hold file names, and
            where people are: keep them as you keep the originals.
    """

    settings: dict[str, Any]
    weights: str | None
    weights_sha256: str | None
    folder: Path
    files: list[FileReport] = field(default_factory=list)
    data: str | None = None

    @property
    def failed(self) -> list[FileReport]:
        """Files that were to be redacted, could not be, and were not written."""
        return [entry for entry in self.files if entry.status == "failed"]

    def summary(self) -> dict[str, int]:
        """Numbers of files by status, of frames, of boxes and of label files that went along."""
        found = Counter(entry.status for entry in self.files)
        return {
            **{name: found[name] for name in ("redacted", "untouched", "failed", "not done", "skipped")},
            "frames": sum(entry.frames for entry in self.files),
            "boxes": sum(sum(entry.boxes.values()) for entry in self.files),
            "label files": sum(bool(entry.label_file) for entry in self.files),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the report as ``report.json`` holds it."""
        values = asdict(self)
        values.pop("folder")
        return {"summary": self.summary(), **values}


class BoxTable:
    """Collects a line a box on the disk; a video of hours has millions."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115 - closed by close
        self._rows = csv.writer(self._file)
        self._rows.writerow(_COLUMNS)

    def add(self, file: str, frame: int, seconds: float, boxes: Sequence[Box]) -> None:
        """Add the boxes of one frame; ``seconds`` from the video's start, NaN for an image."""
        time = "" if math.isnan(seconds) else f"{seconds:.3f}"
        for box in boxes:
            confidence = "" if math.isnan(box.confidence) else f"{box.confidence:.4f}"
            self._rows.writerow((file, frame, time, box.label, confidence, *box[:4], box.origin))

    def write(self, file: Path) -> None:
        """Write the table atomically."""
        self._file.seek(0)

        def copy(stream: Any) -> None:
            while block := self._file.read(1 << 20):
                stream.write(block.encode())

        write_atomically(file, copy)
        self._file.seek(0, io.SEEK_END)

    def close(self) -> None:
        """Remove the collected lines."""
        self._file.close()


def write_report(report: RedactionReport, table: BoxTable) -> None:
    """Write ``report.json`` and ``boxes.csv`` into the report's folder."""
    table.write(report.folder / BOXES)
    write_text(report.folder / REPORT, to_json(report.as_dict(), indent=1))
