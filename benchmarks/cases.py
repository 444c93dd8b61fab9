"""Which cases each row of the table measures: a few by default, all of them with ``--full``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

ROWS = ("gradients", "memory", "whole", "loader", "logical", "noise", "modules", "gpu")
SIZES = ("quick", "full", "tiny")  # tiny: only to see that everything runs

_FAMILY = ("yolo26n", "yolo11n", "yolov8n", "yolo26s")
_SCALES = tuple(f"yolo{version}{scale}" for version in ("26", "11") for scale in "nsmlx")


@dataclass(frozen=True)
class Case:
    """One process: what it measures, on what.

    Attributes:
        row: The row of the table.
        kind: What is measured, a key of ``benchmarks.worker.KINDS``.
        model: A detector without its .yaml, or a name from ``benchmarks.modules``.
        pixels: Side of the square images.
        images: Images of a batch; of the whole logical batch for ``logical`` and ``whole``.
        methods: What takes turns.
        repeats: How often, after one round that warms up.
        norm: ``group``, or ``frozen_bn``, which is the default from a checkpoint.
        precision: ``fp32``, or ``bf16`` by autocast.
        device: As torch names it.
        workers: Processes of the loader.
        physical: Images in memory at once, where a logical batch is measured.
    """

    row: str
    kind: str
    model: str = "yolo26n"
    pixels: int = 320
    images: int = 8
    methods: tuple[str, ...] = ("plain", "fused")
    repeats: int = 5
    norm: str = "group"
    precision: str = "fp32"
    device: str = "cpu"
    workers: int = 0
    physical: int = 8

    @property
    def name(self) -> str:
        """Say in a few words what the case is."""
        extra = [self.norm] if self.norm != "group" else []
        if self.device != "cpu":
            extra.append(self.precision)
        if self.kind in ("whole", "loader"):
            extra.append(f"{self.workers} workers")
        return " ".join([self.model, f"{self.images} x {self.pixels} px", *extra])

    def values(self) -> dict[str, Any]:
        """Return the case as JSON holds it."""
        return {**asdict(self), "methods": list(self.methods), "name": self.name}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Case:
        """Return the case of :meth:`values`."""
        own = {key: value for key, value in values.items() if key != "name"}
        return cls(**{**own, "methods": tuple(values["methods"])})


def cases(row: str, size: str, device: str = "cpu", repeats: int = 0) -> list[Case]:
    """Return the cases of a row; ``repeats``, if given, in the place of each case's own."""
    found = list(_MAKERS[row](size))
    if row == "gpu":
        found = [replace(case, device=device) for case in found]
    return [replace(case, repeats=repeats) for case in found] if repeats else found


def _gradients(size: str) -> Iterator[Case]:
    stock = ("plain", "fused", "ultralytics")
    everything = (*stock, "microbatch", "opacus")
    if size == "tiny":
        yield Case("gradients", "time", pixels=64, images=2, methods=everything, repeats=2)
        yield Case("gradients", "time", pixels=64, images=2, methods=("plain", "fused"), repeats=2, norm="frozen_bn")
        return
    if size == "quick":
        yield Case("gradients", "time", pixels=128, images=64, methods=(*stock, "opacus"))
        yield Case("gradients", "time", pixels=320, images=8, methods=everything)
        yield Case("gradients", "time", pixels=640, images=8, methods=stock, repeats=3)
        yield Case("gradients", "time", "yolo26s", 320, 8, stock, repeats=3)
        return
    for model in _FAMILY:
        for pixels, images in ((128, 64), (320, 8), (320, 32), (640, 8), (640, 32)):
            slow = images * pixels * pixels > 8 * 640 * 640 / 2
            methods = stock if slow else everything
            yield Case("gradients", "time", model, pixels, images, methods, repeats=5 if slow else 7)
    for images in (8, 32):
        yield Case("gradients", "time", pixels=320, images=images, methods=("plain", "fused"), norm="frozen_bn")


def _memory(size: str) -> Iterator[Case]:
    # Twice the images shows what grows with them: a term in images x parameters would stand out on the large models.
    models = {"tiny": ("yolo26n",), "quick": ("yolo26n", "yolo11x"), "full": _SCALES}[size]
    batches = ((64, 2), (64, 4)) if size == "tiny" else ((320, 2), (320, 4))
    for model in models:
        for pixels, images in batches:
            yield Case("memory", "memory", model, pixels, images)
    if size == "full":
        for pixels, images in ((128, 64), (320, 32), (640, 8)):
            yield Case("memory", "memory", "yolo26n", pixels, images, ("plain", "fused", "opacus"))
            yield Case("memory", "memory", "yolo26s", pixels, images)


def _whole(size: str) -> Iterator[Case]:
    if size == "tiny":
        yield Case("whole", "whole", pixels=64, images=4, repeats=2, workers=1, physical=2)
        return
    images, repeats = (16, 2) if size == "quick" else (32, 5)
    yield Case("whole", "whole", pixels=640, images=images, repeats=repeats, workers=2)
    if size == "full":
        yield Case("whole", "whole", pixels=640, images=images, repeats=3, workers=0)
        yield Case("whole", "whole", "yolo26s", 640, images, repeats=2, workers=2)


def _loader(size: str) -> Iterator[Case]:
    pixels, images = (64, 8) if size == "tiny" else (640, 64)
    yield Case("loader", "loader", pixels=pixels, images=images, repeats=2 if size == "tiny" else 5, workers=2)


def _logical(size: str) -> Iterator[Case]:
    batches = (8, 16, 32, 64) if size == "tiny" else (512, 1024, 2048, 4096)
    physical = 4 if size == "tiny" else 64
    repeats = {"tiny": 2, "quick": 2, "full": 5}[size]
    yield Case("logical", "logical", pixels=64, images=batches[-1], repeats=repeats, physical=physical)
    for images in (physical, batches[-1]):
        yield Case("logical", "logical memory", pixels=64, images=images, physical=physical)


def _noise(size: str) -> Iterator[Case]:
    if size == "tiny":
        yield Case("noise", "noise", pixels=64, images=2, repeats=2)
        return
    yield Case("noise", "noise")
    if size == "full":
        yield Case("noise", "noise", "yolo11x", repeats=3)


def _modules(size: str) -> Iterator[Case]:
    methods = ("plain", "fused", "opacus", "microbatch")
    pixels, images, repeats = (16, 2, 2) if size == "tiny" else (64, 64, 7)
    for model in ("cnn", "vit"):
        yield Case("modules", "modules time", model, pixels, images, methods, repeats)
        yield Case("modules", "modules memory", model, pixels, images, ("plain", "fused", "opacus"))


def _gpu(size: str) -> Iterator[Case]:
    models = ("yolo26n", "yolo26s", "yolo26m") if size == "full" else ("yolo26n",)
    batches = {"tiny": (2,), "quick": (16,), "full": (16, 32, 64)}[size]
    pixels = 64 if size == "tiny" else 640
    for model in models:
        for precision in ("fp32", "bf16"):
            for images in batches:
                yield Case("gpu", "time", model, pixels, images, repeats=10, precision=precision)
                yield Case("gpu", "memory", model, pixels, images, precision=precision)


_MAKERS = {
    "gradients": _gradients,
    "memory": _memory,
    "whole": _whole,
    "loader": _loader,
    "logical": _logical,
    "noise": _noise,
    "modules": _modules,
    "gpu": _gpu,
}
