"""The sets whose start knows the classes: where images and start come from, and how each is trained on.

Every private recipe says where its numbers come from: from public scenes (``python -m experiments.tuning``), or from
the private set itself, which a real user would have to pay for.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from dptrain.run.pretraining.scenes import load_generator, write_scenes
from dptrain.support.files import file_hash
from experiments.benchmark.a_set import BenchmarkSet, once
from experiments.digits import public_start as digits_start
from experiments.digits import scenes as digits
from experiments.fashion import kinds
from experiments.fashion import photos as fashion
from experiments.painting import SIZE
from experiments.photos import BCCD_IMAGES, Missing, photos, there
from experiments.plain import PlainRecipe
from experiments.starts import PHOTOS, start_of

ABD_WHEEL = "ABD_model-0.3.0-py3-none-any.whl"
ABD_SHA256 = "c3335b0cc6c504c4ac74b62bf2bc9aa06ecf402fa71184ec88f40a1f37979859"  # of the ABD_model/ABD.pt in it


def _drawn(generator: str) -> Callable[[Path], Path]:
    """Write scenes of a generator; the start has seen others of them."""
    counts = {"train": 64, "val": 8}

    def write(root: Path) -> Path:
        made_by = load_generator(generator)
        key = f"{generator} {made_by.sha256} {counts}"
        return once(root, key, lambda place: write_scenes(made_by, place, counts, seed=1))

    return write


def fashion_photos() -> Path:
    """The folder of Fashion-MNIST's files; may raise :class:`Missing`."""
    folder = fashion.find_photos()
    if folder is None:
        raise Missing(fashion.MISSING)
    return folder


def _fashion(root: Path) -> Path:
    folder = fashion_photos()
    return once(root, f"fashion {fashion.TRAIN_SCENES}", lambda place: fashion.write_private(place, folder))


def _kinds(root: Path) -> Path:
    folder = fashion_photos()

    def write(place: Path) -> Path:
        fashion.write_private(place, folder)
        return kinds.relabel(place, "kinds of Fashion-MNIST's product photos; private in the benchmark")

    return once(root, f"five kinds {fashion.TRAIN_SCENES}", write)


def _published(root: Path, name: str) -> Path:
    """Write a few scenes of the public photos that a start has seen."""
    folder, count, scenes = fashion_photos(), PHOTOS[name], (64, 8)
    key = f"{count} public photos {scenes}"
    return once(root, key, lambda place: fashion.write_published(place, folder, count, *scenes))


def _cameras(root: Path) -> Path:
    """The fashion scenes, the first 19,200 of them shared out to 1,200 made-up cameras of 16, by their file names.

    The val scenes get cameras of their own: a group in both splits would have its metrics released without noise.
    """
    folder = fashion_photos()

    def write(place: Path) -> Path:
        data = fashion.write_private(place, folder, CAMERAS * SCENES_OF_A_CAMERA)
        for split, first in (("train", 0), ("val", CAMERAS)):
            for kind in ("images", "labels"):
                for file in list((place / kind / split).iterdir()):
                    camera, scene = divmod(int(file.stem), SCENES_OF_A_CAMERA)
                    file.rename(file.with_name(f"cam{first + camera:04d}_{scene:02d}{file.suffix}"))
        return data

    return once(root, f"{CAMERAS} cameras of {SCENES_OF_A_CAMERA}", write)


def _bccd(root: Path) -> Path:
    return photos("bccd")


def _abd() -> Path:
    """The detector in the PyPI wheel abd-model 0.3.0, a YOLOv8n that knows molecules; none of its code is run."""
    folder = Path("runs/abd")
    weights = folder / "ABD.pt"
    if not weights.is_file():
        wheel = there(
            folder / ABD_WHEEL,
            f"pip download --no-deps abd-model==0.3.0 -d {folder} (a third party's public checkpoint)",
        )
        with zipfile.ZipFile(wheel) as archive, archive.open("ABD_model/ABD.pt") as source:
            weights.write_bytes(source.read())
    if file_hash(weights) != ABD_SHA256:
        raise Missing(f"{weights} is another file than abd-model 0.3.0 holds: delete it and download the wheel again")
    return weights


def _start(name: str) -> Callable[[], Path]:
    return lambda: there(start_of(name), f"python -m experiments.starts {name}")


CAMERAS, SCENES_OF_A_CAMERA = 1200, 16
_FLIPS = {"fliplr": 0.5}

_FASHION = BenchmarkSet(
    name="fashion",
    what="20,000 scenes of product photos (Fashion-MNIST), 10 classes",
    units=fashion.TRAIN_SCENES,
    imgsz=96,  # so that all runs together take hours and not days
    start=_start("fashion"),
    prepare=_fashion,
    public=_drawn("experiments.fashion.scenes"),
    private={
        "steps": 50, "trainable": "all", "ema": {"decay": 0.9},
        "optimizer": {"name": "adam", "lr": 2e-3}, "schedule": {"name": "constant"},
        "privacy": {"clip_norm": 1.0, "clipping": "scaled", "expected_batch_size": 1024},
    },
    plain=PlainRecipe(steps=800, rates=(1e-3, 2e-3, 4e-3, 8e-3)),  # as many images as the private run takes
    tuned="layers, rate, batch tuned on public scenes (results/tuning_fashion.json), again after private runs",
)  # fmt: skip


