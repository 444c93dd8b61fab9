"""The sets of real photos, from the checkpoints that people have: COCO's, which know none of the classes.

The recipes are what ``dptrain train`` chooses by itself, with steps and batches of 8 to 25 minutes of one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmark.a_set import BenchmarkSet
from experiments.photos import BCCD_IMAGES, DENTAL_IMAGES, DENTAL_ORIGINALS, RACCOON_IMAGES, coco_weights, photos
from experiments.plain import PlainRecipe

_STARTS = {"26n": "yolo26n.pt", "v8n": "yolov8n.pt"}
_RATES = (1e-4, 2e-4, 5e-4, 1e-3)


def _found(root: Path, name: str) -> Path:
    return photos(name)


def _default(batch: int, **privacy: Any) -> dict[str, Any]:
    """What a run of the default trains with, its steps and batch fixed so that every machine does the same."""
    return {
        "steps": 80, "head": "one_to_many", "trainable": "neck_and_head", "physical_batch_size": "auto",
        "privacy": {"expected_batch_size": batch, **(privacy or {"same_picture": "one_unit"})},
    }  # fmt: skip


def _sets() -> Iterator[BenchmarkSet]:
    for start, weights in _STARTS.items():
        whose = f"from COCO's {weights.removesuffix('.pt')}"
        dental = BenchmarkSet(
            name=f"dental_{start}",
            what=f"1,016 dental radiographs, 4 classes, {whose}",
            units=DENTAL_IMAGES,
            imgsz=256,
            start=partial(coco_weights, weights),
            prepare=partial(_found, name="dental"),
            public=None,
            private=_default(270),
            plain=PlainRecipe(steps=635, batch=16, rates=_RATES, augment={"fliplr": 0.5}),
            tuned="the default",
            delta=DENTAL_IMAGES**-1.1,
            stock=10,
        )
        yield dental
        yield replace(
            dental,
            name=f"dental_originals_{start}",
            what=f"the same radiographs by their {DENTAL_ORIGINALS} originals, {whose}; the unit is an original",
            units=DENTAL_ORIGINALS,
            private=_default(140, unit="group", images_per_group=2, groups={"regex": r"^(r\d+)_"}),
            delta=DENTAL_ORIGINALS**-1.1,
        )
        yield replace(
            dental,
            name=f"bccd_{start}",
            what=f"205 photos of blood smears (BCCD), 3 classes, {whose}",
            units=BCCD_IMAGES,
            prepare=partial(_found, name="bccd"),
            private=_default(140),
            plain=PlainRecipe(steps=257, batch=16, rates=_RATES, augment={"fliplr": 0.5}),
            delta=BCCD_IMAGES**-1.1,
            stock=20,
        )
        yield replace(
            dental,
            name=f"raccoons_{start}",
            what=f"158 photos of raccoons, 1 class, {whose}",
            units=RACCOON_IMAGES,
            prepare=partial(_found, name="raccoons"),
            private=_default(66),
            plain=PlainRecipe(steps=198, batch=16, rates=_RATES, augment={"fliplr": 0.5}),
            delta=RACCOON_IMAGES**-1.1,
            stock=20,
        )


COCO = {found.name: found for found in _sets()}
