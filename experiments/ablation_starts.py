"""Starts that the ablation compares options from, all of drawn digits: one a norm, and one that lacks classes.

The starts of the norms differ in nothing else: the same drawn scenes, number of steps and rate. A norm is part of what
a start has learnt, so that putting another in its place would measure the loss of that and not the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dptrain.detection import load_model
from dptrain.detection.heads import set_classes, set_names
from dptrain.detection.model import save_weights
from dptrain.run.pretraining.run import pretrain
from dptrain.run.public_start import RECORD
from experiments.digits.public_start import WEIGHTS
from experiments.digits.scenes import SIZE

SCENES, EPOCHS = 3000, 5


def _of_norm(root: Path, norm: str) -> Path:
    """A yolo26n trained on drawn digits with that norm; what was cut goes on, what is there is used."""
    weights = root / "weights" / "last.pt"
    if weights.with_name(RECORD).is_file():  # written last
        return weights
    pretrain(
        model="yolo26n.yaml", norm=norm, output_dir=str(root), resume=root.exists(),
        imgsz=SIZE, epochs=EPOCHS, batch_size=32,
        scenes={"generator": "experiments.digits.scenes", "train": SCENES, "val": 150},
        optimizer={"name": "adamw", "lr": 2e-3}, augment={"mosaic": 0.0, "fliplr": 0.0, "scale": 0.2},
        public_data="digits drawn with fonts",
    )  # fmt: skip
    return weights


FIVE = ("zero", "one", "two", "three", "four")  # words: names that are numbers are taken for no names
KNOWN = {str(number): word for number, word in enumerate(FIVE)}  # of the scenes' classes, for similar_classes


def _of_five_classes(root: Path) -> Path:
    """The demo's start without its rows of the digits 5 to 9."""
    root.mkdir(parents=True, exist_ok=True)
    model = load_model(WEIGHTS, names=dict(enumerate([*FIVE, "five", "six", "seven", "eight", "nine"])))
    set_classes(model, len(FIVE), dict(enumerate(FIVE)))
    set_names(model, dict(enumerate(FIVE)))
    return save_weights(model, root / "five.pt")


STARTS: dict[str, Callable[[Path], Path]] = {
    "digits": lambda root: WEIGHTS,
    **{norm: partial(_of_norm, norm=norm) for norm in ("batch", "group")},
    "five_classes": _of_five_classes,
}
