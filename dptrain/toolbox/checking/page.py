"""A check's report as one HTML page with pictures: no script, nothing from the network."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np

from ...datasets.data_yaml import data_name
from ...datasets.images import read_image
from ...errors import DataError
from .findings import KINDS, PRIVATE, CheckReport, Finding

_SIDE = 220
_SHOWN, _PICTURES = 30, 6
_MARK = (40, 40, 230)


def to_html(report: CheckReport) -> str:
    """Return the page; every name in it is escaped, its pictures are small copies without metadata."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dptrain", "toolbox/checking"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    sections = []
    for kind, why in KINDS.items():
        found = [finding for finding in report.findings if finding.kind == kind]
        shown = [{"text": finding.text, "pictures": _pictures(finding)} for finding in found[:_SHOWN]]
        sections.append(
            {
                "kind": kind,
                "why": why,
                "count": len(found),
                "shown": shown,
                "more": len(found) - len(shown),
                "skipped": kind in report.skipped,
            }
        )
    most = max((count for boxes in report.boxes.values() for count in boxes.values()), default=0)
    return environment.get_template("page.html.j2").render(
        report=report,
        name=data_name(report.data),
        private=PRIVATE,
        sections=sections,
        most=max(most, 1),
        total=sum(report.images.values()),
    )


def _pictures(finding: Finding) -> list[dict[str, str]]:
    found = []
    for number, image in enumerate(finding.images[:_PICTURES]):
        marks = finding.boxes[number] if number < len(finding.boxes) else ()
        source = _picture(image, marks)
        if source is not None:
            found.append({"name": image.name, "source": source})
    return found


def _picture(image: Path, marks: tuple[tuple[float, float, float, float], ...]) -> str | None:
    try:
        pixels = read_image(image)
    except DataError:
        return None
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    for x1, y1, x2, y2 in marks:
        corners = np.rint(np.array([x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1]])).astype(int).tolist()
        cv2.rectangle(small, corners[:2], corners[2:], _MARK, 2)
    data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
