"""Fine-tuning without privacy: what private training is compared with."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dptrain.detection import PerImageLoss, load_model
from dptrain.detection.augment import Augmentation
from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.evaluate import Metrics, evaluate
from dptrain.detection.loader import collate, to_device
from dptrain.detection.loss import one2many_weight
from dptrain.training.trainer import learning_rate

EMA = 0.99


@dataclass(frozen=True)
class PlainRecipe:
    """How to fine-tune without privacy.

    Attributes:
        steps: Steps of ``batch`` images each.
        batch: Images a step, drawn without putting back until all were seen.
        rates: Peak learning rates that are tried; the best on val is used, which flatters this side.
        augment: Settings of :class:`dptrain.detection.augment.Augmentation`.
        head: Branches of the head, as ``dptrain.train`` has them.
    """

    steps: int
    batch: int = 64
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    augment: Mapping[str, float] = field(default_factory=dict)
    head: str = "auto"


def fine_tune(
    start: Path, data: Path, recipe: PlainRecipe, lr: float, *, imgsz: int, seed: int = 0, most_at_once: int = 64
) -> tuple[Metrics, float]:
    """Train every layer with AdamW, a warm-up and a cosine; the gradient of a step is clipped at norm 10.

    The network, the loss of an image, the images and the averaging of iterates are those of the private run. What
    privacy forbids or costs is not here: draws without putting back, small batches, all layers, no noise.

    Returns:
        Metrics on val of the averaged model, and the seconds that training took.
    """
    parsed = load_data(data)
    train = DetectionDataset(parsed, "train", imgsz, Augmentation(**recipe.augment), verify=False)
    val = DetectionDataset(parsed, "val", imgsz)
    model = load_model(start, parsed.num_classes, names=parsed.names, head=recipe.head)
    average = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=5e-4)
    rng = np.random.default_rng(seed)
    queue = np.empty(0, np.int64)
    started = time.perf_counter()
    for step in range(recipe.steps):
        while len(queue) < recipe.batch:
            queue = np.concatenate([queue, rng.permutation(len(train))])
        drawn, queue = queue[: recipe.batch], queue[recipe.batch :]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate("cosine", lr, step, recipe.steps, warmup_steps=recipe.steps // 20)
        loss_function = PerImageLoss(one2many_weight(step / recipe.steps))
        optimizer.zero_grad()
        for part in np.array_split(drawn, -(-len(drawn) // most_at_once)):
            batch = to_device(collate([train.sample(int(i), seed + step) for i in part]), "cpu")
            (loss_function(model, batch).sum() / recipe.batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
    seconds = time.perf_counter() - started
    return evaluate(average, val), seconds
