"""Findings about a dataset, and the report of all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRIVATE = (
    "PRIVATE: this counts and shows private images without any noise. No guarantee covers it: do not publish it. "
    "Nothing of it enters MLflow or a privacy statement."
)
FOLDER = "folder"
#: What is looked for, in the order of the report, and why it matters.
KINDS = {
    "broken image": "training would stop at it before its first step",
    "train and val": "the metrics of a training image would be released without noise, and flatter the model",
    "duplicates": "one photo is then several units, and the guarantee is for one unit",
    "same source": "copies, tiles or frames of one photo, scan or patient: epsilon for an image says little of it",
    "forbidden object": "a person or a face in an image that should have none",
    "planted pattern": "what few images share and no other has: a trigger that someone planted, or a watermark",
    "label error": "training would stop at it, or learn from a box that is none",
    "metadata": "what files reveal beside their pixels; dptrain scrub removes it",
    "class balance": "classes that a private model, which learns little from few images, will not learn",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: One of :data:`KINDS`.
        text: What it is, in a line.
        images: The images that show it, most telling first.
        boxes: For each of them, places to mark: x1, y1, x2, y2 in parts of the image.
    """

    kind: str
    text: str
    images: tuple[Path, ...] = ()
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What a check has found. **As private as the images**: it counts them, and names and shows some.

    Attributes:
        data: The dataset.
        images: Number of images by split; that of a folder without splits is called :data:`FOLDER`.
        unlabelled: Number of images by split without a label file, where there are any; they are background.
        boxes: Number of boxes by split and class name; of a folder without labels none.
        findings: In the order of :data:`KINDS`.
        skipped: What was not looked for, by kind, and why.
    """

    data: Path
    images: dict[str, int]
    unlabelled: dict[str, int]
    boxes: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Number of findings by kind, zeros included."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS}

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "private": PRIVATE,
            "data": str(self.data),
            "images": self.images,
            "unlabelled": self.unlabelled,
            "boxes": self.boxes,
            "counts": self.counts(),
            "findings": [
                {"kind": f.kind, "text": f.text, "images": [str(image) for image in f.images]} for f in self.findings
            ],
            "skipped": self.skipped,
        }
