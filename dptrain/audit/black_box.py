"""The black-box audit: image canaries in a real training run, judged by the losses of the weights that it releases."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

from ..detection.data import DetectionDataset, load_data, to_device
from ..detection.loader import collate
from ..detection.loss import per_image_losses
from ..detection.model import load_model, save_weights
from ..privacy.plan import PrivacyPlan
from ..run.train import train
from ..support.files import write_text
from .scenes import CLASSES, draw_canary, draw_scene, write_dataset

_BATCH = 16


def attack_training(
    plan: PrivacyPlan,
    included: np.ndarray,
    *,
    model: str,
    data: Path | None,
    scenes: int,
    imgsz: int,
    device: str,
    engine: str,
    learning_rate: float,
    rng: np.random.Generator,
    seed: int | None = None,
) -> np.ndarray:
    """Train a detector by ``dptrain.train`` and return how much the release lowered every canary's loss, shape (m,).

    A canary is an image of pure noise with a box of a random class (``draw_canary``), written to a file beside the
    other images where it is in. Files, loader, loss, run and released weights are those of any user.

    Args:
        plan: By which it trains.
        included: Whether each canary is in, bool of shape (m,).
        model: A description or a public checkpoint.
        data: A public data.yaml; None for ``scenes`` synthetic scenes.
        imgsz, device, engine, learning_rate: Of the training (Adam).
        rng: Draws the scenes and the canaries, never whether one is in.
        seed: For tests only.
    """
    names = list(CLASSES) if data is None else list(load_data(data).names.values())
    with tempfile.TemporaryDirectory(prefix="dptrain-audit-") as temporary:
        folder = Path(temporary)
        canaries = [draw_canary(imgsz, len(names), rng) for _ in included]
        everything = write_dataset(folder / "canaries", canaries, names)
        chosen = [scene for scene, is_in in zip(canaries, included, strict=True) if is_in]
        if data is None:
            chosen = [draw_scene(imgsz, rng) for _ in range(scenes)] + chosen
        training = write_dataset(folder / "data", chosen, names)
        if data is not None:
            _add_images(training, load_data(data, text_for="dptrain audit").train)
        model_names = dict(enumerate(names))
        start = folder / "start.pt"
        save_weights(load_model(model, len(names), names=model_names), start)
        try:
            result = train(
                model=start,
                data=training,
                plan=plan,
                imgsz=imgsz,
                device=device,
                engine=engine,
                seed=seed,
                workers=0,
                validation="off",
                optimizer={"name": "adam", "lr": learning_rate},
                ema={"decay": 0.0},  # the last iterate knows the canaries best
                tracking={"enabled": False},
                budget={"url": None},  # public images only: there is no budget to charge
                output_dir=str(folder / "run"),
            )
        except SystemExit:  # a signal: what was trained so far is of no use
            raise KeyboardInterrupt from None
        examples = DetectionDataset(load_data(everything), "train", imgsz)
        before, after = (_losses(weights, len(names), examples, device) for weights in (start, result.weights))
    return before - after


def _add_images(file: Path, images: tuple[Path, ...]) -> None:
    """Put more images into the train split of a data.yaml; their labels stay where they are."""
    listed = file.parent / "public.txt"
    write_text(listed, "".join(f"{image.resolve()}\n" for image in images))
    described = yaml.safe_load(file.read_text())
    write_text(file, yaml.safe_dump({**described, "train": [str(listed), "images/train"]}, sort_keys=False))


@torch.no_grad()
def _losses(weights: Path, classes: int, examples: DetectionDataset, device: str) -> np.ndarray:
    model = load_model(weights, classes).to(device)
    found = []
    for first in range(0, len(examples), _BATCH):
        batch = collate([examples.sample(index) for index in range(first, min(first + _BATCH, len(examples)))])
        found.append(per_image_losses(model, to_device(batch, device)).double().cpu())
    return torch.cat(found).numpy()
