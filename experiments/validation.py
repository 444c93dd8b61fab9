"""How far noised estimates on a private val split are from the exact metrics (docs/validation.md).

    python -m experiments.validation                       # the digits' public start, on scenes drawn for it
    python -m experiments.validation --weights last.pt --data DATA.yaml --imgsz 320

The digits have 5,000 scenes, of which smaller val splits are random parts. The val split of a data.yaml is resampled
with replacement to every size: the images repeat, as if each were another one like it, so only the noise and the
estimate are tried, and not how much a val split of that size differs from another.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.utils.metrics import DetMetrics
from ultralytics.utils.ops import xywh2xyxy

from dptrain.detection.data import DetectionDataset, load_data, to_rgb_planes
from dptrain.detection.estimates import estimate
from dptrain.detection.evaluate import _detect, _prepared, _statistics
from dptrain.detection.model import open_checkpoint
from dptrain.detection.tallies import norm_for, tally
from dptrain.privacy import counts
from dptrain.privacy.streams import NoiseStream
from experiments.digits.scenes import scene

SIZES = (250, 1000, 5000)
EPSILONS = (1.0, 4.0)
REPEATS = 20
SEED = 20261201
DIGITS = Path(__file__).parent / "digits" / "public_start.pt"
Statistics = dict[str, Any]


def found_in_scenes(count: int) -> list[Statistics]:
    """What the digits' public start finds in drawn scenes, one at a time."""
    model, rng, found = open_checkpoint(DIGITS).float(), np.random.default_rng(SEED), []
    with _prepared(model, torch.device("cpu"), 300):
        for _ in range(count):
            image, boxes = scene(rng)
            batch = torch.from_numpy(to_rgb_planes(image[..., ::-1])[None].copy()).float() / 255
            detection = _detect(model, batch, 0.001, 0.7, 300, multi_label=True)[0]
            corners = xywh2xyxy(torch.from_numpy(boxes[:, 1:] * image.shape[0]).float())
            found.append(_statistics(detection, corners, torch.from_numpy(boxes[:, 0]).float(), ""))
    return found


def found_in(weights: Path, data: Path, imgsz: int) -> tuple[list[Statistics], int]:
    """What a detector finds in the val split of a data.yaml, and its number of classes."""
    dataset, found = DetectionDataset(load_data(data), "val", imgsz), []
    model = open_checkpoint(weights).float()
    with _prepared(model, torch.device("cpu"), 300):
        for number in range(len(dataset)):
            sample = dataset.sample(number)
            detection = _detect(model, sample["img"][None].float() / 255, 0.001, 0.7, 300, multi_label=True)[0]
            boxes = xywh2xyxy(sample["bboxes"]) * imgsz
            found.append(_statistics(detection, boxes, sample["cls"].flatten(), ""))
    return found, dataset.data.num_classes


def exact_values(found: list[Statistics], classes: int) -> np.ndarray:
    """F1 of all classes together, mAP50, mAP50-95."""
    metrics = DetMetrics(names={number: str(number) for number in range(classes)})
    for statistics in found:
        metrics.update_stats({**statistics})
    metrics.process(plot=False)
    scores = np.concatenate([s["conf"] for s in found])
    right = np.concatenate([s["tp"][:, 0] for s in found])[np.argsort(-scores)].cumsum()
    f1 = 2 * right / (np.arange(1, len(scores) + 1) + sum(len(s["target_cls"]) for s in found))
    return np.array([f1.max(), *metrics.mean_results()[2:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--imgsz", type=int, default=640)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.weights is None:
        found, classes = found_in_scenes(max(SIZES)), 10
    else:
        found, classes = found_in(options.weights, options.data, options.imgsz)
    tallies = [tally(statistics, classes) for statistics in found]
    objects = np.mean([len(statistics["target_cls"]) for statistics in found])
    print(f"{len(found)} images, {classes} classes, {objects:.1f} objects an image")
    print("| val images | epsilon | exact mAP50 | error mAP50 | error mAP50-95 | error F1 | said, mAP50 |")
    rng, stream = np.random.default_rng(SEED), NoiseStream(SEED, "experiment")
    for size in SIZES:
        drawn = [
            rng.permutation(len(found))[:size] if options.weights is None else rng.integers(0, len(found), size)
            for _ in range(REPEATS)
        ]
        known = [exact_values([found[i] for i in chosen], classes) for chosen in drawn]
        for epsilon in EPSILONS:
            noise = counts.ReleasePlan.calibrate(epsilon=epsilon, delta=size**-1.1).noise_multiplier
            norm, errors, said = norm_for(size, noise), [], []
            parts = torch.stack([counts.bounded(counted / norm) for counted in tallies])
            for chosen, values in zip(drawn, known, strict=True):
                often = torch.from_numpy(np.bincount(chosen, minlength=len(found)))
                total = (parts * often[:, None, None]).sum(0)
                estimates = estimate(norm * counts.release(total, noise, stream), norm * noise)
                errors.append([estimates.values[name] for name in ("F1", "mAP50", "mAP50-95")] - values)
                said.append(estimates.sd["mAP50"])
            f1, map50, map_ = np.sqrt(np.mean(np.square(errors), axis=0))
            print(
                f"| {size:,} | {epsilon:g} | {np.mean(known, axis=0)[1]:.3f} | {map50:.3f} | {map_:.3f} | {f1:.3f} | "
                f"{np.mean(said):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
