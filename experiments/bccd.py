"""Real photos: 205 blood smears with red cells, white cells and platelets, at epsilon 8.

    python -m experiments.bccd                             # from the demo's public start
    python -m experiments.bccd --weights public.pt --norm frozen_bn --trainable norm_and_bias

The set is BCCD (github.com/Shenggan/BCCD_Dataset, MIT licence) in Ultralytics layout. It is small for differential
privacy: expect far less than a run without privacy gives. What is printed is what came out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import dptrain
from dptrain.statement.results import MAP, MAP50
from experiments.digits.public_start import WEIGHTS

HERE = Path(__file__).resolve().parent
DEFAULT_DATA = HERE.parent.parent / "shared" / "data" / "bccd" / "data.yaml"
TRAIN_IMAGES = 205  # published with the set, so public


def find_data(given: Path | None) -> Path:
    """The data.yaml to use; exits with one line when there is none."""
    path = given or DEFAULT_DATA
    path = path / "data.yaml" if path.is_dir() else path
    if not path.is_file():
        sys.exit(
            f"bccd: no data at {path}: get github.com/Shenggan/BCCD_Dataset, write its boxes as YOLO text with a "
            "data.yaml, and pass --data PATH"
        )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="train a blood cell detector privately")
    parser.add_argument("--data", type=Path, help="data.yaml, or the folder it is in (default: ../shared/data/bccd)")
    parser.add_argument("--weights", default=str(WEIGHTS), help="public start (.pt), or yolo26n.yaml for none")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--delta", type=float, help="default: 205**-1.1, the product's own")
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=100, help="expected batch size")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--norm", default="auto")
    parser.add_argument("--trainable", default="all")
    parser.add_argument("--root", type=Path, default=Path("runs/bccd"))
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    args = parser.parse_args()

    began = time.perf_counter()
    result = dptrain.train(
        model=args.weights,
        data=str(find_data(args.data)),
        output_dir=str(args.root / time.strftime("%Y-%m-%d_%H-%M-%S")),
        imgsz=args.imgsz,
        steps=args.steps,
        norm=args.norm,
        trainable=args.trainable,
        workers=0,
        privacy={
            "epsilon": args.epsilon,
            "delta": args.delta,
            "clipping": "flat",  # what its results were measured with
            "expected_batch_size": args.batch,
            "dataset_size": TRAIN_IMAGES,
        },
        optimizer={"name": "adam", "lr": args.lr},
        ema={"decay": 0.95},
        tracking={"uri": f"sqlite:///{(args.root / 'mlflow.db').as_posix()}", "experiment": "bccd"},
    )
    numbers = {
        "epsilon": round(result.epsilon, 3),
        "mAP50": round(result.metrics[MAP50], 4),
        "mAP50-95": round(result.metrics[MAP], 4),
        "start": Path(args.weights).name,
        "images": TRAIN_IMAGES,
        **{k: getattr(args, k) for k in ("imgsz", "steps", "batch", "lr", "norm", "trainable")},
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(numbers))
    print(f"weights {result.weights}; one photo more or less, epsilon {result.epsilon:.2f}; 205 photos are few")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
