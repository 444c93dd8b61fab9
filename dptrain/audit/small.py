"""A small network for white-box audits, with one layer of each kind that detectors are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .scenes import CLASSES, Scene


class SmallNet(nn.Module):
    """Plain, depthwise, pointwise and strided convolutions, group norm, linear layers, with 12,544 weights.

    It says of an image (n, 3, h, w) which classes are in it, as logits (n, classes).
    """

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, 16),
            nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            nn.Conv2d(16, 32, 1, bias=False),
            nn.GroupNorm(8, 32),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
            nn.SiLU(),
        )
        self.head = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


def class_losses(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the cross-entropy of every image's classes, shape (n,); entry i depends on image i only."""
    logits = module(batch["img"])
    target = torch.zeros_like(logits)
    target[batch["batch_idx"].long(), batch["cls"].view(-1).long()] = 1.0
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)


class SceneExamples:
    """Scenes in memory that a step loader serves."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes, self.imgsz = scenes, len(scenes[0][0])

    def __len__(self) -> int:
        return len(self.scenes)

    def sample(self, index: int, seed: int = 0) -> dict[str, Tensor]:
        """Return scene ``index``, see ``DetectionDataset.sample``."""
        picture, boxes = self.scenes[index]
        return {
            "img": torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))),
            "cls": torch.from_numpy(boxes[:, :1]),
            "bboxes": torch.from_numpy(boxes[:, 1:]),
        }