# From a start that knows its classes well, neck and head are enough, and their steps cost a third.
_FASHION_400 = replace(
    _FASHION,
    name="fashion_400",
    what="20,000 scenes of product photos, from drawn garments and 400 public photos",
    start=_start("fashion_400"),
    public=partial(_published, name="fashion_400"),
    private={
        **_FASHION.private,
        "steps": 100, "trainable": "neck_and_head", "head": "one_to_many", "physical_batch_size": 256,
    },
    tuned="layers, steps, rate, batch tuned on public scenes from this start (results/tuning_fashion.json)",
    # As many images as the private run takes.
    plain=replace(_FASHION.plain, steps=1600, rates=(2e-3, 4e-3, 8e-3), head="one_to_many"),
)  # fmt: skip

_FASHION_1600 = replace(
    _FASHION_400,
    name="fashion_1600",
    what="20,000 scenes of product photos, from drawn garments and 1,600 public photos",
    start=_start("fashion_1600"),
    public=partial(_published, name="fashion_1600"),
    tuned="the recipe of the set fashion_400, untried",
)

_FASHION_KINDS = replace(
    _FASHION_400,
    name="fashion_kinds",
    what="20,000 scenes of product photos, 5 kinds, from drawn garments",
    start=_start("fashion_kinds"),
    prepare=_kinds,
    public=_drawn("experiments.fashion.kinds"),
    tuned="the recipe of the set fashion_400, untried",
)

# Every photo in every step: of all batches this leaves the least noise on a step's mean gradient.
_CELLS = {
    "steps": 30, "trainable": "all", "ema": {"decay": 0.9}, "augment": {**_FLIPS, "flipud": 0.5},
    "optimizer": {"name": "adam", "lr": 1e-3}, "schedule": {"name": "constant"},
    "privacy": {"clip_norm": 1.0, "clipping": "scaled", "expected_batch_size": 205},
}  # fmt: skip

PAINTED = {
    found.name: found
    for found in (
        _FASHION,
        _FASHION_400,
        _FASHION_1600,
        _FASHION_KINDS,
        BenchmarkSet(
            name="digits",
            what="700 scenes of handwritten digits, 10 classes",
            units=digits.TRAIN_SCENES,
            imgsz=SIZE,
            start=lambda: digits_start.WEIGHTS,
            prepare=lambda root: once(root, "digits 700", lambda place: digits.write_private(place)),
            public=lambda root: once(root, "drawn digits", lambda place: digits.write_public(place)),
            private={
                "steps": 40, "trainable": "all", "ema": {"decay": 0.9},
                "optimizer": {"name": "adam", "lr": 2e-3}, "schedule": {"name": "constant"},
                "privacy": {"clip_norm": 1.0, "clipping": "scaled", "expected_batch_size": 256},
            },
            plain=PlainRecipe(steps=200, rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
            tuned="tuned on these scenes (experiments/recipe.py, results/ablation.json), which no budget paid for",
        ),
        BenchmarkSet(
            name="cells",
            what="205 photos of blood smears (BCCD), 3 classes, from drawn smears",
            units=BCCD_IMAGES,
            imgsz=192,
            start=_start("cells"),
            prepare=_bccd,
            public=_drawn("experiments.cells.scenes"),
            private=_CELLS,
            plain=PlainRecipe(steps=200, batch=32, rates=(5e-4, 1e-3, 2e-3, 4e-3), augment={**_FLIPS, "flipud": 0.5}),
            tuned="layers, clip rule and rate tuned on public scenes (results/tuning_cells.json)",
            delta=BCCD_IMAGES**-1.1,
        ),
        BenchmarkSet(
            name="cells_abd",
            what="205 photos of blood smears (BCCD), 3 classes, from a third party's detector of molecules",
            units=BCCD_IMAGES,
            imgsz=192,
            start=_abd,
            prepare=_bccd,
            public=_drawn("experiments.cells.scenes"),
            private=_CELLS,
            plain=PlainRecipe(steps=200, batch=32, rates=(2e-4, 5e-4, 1e-3, 2e-3), augment={**_FLIPS, "flipud": 0.5}),
            tuned="the recipe of the set cells; rate tuned on public scenes (results/tuning_cells.json)",
            delta=BCCD_IMAGES**-1.1,
        ),
        BenchmarkSet(
            name="cameras",
            what="19,200 scenes of product photos in 1,200 made-up cameras of 16; the unit is a camera",
            units=CAMERAS,
            imgsz=96,
            start=_start("fashion"),
            prepare=_cameras,
            public=_drawn("experiments.fashion.scenes"),
            private={
                **_FASHION.private,
                "privacy": {
                    "clip_norm": 1.0, "clipping": "scaled", "expected_batch_size": 256, "unit": "group",
                    "images_per_group": 4,
                    "groups": {"regex": r"^(cam\d+)_"},
                },
            },
            plain=replace(_FASHION.plain, rates=(4e-3,)),  # the best on the same scenes as single images
            tuned="the recipe of the set fashion with fewer, larger steps, untried",
            epsilons=(2.0, 8.0),
        ),
    )
}  # fmt: skip
