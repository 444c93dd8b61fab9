"""``dptrain evaluate``: Ultralytics' metrics of some weights."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..datasets.labels import LABELS, STRICT
from ..errors import ConfigError
from ..support.devices import parse_device, usable_device
from ..support.files import to_json
from ..support.released import found_start
from ..support.words import counted
from .options import Commands, check_imgsz


def register(commands: Commands) -> None:
    """Add the command."""
    evaluate = commands.add_parser("evaluate", help="Ultralytics' metrics of some weights on a split")
    add_evaluation(evaluate)
    evaluate.add_argument("--labels", default=STRICT, choices=LABELS, help="whether a bad label row stops it")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(command=_evaluate)


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Add the options of every evaluation of some weights on a split."""
    parser.add_argument("--weights", required=True, help="a .pt file, such as runs/x/weights/last.pt")
    parser.add_argument("--data", required=True, help="an Ultralytics data.yaml")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--imgsz", type=int, help="pixels; default that of the weights' run, else 640")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")


def checked_evaluation(options: argparse.Namespace) -> tuple[int, str]:
    """Refuse options of :func:`add_evaluation` that are out of range; return the image size and the device."""
    imgsz = options.imgsz if options.imgsz is not None else run_imgsz(Path(options.weights))
    check_imgsz(imgsz)
    for name, value, least in (("--batch-size", options.batch_size, 1), ("--workers", options.workers, 0)):
        if value < least:
            raise ConfigError(f"{name}={value} must be {least} or more")
    if options.split == "train":
        logging.getLogger(__name__).warning(
            "--split=train: metrics of private training images carry no noise; whoever sees them learns more than "
            "epsilon allows"
        )
    return imgsz, parse_device(options.device, "--device")


def _evaluate(options: argparse.Namespace) -> int:
    imgsz, device = checked_evaluation(options)

    from ..detection import load_model
    from ..detection.data import DetectionDataset, load_data
    from ..detection.evaluate import evaluate

    data = load_data(options.data, options.labels)
    model = load_model(found_start(options.weights, "--weights"))
    device = usable_device(device, "--device")
    dataset = DetectionDataset(data, options.split, imgsz)
    if dataset.dropped:
        many = counted(len(dataset.dropped), "row")
        logging.getLogger(__name__).warning("--labels=%s: %s left out: %s", data.labels, many, dataset.dropped[0])
    metrics = evaluate(model.to(device), dataset, batch_size=options.batch_size, device=device, workers=options.workers)
    if options.json:
        report = {"metrics": metrics.values, "per_class": metrics.per_class, "images": len(dataset), "imgsz": imgsz}
        print(to_json(report))
        return 0
    names = ("precision", "recall", "mAP50", "mAP50-95")
    width = max([len("all"), *(len(name) for name in metrics.per_class)])
    print(f"{'class':<{width}} " + " ".join(f"{name:>9}" for name in names))
    rows = {"all": {name: metrics.values[f"metrics/{name}B"] for name in names}, **metrics.per_class}
    for name, row in rows.items():
        print(f"{name:<{width}} " + " ".join(f"{row[column]:9.4f}" for column in names))
    return 0


def run_imgsz(weights: Path) -> int:
    """The image size that the run which wrote these weights was trained at, where its config.yaml lies beside them."""
    config = weights.parent.parent / "config.yaml"
    if weights.parent.name != "weights" or not config.is_file():
        return 640
    from omegaconf import OmegaConf

    try:
        size = OmegaConf.select(OmegaConf.load(config), "imgsz")
    except Exception as error:  # of OmegaConf, of YAML, of the text's encoding
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{config} cannot be read ({reason}): give --imgsz") from error
    if size is None:
        return 640
    if isinstance(size, bool) or not isinstance(size, int):
        raise ConfigError(f"{config}: imgsz={size!r} is not a whole number: give --imgsz")
    return size
