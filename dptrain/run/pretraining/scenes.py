"""Scenes that a module draws: public by construction, if the module opens no private image."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from ...errors import ConfigError, DataError
from ...support.files import file_hash, write_text

Scene = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Generator:
    """A module that draws scenes.

    Attributes:
        module: Its dotted name.
        names: Class number to class name.
        scene: ``scene(rng)`` -> RGB pixels, uint8 (h, w, 3), and boxes, (m, 5): class, then centre x, centre y, width
            and height in parts of the picture. It takes chance from ``rng`` only.
        sha256: Of the module's own file.
    """

    module: str
    names: dict[int, str]
    scene: Callable[[np.random.Generator], Scene]
    sha256: str


def load_generator(name: str) -> Generator:
    """Import a generator by its dotted name, also from the working directory.

    Raises:
        ConfigError: There is no such module, it fails, or it lacks what a generator needs.
    """
    here = str(Path.cwd())
    if here not in sys.path:  # a console script's path begins with the folder of the script
        sys.path.append(here)
    try:
        module: Any = importlib.import_module(name)
    except Exception as error:  # whatever the module raises
        raise ConfigError(
            f"scenes.generator={name} cannot be imported ({type(error).__name__}: {error}): give a dotted name that "
            "Python finds from here, such as experiments.cells.scenes"
        ) from error
    names, scene, file = getattr(module, "NAMES", None), getattr(module, "scene", None), getattr(module, "__file__", "")
    if not isinstance(names, Mapping) or sorted(names) != list(range(len(names))) or not callable(scene):
        raise ConfigError(
            f"scenes.generator={name} is not a generator: it needs NAMES, class names by the numbers 0, 1, ..., and "
            "scene(rng), which returns a picture and its boxes"
        )
    return Generator(name, {int(k): str(v) for k, v in names.items()}, scene, file_hash(Path(file)))


def write_scenes(
    generator: Generator, root: Path, counts: Mapping[str, int], seed: int, progress: Callable[[], None] = lambda: None
) -> Path:
    """Draw scenes into ``root`` in Ultralytics' layout; scene i of a split depends on its number and the seed alone.

    Args:
        generator: What draws.
        root: Made if it is not there.
        counts: Scenes by split.
        seed: Of all of them.
        progress: Called after every scene.

    Returns:
        Their ``data.yaml``, which is written last.

    Raises:
        DataError: A scene is not what a generator returns.
    """

    def drawn(number: int, count: int) -> Iterable[Scene]:
        for i in range(count):
            yield _checked(generator, i, generator.scene(np.random.default_rng([seed, number, i])))
            progress()

    for number, (split, count) in enumerate(counts.items()):
        write_split(root, split, drawn(number, count))
    return write_yaml(root, generator.names, f"scenes drawn by {generator.module}, seed {seed}; public")


def _checked(generator: Generator, number: int, scene: Any) -> Scene:
    try:
        image, boxes = np.asarray(scene[0]), np.asarray(scene[1], dtype=float).reshape(-1, 5)
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(f"{generator.module}: scene {number} is not a picture and its boxes ({error})") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"{generator.module}: scene {number} is {image.dtype} {image.shape}, not uint8 (h, w, 3)")
    known = np.isin(boxes[:, 0], list(generator.names))
    inside = (boxes[:, 1:] >= 0).all() and (boxes[:, 1:] <= 1).all()
    if not known.all() or not inside:
        raise DataError(f"{generator.module}: scene {number} has a box of an unknown class or outside the picture")
    return image, boxes


def write_split(root: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Write the scenes of a split under ``root``, as numbered PNG files and their labels."""
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for i, (image, boxes) in enumerate(scenes):
        if not cv2.imwrite(str(images / f"{i:04d}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise DataError(f"{images / f'{i:04d}.png'} cannot be written: is the disk full?")
        lines = [f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for c, x, y, w, h in boxes]
        (labels / f"{i:04d}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_yaml(root: Path, names: Mapping[int, str], what: str) -> Path:
    """Write the ``data.yaml`` of a set with the splits train and val; returns its path."""
    content = yaml.safe_dump({"train": "images/train", "val": "images/val", "names": dict(names)}, sort_keys=False)
    write_text(root / "data.yaml", f"# {what}\n{content}")
    return root / "data.yaml"
