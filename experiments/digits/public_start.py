"""Train the demo's public start: a yolo26n that has seen font-drawn digits and nothing else.

    python -m experiments.digits.public_start        # about 15 minutes on 2 CPU cores

Writes `public_start.pt` (half precision; opens in stock Ultralytics) and `pretraining.json` (how it was made, of which
the statement of a run from it tells) next to this file. No handwriting is read: the recipe and the distortions were
chosen looking at public scenes only, so the private set owes no privacy budget to this model. Training here is ordinary
and has no privacy of its own.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ultralytics.nn.tasks import DetectionModel

from dptrain.detection.data import DetectionDataset, load_data
from dptrain.detection.evaluate import evaluate
from dptrain.detection.loss import PerImageLoss, one2many_weight
from dptrain.detection.model import load_model, save_weights
from dptrain.run.public_start import write_record
from experiments.digits.scenes import SIZE, Boxes, Image, scene, write_public

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "public_start.pt"
NAMES = {i: str(i) for i in range(10)}
EMA = 0.99


def batch_of(scenes: list[tuple[Image, Boxes]]) -> dict[str, torch.Tensor]:
    """What dptrain's collate and to_device make, straight from painted scenes."""
    boxes = np.concatenate([b for _, b in scenes]).astype(np.float32)
    owner = np.concatenate([np.full(len(b), i) for i, (_, b) in enumerate(scenes)]).astype(np.float32)
    images = torch.from_numpy(np.stack([image for image, _ in scenes])).permute(0, 3, 1, 2)
    return {
        "img": images.contiguous().float() / 255,
        "batch_idx": torch.from_numpy(owner),
        "cls": torch.from_numpy(boxes[:, :1]),
        "bboxes": torch.from_numpy(boxes[:, 1:]),
    }


def rate(step: int, steps: int, peak: float) -> float:
    """Learning rate: 50 steps of warm-up, then a cosine to one hundredth."""
    return peak * min((step + 1) / 50, 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def train_public(
    steps: int, batch_size: int, scenes: int, peak: float, seed: int
) -> tuple[DetectionModel, list[dict[str, float]]]:
    """The averaged model and the public losses of its training, one row every 25 steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 100])
    pool = [scene(np.random.default_rng([seed, 5, i])) for i in range(scenes)]
    model = load_model("yolo26n.yaml", num_classes=10, norm="group", names=NAMES)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=5e-4)
    rows: list[dict[str, float]] = []
    total, started = 0.0, time.perf_counter()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        batch = batch_of([pool[i] for i in rng.choice(scenes, batch_size, replace=False)])
        loss = PerImageLoss(one2many_weight(step / steps))(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        total += loss.item()
        if (step + 1) % 25 == 0:
            rows.append(
                {"step": step + 1, "loss": round(total / 25, 4), "seconds": round(time.perf_counter() - started, 1)}
            )
            print(rows[-1], flush=True)
            total = 0.0
    return average, rows


def main() -> None:
    parser = argparse.ArgumentParser(description="train the public start on font-drawn digits")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of public_start.pt and pretraining.json")
    args = parser.parse_args()

    started = time.perf_counter()
    model, rows = train_public(args.steps, args.batch, args.scenes, args.lr, args.seed)
    weights = save_weights(model, args.out / WEIGHTS.name, half=True)
    with tempfile.TemporaryDirectory() as folder:
        data = load_data(write_public(Path(folder), seed=args.seed + 1))
        metrics = evaluate(model, DetectionDataset(data, "val", SIZE))
    import cv2
    import matplotlib
    import ultralytics

    log = {
        "public_data": f"{args.scenes} scenes of digits drawn with fonts, by experiments.digits.public_start "
        "(no handwriting)",
        "what": "yolo26n, GroupNorm, 10 classes; trained on scenes of digits drawn from matplotlib's fonts only",
        "command": "python -m experiments.digits.public_start "
        f"--steps {args.steps} --batch {args.batch} --scenes {args.scenes} --lr {args.lr} --seed {args.seed}",
        "public_val": {"scenes": 300, **{k: round(v, 4) for k, v in metrics.values.items()}},
        "seconds": round(time.perf_counter() - started),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (torch, ultralytics, np, cv2, matplotlib)},
        },
        "losses": rows,
    }
    write_record(weights, log)
    print(log["public_val"])


if __name__ == "__main__":
    main()
