"""What to redact and how: checked once, and written into the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ...errors import ConfigError, DataError

METHODS = ("fill", "gaussian", "pixelate", "inpaint")
ON_MISS = ("previous", "blur-all")
AUDIO = ("drop", "keep")


class Box(NamedTuple):
    """A rectangle of whole pixels that is redacted.

    Attributes:
        x1, y1, x2, y2: Left and top edge, and the first column and row that are outside; within the picture.
        label: Class name; empty for a region.
        confidence: Of the detection, of the last one where the box is held; NaN for a region.
        origin: ``detected`` in this frame, ``held`` from another one, ``region`` or the whole ``frame``.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    label: str
    confidence: float
    origin: str


@dataclass(frozen=True)
class Region:
    """A fixed rectangle, in pixels of the upright picture or, where ``relative``, in parts of it."""

    x1: float
    y1: float
    x2: float
    y2: float
    relative: bool = False

    @classmethod
    def parse(cls, given: str | Sequence[float] | Region) -> Region:
        """Read ``100,50,300,200`` (pixels), ``0%,80%,100%,100%``, or four numbers (pixels).

        Raises:
            ConfigError: It is no rectangle.
        """
        if isinstance(given, Region):
            return given
        words = given.split(",") if isinstance(given, str) else [str(value) for value in given]
        percent = [word.strip().endswith("%") for word in words]
        try:
            values = [float(word.strip().removesuffix("%")) for word in words]
        except ValueError:
            values = []
        if len(values) != 4 or len(set(percent)) != 1 or not all(map(math.isfinite, values)):
            raise ConfigError(
                f"region {given!r} is not x1,y1,x2,y2 in pixels, or all four in percent such as 0%,0%,50%,20%"
            )
        x1, y1, x2, y2 = (value / 100 if percent[0] else value for value in values)
        if x1 >= x2 or y1 >= y2 or min(x1, y1) < 0 or (percent[0] and max(x2, y2) > 1):
            raise ConfigError(
                f"region {given!r} is not a rectangle inside a picture: left,top,right,bottom, right and bottom larger"
            )
        return cls(x1, y1, x2, y2, percent[0])

    def box(self, height: int, width: int) -> Box:
        """The region on a picture of ``height`` x ``width`` pixels.

        Raises:
            DataError: It lies outside, so that nothing would be covered.
        """
        sides = (width, height, width, height) if self.relative else (1, 1, 1, 1)
        x1, y1, x2, y2 = (value * side for value, side in zip((self.x1, self.y1, self.x2, self.y2), sides, strict=True))
        if x1 >= width or y1 >= height:
            raise DataError(f"region {x1:g},{y1:g},{x2:g},{y2:g} is outside a picture of {width} x {height} pixels")
        return whole_pixels(x1, y1, x2, y2, height, width, "", math.nan, "region")


@dataclass(frozen=True)
class RedactionSettings:
    """How a redaction is done.

    Attributes:
        classes: Names of the model's classes to redact; ``None`` is all that the model knows.
        method: ``fill`` (one grey; nothing is left), ``inpaint`` (from the surroundings; nothing is left), ``gaussian``
            and ``pixelate`` (what is left is the mean colour of a few cells, see ``cells``).
        regions: Rectangles that are redacted in every picture, with or without a model.
        conf: Least confidence of a detection. Low on purpose: a false alarm costs some pixels, a miss a face.
        margin: How far a box is grown, on each side, in parts of its own width and height.
        hold: Frames of video for which a box stays after its object was last detected, and before it was first.
        on_miss: What a frame gets whose object was there before and is not detected: ``previous``, the held box, or
            ``blur-all``, the whole frame as well.
        audio: ``drop``, or ``keep`` the sound of a video as it is. A voice identifies its speaker.
        cells: Of ``gaussian`` and ``pixelate``: cells along the longer side of a box; a cell is 8 pixels or more.
        imgsz: Pixels of the longer side of what the model sees; larger finds smaller objects.
        batch_size: Pictures at a time; changes speed and memory only.
        device: auto, cpu, cuda, cuda:1, mps.
    """

    classes: tuple[str, ...] | None = None
    method: str = "fill"
    regions: tuple[Region, ...] = ()
    conf: float = 0.05
    margin: float = 0.15
    hold: int = 10
    on_miss: str = "previous"
    audio: str = "drop"
    cells: int = 4
    imgsz: int = 640
    batch_size: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        regions: Iterable[Any] = [self.regions] if isinstance(self.regions, (str, Region)) else self.regions
        object.__setattr__(self, "regions", tuple(Region.parse(region) for region in regions))
        if self.classes is not None:
            names = self.classes.split(",") if isinstance(self.classes, str) else self.classes
            object.__setattr__(self, "classes", tuple(name.strip() for name in names))
            if not self.classes or not all(self.classes):
                raise ConfigError("classes is empty: name one or more, or leave it out for all of the model")
        for name, choices in (("method", METHODS), ("on_miss", ON_MISS), ("audio", AUDIO)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)} is not one of {', '.join(choices)}")
        for name, least, most in (("conf", 0.0, 1.0), ("margin", 0.0, 2.0)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)} is not a number from {least:g} to {most:g}")
        for name, least, most in (("hold", 0, 300), ("cells", 1, 16), ("batch_size", 1, 4096), ("imgsz", 32, 8192)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(f"{name}={value} is not a whole number from {least} to {most}")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        return asdict(self)


def whole_pixels(
    x1: float, y1: float, x2: float, y2: float, height: int, width: int, label: str, confidence: float, origin: str
) -> Box:
    """Round a rectangle outwards to whole pixels and cut it at the picture's edges; at least one pixel is left."""
    left, top = (min(max(math.floor(low), 0), side - 1) for low, side in ((x1, width), (y1, height)))
    right, bottom = max(min(math.ceil(x2), width), left + 1), max(min(math.ceil(y2), height), top + 1)
    return Box(left, top, right, bottom, label, confidence, origin)


def grown(rows: Any, margin: float, height: int, width: int, names: dict[int, str]) -> list[Box]:
    """Turn detections into boxes with a margin.

    Args:
        rows: (k, 6) as :meth:`dptrain.detection.finding.Finder.find` returns them.
        margin: In parts of each box's own width and height, on each side.
        height, width: Of the picture.
        names: Class number to name.
    """
    boxes = []
    for x1, y1, x2, y2, confidence, number in rows.tolist():
        dx, dy = margin * (x2 - x1), margin * (y2 - y1)
        boxes.append(
            whole_pixels(
                x1 - dx, y1 - dy, x2 + dx, y2 + dy, height, width, names[int(number)], round(confidence, 4), "detected"
            )
        )
    return boxes
