"""Where the real photos are, and the COCO checkpoints that people start from. Nothing is downloaded.

    python -m experiments.photos FOLDER        # FOLDER: a clone of github.com/datitran/raccoon_dataset

writes the raccoons in Ultralytics layout into FOLDER/yolo. The other sets are read as they are published.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

from dptrain.support.files import file_hash

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"  # of somebody who has them beside the repository
BCCD_IMAGES = 205  # to train on; published with the sets, so public
RACCOON_IMAGES = 158
DENTAL_IMAGES = 1000  # of 1,016
DENTAL_ORIGINALS = 520

_HOW = {
    "bccd": "get github.com/Shenggan/BCCD_Dataset (MIT licence) and write its boxes as YOLO text with a data.yaml",
    "dental": "get Roboflow's dental-uispo, version 2 (CC BY 4.0), each image named by its original as r0001_0.jpg",
    "raccoons": "clone github.com/datitran/raccoon_dataset (MIT licence) and run python -m experiments.photos FOLDER",
}


class Missing(Exception):
    """What an experiment needs is not there; the message says in one line how to get it."""


def there(path: Path, how: str) -> Path:
    """The path, if there is such a file; :class:`Missing` says how to get it."""
    if not path.is_file():
        raise Missing(f"{path.name} is not there: {how}")
    return path


def photos(name: str) -> Path:
    """The data.yaml of ``bccd``, ``dental`` or ``raccoons``: that of $DPTRAIN_BCCD, ..., or ../shared/data's."""
    variable = f"DPTRAIN_{name.upper()}"
    path = Path(os.environ.get(variable, SHARED / "data" / name / "data.yaml"))
    return there(path, f"{_HOW[name]}; then name its data.yaml in ${variable}")


def coco_weights(name: str) -> Path:
    """A released checkpoint, trained on COCO, in $DPTRAIN_WEIGHTS or ../shared/weights."""
    folder = Path(os.environ.get("DPTRAIN_WEIGHTS", SHARED / "weights"))
    return there(folder / name, f"download {name} from Ultralytics' release and name its folder in $DPTRAIN_WEIGHTS")


def write_raccoons(clone: Path) -> Path:
    """Write the raccoon set as YOLO text; every fifth photo, by the number in its name, is for validation."""
    root = clone / "yolo"
    shutil.rmtree(root, ignore_errors=True)
    annotations = (clone / "annotations").glob("*.xml")
    seen: set[str] = set()  # the set has five photos twice, four of them once in each split
    numbered = [(int(found[0]), file) for file in annotations if (found := re.search(r"\d+", file.stem))]
    for number, file in sorted(numbered, key=lambda n: (n[0] % 5 == 0, n[0])):  # a copy stays in train
        image = clone / "images" / f"{file.stem}.jpg"
        if not image.is_file() or (digest := file_hash(image)) in seen:
            continue
        seen.add(digest)
        tree = ElementTree.parse(file)
        split = "train" if number % 5 else "val"
        width, height = (float(tree.findtext(f"size/{side}", "0")) for side in ("width", "height"))
        lines = []
        for box in tree.iter("bndbox"):
            x1, y1, x2, y2 = (float(box.findtext(side, "0")) for side in ("xmin", "ymin", "xmax", "ymax"))
            sides = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append("0 " + " ".join(f"{side:.6f}" for side in sides))
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, root / "images" / split / image.name)
        (root / "labels" / split / f"{file.stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = root / "data.yaml"
    data.write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: raccoon}\n", encoding="utf-8")
    return data


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("photos: name the folder of the clone of github.com/datitran/raccoon_dataset")
    print(write_raccoons(Path(sys.argv[1])))
