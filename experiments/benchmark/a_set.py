"""What a set of the benchmark is, and how its images are written once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.plain import PlainRecipe
from experiments.recipe import scaled_by


@dataclass(frozen=True)
class BenchmarkSet:
    """One private set with its public start.

    Attributes:
        name: What ``--set`` calls it.
        what: For the table.
        units: Declared, public number of privacy units.
        imgsz: Side of the images in pixels.
        start: Finds the public start; may raise :class:`Missing`.
        prepare: Writes or finds the images under a folder, and returns their data.yaml; may raise :class:`Missing`.
        public: Writes a few scenes of the kind that made the start under a folder, and returns their data.yaml; what
            ``clipping=scaled`` measures the layers on. None: the val split.
        private: Keywords of ``dptrain.train``, but for what the benchmark itself sets.
        plain: How to fine-tune without privacy.
        tuned: Where the private recipe's numbers come from.
        epsilons: Of the curve.
        delta: Of every private run.
        stock: Epochs of stock Ultralytics with its own defaults, beside the plain runs; None for none.
    """

    name: str
    what: str
    units: int
    imgsz: int
    start: Callable[[], Path]
    prepare: Callable[[Path], Path]
    public: Callable[[Path], Path] | None
    private: Mapping[str, Any]
    plain: PlainRecipe
    tuned: str
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    delta: float = 1e-5
    stock: int | None = None

    def private_options(self, epsilon: float, public: Path | None = None) -> dict[str, Any]:
        """Keywords of ``dptrain.train`` at an epsilon, sections merged; ``public`` is what :attr:`public` returns."""
        options = {key: dict(value) if isinstance(value, Mapping) else value for key, value in self.private.items()}
        options["privacy"] |= {"epsilon": epsilon, "delta": self.delta, "dataset_size": self.units}
        return {"imgsz": self.imgsz, "physical_batch_size": 64, "workers": 0, **scaled_by(options, public)}


def once(root: Path, key: str, write: Callable[[Path], Path]) -> Path:
    """The data.yaml under ``root``, written if it is not there whole; ``key`` names its content."""
    mark = root / "complete.txt"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != key:
        shutil.rmtree(root, ignore_errors=True)  # what a stopped writing, or an older version, has left
        write(root)
        mark.write_text(key, encoding="utf-8")
    return root / "data.yaml"
