"""What noise costs: how long a step waits for it, and what ``noise.exact=true`` adds.

    python -m benchmarks.noise

First the part of a step that is spent waiting for its noise, made when it is needed ("before") and in the background
while the gradients are computed ("ahead"), with one thread for torch and a core to spare. Then exact noise against
the usual noise, and a step's clipped sum against the usual one.

Ratios of times that were taken in turns, in one run: the median and the range of five repeats.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from dptrain import PrivacyPlan
from dptrain.detection.loss import PerImageLoss
from dptrain.detection.model import load_model
from dptrain.gradients.batches import in_pieces
from dptrain.privacy.exact import SENSITIVITY, discrete_gaussian, variance
from dptrain.privacy.streams import NoiseStream
from dptrain.training.clipped_sum import ClippedSum

REPEATS, COORDINATES = 5, 2_500_000
IMAGES, SIDE, BOXES = 8, 320, 5


def compare(name: str, exact: Callable[[], object], usual: Callable[[], object]) -> None:
    """Print how many times as long the exact way takes."""
    ratios, seconds = [], []
    for repeat in range(REPEATS + 1):
        times = []
        for way in (exact, usual):
            began = time.perf_counter()
            way()
            times.append(time.perf_counter() - began)
        if repeat:  # the first one prepares
            ratios.append(times[0] / times[1])
            seconds.append(times[0])
    print(
        f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times as long, "
        f"{statistics.median(seconds):.2f} s"
    )


def waiting(clipped: ClippedSum, batch: dict[str, torch.Tensor], exact: bool, threads: int) -> float:
    """Return the part of a step that is spent on its noise; with 0 threads it is made when it is needed."""
    mechanism, stream = clipped.mechanism, NoiseStream()
    own = [p for name, p in clipped.module.named_parameters() if name in mechanism.names]
    began = time.perf_counter()
    if threads:
        mechanism.begin_noise(own, stream, on_grid=exact, threads=threads)
    pieces = [clipped.on_grid(image) for image in in_pieces(batch, 1)] if exact else [clipped.over(batch)]
    total = {name: sum(piece[name] for piece in pieces) for name in pieces[0]}
    summed = time.perf_counter()
    mechanism.noise(total, stream)
    ended = time.perf_counter()
    return (ended - summed) / (ended - began)


def compare_waiting(clipped: ClippedSum, batch: dict[str, torch.Tensor]) -> None:
    """Print how much of a step goes into its noise."""
    for exact in (False, True):
        shares: dict[str, list[float]] = {"before": [], "ahead": []}
        for repeat in range(REPEATS + 1):
            for name, threads in (("before", 0), ("ahead", 1)):
                share = waiting(clipped, batch, exact, threads)
                if repeat:
                    shares[name].append(100 * share)
        told = ", ".join(
            f"{name} {statistics.median(found):.1f} % ({min(found):.1f}-{max(found):.1f})"
            for name, found in shares.items()
        )
        kind = "exact noise" if exact else "noise"
        print(f"{kind} in a step of {IMAGES} images of {SIDE} px, yolo26n from random weights: {told}")


def main() -> None:
    """Measure the waiting, then compare the noise, then the sum over a batch of random images."""
    model = load_model("yolo26n.yaml", 3, norm="group")
    plan = PrivacyPlan(0.1, 10, 1.0, 1.0, 1e-5, IMAGES)
    batch = {
        "img": torch.rand(IMAGES, 3, SIDE, SIDE),
        "batch_idx": torch.arange(IMAGES).repeat_interleave(BOXES).float(),
        "cls": torch.randint(0, 3, (IMAGES * BOXES, 1)).float(),
        "bboxes": torch.rand(IMAGES * BOXES, 4) * 0.5 + 0.25,
    }
    clipped = ClippedSum(plan, model, PerImageLoss())
    compare_waiting(clipped, batch)
    stream, parameter = NoiseStream(), variance(1.0, SENSITIVITY)
    compare(
        f"noise of {COORDINATES:,} parameters",
        lambda: discrete_gaussian(COORDINATES, parameter, stream),
        lambda: stream.gaussian(COORDINATES),
    )
    compare(
        f"clipped sum of yolo26n, {IMAGES} images of {SIDE} px",
        lambda: [clipped.on_grid(image) for image in in_pieces(batch, 1)],
        lambda: clipped.over(batch),
    )


if __name__ == "__main__":
    main()
