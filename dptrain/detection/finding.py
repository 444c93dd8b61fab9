"""Objects in pictures of any size, at the model's own speed: for redaction, where misses cost most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.nn.modules import OBB, Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression

from ..datasets.images import PADDING, Letterbox
from ..errors import ConfigError, ModelError
from .data import to_rgb_planes
from .model import open_checkpoint

_MOST = 1000  # boxes in one picture
_OVERLAP = 0.7  # above it, the less confident of two boxes of a class is dropped


@dataclass(frozen=True)
class PreparedImage:
    """A picture as the model takes it.

    Attributes:
        planes: uint8 (3, h, w) RGB; h and w are multiples of the model's stride.
        place: Size of the picture on that canvas; its ``left`` and ``top`` are those of a square one, and not used.
        left, top: Padding before the picture.
        height, width: Of the picture itself, in pixels.
    """

    planes: np.ndarray
    place: Letterbox
    left: int
    top: int
    height: int
    width: int


class Finder:
    """A detector that is only asked where things are.

    Args:
        weights: A checkpoint of Ultralytics: a detector, or a segmentation or pose model, whose boxes are used.
        classes: Names of the classes to look for; ``None`` is every class of the model.
        imgsz: Pixels of the longer side of what the model sees; a multiple of its stride.
        conf: Least confidence. A box counts for every class whose score is at least that, not only for its best one.
        device: Where to compute; half precision on a GPU.

    Attributes:
        names: Class number to name, of those that are looked for.

    Raises:
        ModelError: The weights cannot be opened, or their boxes are rotated.
        ConfigError: The model knows no such class, or cannot take that image size.
    """

    def __init__(
        self,
        weights: str | Path,
        classes: Sequence[str] | None = None,
        *,
        imgsz: int = 640,
        conf: float = 0.05,
        device: str | torch.device = "cpu",
    ) -> None:
        detector = open_checkpoint(Path(weights))
        _check(detector, weights)
        known = {int(number): str(name) for number, name in detector.names.items()}
        self.names = {n: name for n, name in known.items() if classes is None or name in classes}
        unknown = sorted(set(classes or ()) - set(known.values()))
        if unknown:
            raise ConfigError(f"{weights} finds no class {', '.join(unknown)}: it knows {_some(list(known.values()))}")
        self.stride = int(max(detector.stride))
        if imgsz < self.stride or imgsz % self.stride:
            raise ConfigError(f"imgsz={imgsz} is not a multiple of {self.stride}, which {weights} needs")
        self.imgsz, self.conf = imgsz, conf
        self.device = torch.device(device)
        self._classes = None if classes is None else list(self.names)
        self._count = len(known)
        self._half = self.device.type == "cuda"
        detector = detector.to(self.device).eval()
        if not detector.is_fused():
            detector = detector.fuse(verbose=False)
        self._detector = detector.half() if self._half else detector
        self._end2end = bool(getattr(detector, "end2end", False))

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Scale uint8 BGR pixels (height, width, 3) to the model's size and pad them with grey, as Ultralytics does."""
        height, width = image.shape[:2]
        place = Letterbox.fit(height, width, self.imgsz)
        rows, columns = (-(-side // self.stride) * self.stride for side in (place.height, place.width))
        left, top = (columns - place.width) // 2, (rows - place.height) // 2
        canvas = np.full((rows, columns, 3), PADDING, np.uint8)
        canvas[top : top + place.height, left : left + place.width] = place.resize(image)
        return PreparedImage(to_rgb_planes(canvas), place, left, top, height, width)

    def batch(self, pictures: Sequence[PreparedImage]) -> Tensor:
        """Return pictures of one canvas size as the model's input, (n, 3, h, w) in [0, 1]."""
        planes = torch.from_numpy(np.stack([picture.planes for picture in pictures])).to(self.device)
        return (planes.half() if self._half else planes.float()) / 255

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> list[Tensor]:
        """Return (k, 6) for each picture of a batch: x1, y1, x2, y2 in canvas pixels, confidence, class number."""
        output: Any = self._detector(batch)
        while not isinstance(output, Tensor):  # masks, key points and raw maps come behind the boxes
            output = output[0]
        if not bool(torch.isfinite(output).all()):  # no box would pass the threshold, and nothing would be redacted
            raise ModelError("the model answers a picture with values that are not numbers: try another device")
        return non_max_suppression(
            output,
            self.conf,
            _OVERLAP,
            classes=self._classes,
            multi_label=True,
            max_det=_MOST,
            nc=self._count,
            end2end=self._end2end,
            max_time_img=float("inf"),  # a slow machine must not lose boxes
        )

    def find(self, pictures: Sequence[PreparedImage]) -> list[np.ndarray]:
        """Find objects in pictures of one canvas size.

        Returns:
            For each picture float32 (k, 6): x1, y1, x2, y2 in its own pixels, cut at its edges, confidence, class
            number; most confident first.
        """
        found = []
        for picture, rows in zip(pictures, self.forward(self.batch(pictures)), strict=True):
            boxes = rows[:, :6].float().cpu().numpy()
            shift = np.array([picture.left, picture.top] * 2, np.float32)
            scale = np.array([picture.width / picture.place.width, picture.height / picture.place.height] * 2)
            edge = np.array([picture.width, picture.height] * 2, np.float32)
            boxes[:, :4] = np.clip((boxes[:, :4] - shift) * scale, 0, edge)
            found.append(boxes[np.argsort(-boxes[:, 4], kind="stable")])
        return found


def _check(detector: DetectionModel, weights: str | Path) -> None:
    head = detector.model[-1]
    if not isinstance(head, Detect) or isinstance(head, OBB):
        raise ModelError(
            f"{str(weights)!r} has the head {type(head).__name__}, and upright boxes are needed: use weights for "
            "detection, segmentation or pose"
        )
    for name, tensor in detector.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):  # it would find nothing, and nothing would be redacted
            raise ModelError(f"{str(weights)!r}: {name} holds values that are not finite numbers")


def _some(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
