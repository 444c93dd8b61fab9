"""Two networks that are no detectors and need no torchvision: a plain CNN and a small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


class Cnn(nn.Module):
    """Convolutions, group norm and a linear head; takes images of any size."""

    def __init__(self, pixels: int = 64, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for factor in (1, 2, 4):
            wide = factor * width
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.GroupNorm(8, wide), nn.ReLU()]
            layers += [nn.Conv2d(wide, wide, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, wide), nn.ReLU()]
            channels = wide
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, CLASSES)."""
        return self.head(self.body(images).mean((2, 3)))


class Block(nn.Module):
    """A transformer block with norms first."""

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches, embedded positions, transformer blocks and a linear head."""

    def __init__(self, pixels: int = 64, width: int = 128, depth: int = 4, heads: int = 4, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Embedding((pixels // patch) ** 2, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, CLASSES)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        # A row of positions for every example: a layer that sees one row for all has no gradient of each.
        places = torch.arange(tokens.shape[1], device=images.device).expand(len(images), -1)
        return self.head(self.norm(self.blocks(tokens + self.positions(places))).mean(1))


MODULES = {"cnn": Cnn, "vit": Vit}


def losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross entropy of every example, shape (n,)."""
    images, labels = batch
    return F.cross_entropy(module(images), labels, reduction="none")


def random_batch(examples: int, pixels: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return random images (n, 3, pixels, pixels) and labels (n,)."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn((examples, 3, pixels, pixels), generator=random)
    return images.to(device), torch.randint(0, CLASSES, (examples,), generator=random).to(device)
