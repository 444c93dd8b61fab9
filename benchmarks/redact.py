"""How fast redaction is: its frames a second over those of the bare model, both measured in one run.

    python -m benchmarks.redact                          # yolov8n at 640 px, a video of 1280 x 720
    python -m benchmarks.redact --weights face.pt --device cuda --name my_machine

The bare model is the same detector, with its threshold and suppression, on batches that lie in memory ready to be
computed: no file is decoded, no picture scaled, nothing written. A redacted frame is decoded, scaled, searched,
followed, filled, encoded and written. Both take turns, and a ratio is of two times of one turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

import dptrain
from dptrain.detection.finding import Finder, Prepared
from dptrain.detection.model import load_model, save_weights

from .machine import commit, processor

RESULTS = Path(__file__).resolve().parent / "results"
BAR = 0.9
WIDTH, HEIGHT = 1280, 720


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, help="default: an untrained yolov8n, whose speed is that of any other")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--frames", type=int, default=96, help="of the video, and images of the folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--method", default="fill")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", help="write benchmarks/results/redact_NAME.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = options.weights or save_weights(load_model("yolov8n.yaml", num_classes=80), folder / "n.pt")
        frames = write_sources(folder, options.frames)
        found = measure(folder, weights, frames, options)
    for source, ratios in found["ratio"].items():
        least, most = min(ratios), max(ratios)
        middle = statistics.median(ratios)
        print(f"{source:<8} {middle:.3f} ({least:.3f}-{most:.3f}) of the bare model's frames a second  (bar {BAR})")
    print(f"bare     {statistics.median(found['bare_fps']):.1f} frames a second")
    if options.name:
        record = {
            "machine": {
                "processor": processor(),
                "cores": len(os.sched_getaffinity(0)),
                "threads": torch.get_num_threads(),
                "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
                "torch": torch.__version__,
            },
            "commit": commit(),
            "weights": options.weights.name if options.weights else "yolov8n, untrained",
            "settings": {key: getattr(options, key) for key in ("imgsz", "frames", "batch_size", "method", "repeats")},
            "picture": [WIDTH, HEIGHT],
            "bar": BAR,
            **found,
        }
        (RESULTS / f"redact_{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def write_sources(folder: Path, count: int) -> list[np.ndarray]:
    """Write a video and a folder of JPEGs of one scene that moves, with the grain of a camera."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 16 + 20, WIDTH // 16 + 20, 3), np.uint8)
    scene = cv2.resize(coarse, (WIDTH + 320, HEIGHT + 320), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(0, 12, (HEIGHT, WIDTH, 3), np.uint8)
    frames = [
        cv2.add(scene[2 * n % 300 : 2 * n % 300 + HEIGHT, 3 * n % 300 : 3 * n % 300 + WIDTH], np.roll(grain, n, 0))
        for n in range(count)
    ]
    writer = cv2.VideoWriter(str(folder / "video.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (WIDTH, HEIGHT))
    (folder / "images").mkdir()
    for number, frame in enumerate(frames):
        writer.write(frame)
        cv2.imwrite(str(folder / f"images/{number:04}.jpg"), frame)
    writer.release()
    return frames


def measure(folder: Path, weights: Path, frames: list[np.ndarray], options: argparse.Namespace) -> dict:
    """Take turns; the first turn of each is not counted."""
    finder = Finder(weights, imgsz=options.imgsz, device=options.device)
    pictures = [finder.prepare(frame) for frame in frames]
    ratio: dict[str, list[float]] = {"video": [], "images": []}
    bare_fps = []
    for turn in range(options.repeats + 1):
        bare = bare_seconds(finder, pictures, options.batch_size)
        for source, name, target in (("video", "video.mp4", "out.mp4"), ("images", "images", "out")):
            begin = time.perf_counter()
            dptrain.redact(
                folder / name, folder / target, weights=weights, imgsz=options.imgsz, device=options.device,
                batch_size=options.batch_size, method=options.method, regions=["0%,0%,20%,20%"], overwrite=True,
            )  # fmt: skip
            whole = time.perf_counter() - begin - loading_seconds(weights, options)
            if turn:
                ratio[source].append(bare / whole)
        if turn:
            bare_fps.append(len(frames) / bare)
    return {"ratio": ratio, "bare_fps": bare_fps}


def bare_seconds(finder: Finder, pictures: list[Prepared], batch_size: int) -> float:
    """The time that the model needs for all pictures, on batches that are made beforehand."""
    batches = [finder.batch(pictures[at : at + batch_size]) for at in range(0, len(pictures), batch_size)]
    begin = time.perf_counter()
    for batch in batches:
        for rows in finder.forward(batch):
            rows.cpu()
    return time.perf_counter() - begin


def loading_seconds(weights: Path, options: argparse.Namespace) -> float:
    """The time that opening the weights takes, once a call and not once a frame."""
    begin = time.perf_counter()
    Finder(weights, imgsz=options.imgsz, device=options.device)
    return time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
