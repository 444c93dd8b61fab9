"""The clipped gradient sum against the plain non-private step: time, and memory on a GPU, as ratios of one run.

``make bench``, or ``python -m benchmarks --models yolo26n.yaml --sizes 128 320 --batch 8 --device cuda``. The methods
take turns within every repeat, so that a machine that slows down slows all of them; the best repeat of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import dptrain
from dptrain.detection import load_model, per_image_losses

METHODS = ("fused", "microbatch", "opacus")


def random_batch(images: int, size: int, device: str, boxes: int = 5) -> dict[str, torch.Tensor]:
    """Random images, each with ``boxes`` random boxes of two classes."""
    random = torch.Generator().manual_seed(0)
    count = images * boxes
    batch = {
        "img": torch.rand((images, 3, size, size), generator=random),
        "batch_idx": torch.arange(images).repeat_interleave(boxes).float(),
        "cls": torch.randint(0, 2, (count, 1), generator=random).float(),
        "bboxes": torch.rand((count, 4), generator=random) * 0.3 + 0.35,
    }
    return {name: value.to(device) for name, value in batch.items()}


def measure(
    name: str, images: int, size: int, device: str, repeats: int, methods: list[str]
) -> dict[str, tuple[float, float]]:
    """Seconds and peak GPU megabytes of each method, ``plain`` first."""
    model = load_model(name, num_classes=2, norm="group").to(device).train()
    batch = random_batch(images, size, device)

    def plain() -> None:
        model.zero_grad()
        per_image_losses(model, batch).sum().backward()

    def private(method: str) -> Callable[[], object]:
        return lambda: dptrain.clipped_gradient_sum(model, per_image_losses, batch, clip_norm=1.0, method=method)

    steps: dict[str, Callable[[], object]] = {"plain": plain, **{method: private(method) for method in methods}}
    best = dict.fromkeys(steps, (float("inf"), 0.0))
    for repeat in range(repeats + 1):  # the first one warms up
        for label, step in steps.items():
            on_gpu = device.startswith("cuda")
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            if repeat and seconds < best[label][0]:
                best[label] = (seconds, torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0)
    return best


def main() -> None:
    """Print one row for each model, size and method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["yolo26n.yaml", "yolov8n.yaml"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 320])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(f"{options.batch} images, {options.device}, {torch.get_num_threads()} threads; plain = 1.0")
    print(f"{'model':<14} {'px':>5} {'method':<11} {'seconds':>8} {'time':>6} {'memory':>7}")
    for name in options.models:
        for size in options.sizes:
            rows = measure(name, options.batch, size, options.device, options.repeats, options.methods)
            plain_seconds, plain_memory = rows["plain"]
            for label, (seconds, memory) in rows.items():
                share = f"{memory / plain_memory:7.2f}" if plain_memory else f"{'-':>7}"
                print(
                    f"{name:<14} {size:>5} {label:<11} {seconds:8.3f} {seconds / plain_seconds:6.2f} {share}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
