"""DICOM pixels to 8-bit training images, and a screen for writing burned into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets import MOST_PIXELS
from .cleaned import Damaged

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def training_images(dataset: Dataset, window: tuple[float, float] | None = None) -> list[np.ndarray]:
    """Return every frame as people see it: rescaled, windowed, MONOCHROME1 inverted, colours as RGB.

    Args:
        dataset: A DICOM image.
        window: Centre and width in the units of the modality (Hounsfield for CT); ``None`` takes the first window or
            VOI table of the file, and where there is none the range of the frame's own pixels without padding.

    Returns:
        uint8 arrays of shape (height, width) or (height, width, 3), RGB.

    Raises:
        Damaged: The pixels cannot be decoded.
    """
    from pydicom.pixels import pixel_array

    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if dataset.Rows * dataset.Columns * frames > MOST_PIXELS:
        raise Damaged(f"it claims more than {MOST_PIXELS:,} pixels")
    try:
        pixels = pixel_array(dataset)
    except Exception as error:  # a missing plugin, damaged data
        syntax = dataset.file_meta.TransferSyntaxUID.name
        reason = " ".join(str(error).split())[:160]
        raise Damaged(
            f"its pixels ({syntax}) cannot be decoded ({reason}); pip install 'dptrain[dicom]' brings decoders"
        ) from None
    stack = pixels if frames > 1 else pixels[None]
    if dataset.SamplesPerPixel > 1:
        top = 2.0**dataset.BitsStored - 1
        return [np.round(frame * (255 / top)).astype(np.uint8) if top != 255 else frame for frame in stack]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        coloured = [apply_color_lut(frame, dataset) for frame in stack]
        return [(frame >> 8).astype(np.uint8) if frame.dtype == np.uint16 else frame for frame in coloured]
    return [_grey(frame, dataset, window, number) for number, frame in enumerate(stack)]


def _grey(frame: np.ndarray, dataset: Any, window: tuple[float, float] | None, number: int) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    padding = dataset.get("PixelPaddingValue")
    real = np.ones(frame.shape, bool) if padding is None else frame != padding
    shared = _groups(dataset, number)
    values = np.asarray(apply_modality_lut(frame, shared), np.float64)
    if window is None and ("WindowCenter" in shared or "VOILUTSequence" in shared):
        if "VOILUTSequence" in shared:
            table = np.asarray(apply_voi_lut(apply_modality_lut(frame, shared), shared), np.float64)
            low, high = 0.0, 2.0 ** _entry_bits(shared) - 1
            shown = (table - low) / (high - low)
        else:
            shown = _windowed(values, _first(shared.WindowCenter), _first(shared.WindowWidth), shared)
    elif window is not None:
        shown = _windowed(values, *window, shared)
    else:
        inside = values[real] if real.any() else values
        low, high = float(inside.min()), float(inside.max())
        shown = (values - low) / (high - low or 1.0)
    shown = np.clip(shown, 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.round(np.where(real, shown, 0) * 255).astype(np.uint8)


def _windowed(values: np.ndarray, centre: float, width: float, dataset: Any) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and .3: linear, exact linear or sigmoid, in [0, 1]."""
    function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / max(width, 1e-9), -700, 700)))
    if function == "LINEAR_EXACT":
        return (values - centre) / max(width, 1e-9) + 0.5
    return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5


def _groups(dataset: Any, number: int) -> Any:
    """The dataset with rescaling and window of one frame, where an enhanced image keeps them frame by frame."""
    from pydicom.dataset import Dataset

    groups = [dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")]
    flat = Dataset()
    flat.update(dataset)
    for place, sequence in enumerate(groups):
        if not sequence:
            continue
        group = sequence[0 if place == 0 else min(number, len(sequence) - 1)]
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if group.get(name):
                flat.update(group[name].value[0])
    return flat


def _entry_bits(dataset: Any) -> int:
    return int(dataset.VOILUTSequence[0].LUTDescriptor[2])


def _first(value: Any) -> float:
    return float(value[0]) if isinstance(value, Sequence) and not isinstance(value, str) else float(value)


_BRIGHT = 200  # of 255: thin strokes are smoothed, and small letters have no pixel at full brightness


def writing(image: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Find lines of what looks like burned-in text: many small bright marks of one height in a row.

    It finds what consoles print over pictures. It does not find handwriting, grey writing, or writing on white, and it
    can take a ruler for text: a hint, not a proof either way.

    Returns:
        A box (x1, y1, x2, y2) in pixels for each line.
    """
    import cv2

    grey = image if image.ndim == 2 else image.max(axis=2)
    bright = (grey >= _BRIGHT).astype(np.uint8)
    if not 0 < bright.mean() < 0.25:
        return []
    _, _, boxes, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    marks = [
        (x, y, x + w, y + h)
        for x, y, w, h, area in boxes[1:].tolist()
        if 5 <= h <= 60 and 1 <= w <= 1.6 * h and area >= 0.12 * w * h and area < 0.95 * max(w, 3) * h
    ]
    lines: list[list[tuple[int, int, int, int]]] = []
    for mark in sorted(marks):
        height = mark[3] - mark[1]
        for line in lines:
            last = line[-1]
            same_size = 0.6 <= height / (last[3] - last[1]) <= 1.7
            if same_size and abs(mark[3] - last[3]) <= 0.35 * height and 0 <= mark[0] - last[2] <= 1.5 * height:
                line.append(mark)
                break
        else:
            lines.append([mark])
    found = []
    for line in lines:
        if len(line) >= 4:
            left, top, right, bottom = zip(*line, strict=True)
            found.append((min(left), min(top), max(right), max(bottom)))
    return found
