"""The ``dptrain`` command. Heavy packages are imported by the command that needs them, so the others answer at once."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import ConfigError, DptrainError

if TYPE_CHECKING:
    from .plan import PrivacyPlan
    from .schema import TrainConfig

EXIT_FAILED = 1  # something that dptrain did not foresee
EXIT_REFUSED = 2  # a setting, a file or a guarantee that does not hold
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 with one line on stderr for what the user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with _messages():
        try:
            if arguments[:1] == ["train"]:
                return _train(arguments[1:], debug)
            options = _parser().parse_args(arguments)
            return int(options.command(options))
        except KeyboardInterrupt:
            return _fail("interrupted", EXIT_INTERRUPTED, debug)
        except Exception as error:
            return _fail(_described(error), EXIT_REFUSED if isinstance(error, DptrainError) else EXIT_FAILED, debug)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"dptrain: error: {message}", file=sys.stderr)
    return status


def _described(error: Exception) -> str:
    """One line; what dptrain did not foresee also gets its kind."""
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (DptrainError, OSError)):
        return line
    return f"{type(error).__name__}: {line} (--debug shows where)"


class _ConsoleHandler(logging.StreamHandler):
    """Facts go to stdout, warnings to stderr, each as it is now, so that lines go around a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        super().emit(record)


@contextmanager
def _messages() -> Iterator[None]:
    """Print dptrain's own log lines, and only those, whatever handlers MLflow and others put on the root logger."""
    logger = logging.getLogger("dptrain")
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("dptrain: %(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        raise ConfigError(f"{message} ({self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dptrain",
        description="Train a YOLO detector on sensitive images with a differential privacy guarantee you can state.",
        epilog="--debug, anywhere, shows the traceback of an error. Each command has its own --help.",
    )
    parser.add_argument("--version", action="version", version=f"dptrain {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    commands.add_parser("train", help="train privately: dptrain train model=start.pt data=pets.yaml privacy.epsilon=8")

    calibrate = commands.add_parser("calibrate", help="find the noise multiplier for a target epsilon")
    _number(calibrate, "epsilon", "target epsilon (RDP)")
    _accounting_options(calibrate)
    calibrate.set_defaults(command=_calibrate)

    epsilon = commands.add_parser("epsilon", help="find the epsilon of a noise multiplier")
    _number(epsilon, "noise-multiplier", "noise standard deviation in units of the clip norm")
    _accounting_options(epsilon)
    epsilon.set_defaults(command=_epsilon)

    evaluate = commands.add_parser("evaluate", help="Ultralytics' metrics of some weights on a split")
    evaluate.add_argument("--weights", required=True, help="a .pt file, such as runs/x/weights/last.pt")
    evaluate.add_argument("--data", required=True, help="an Ultralytics data.yaml")
    evaluate.add_argument("--split", default="val", choices=("train", "val", "test"))
    evaluate.add_argument("--imgsz", type=int, help="pixels; default that of the weights' run, else 640")
    evaluate.add_argument("--batch-size", type=int, default=32)
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    evaluate.add_argument("--workers", type=int, default=0, help="processes that load images")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(command=_evaluate)
    return parser


def _number(parser: argparse.ArgumentParser, name: str, help: str, kind: type = float) -> None:
    parser.add_argument(f"--{name}", type=kind, required=True, help=help)


def _accounting_options(parser: argparse.ArgumentParser) -> None:
    _number(parser, "delta", "chance of failure allowed, well below 1/n")
    _number(parser, "sample-rate", "chance that one image is in a step")
    _number(parser, "steps", "number of steps", int)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dptrain")
    except PackageNotFoundError:
        return "(not installed)"


def _calibrate(options: argparse.Namespace) -> int:
    from .plan import PrivacyPlan

    # The batch size and the clip norm scale the update and change no epsilon.
    plan = PrivacyPlan.calibrate(
        epsilon=options.epsilon,
        delta=options.delta,
        sample_rate=options.sample_rate,
        steps=options.steps,
        expected_batch_size=1,
        clip_norm=1.0,
    )
    return _print_plan(plan, options.json)


def _epsilon(options: argparse.Namespace) -> int:
    from .plan import PrivacyPlan

    plan = PrivacyPlan(
        noise_multiplier=options.noise_multiplier,
        delta=options.delta,
        sample_rate=options.sample_rate,
        steps=options.steps,
        expected_batch_size=1,
        clip_norm=1.0,
    )
    return _print_plan(plan, options.json)


def _print_plan(plan: PrivacyPlan, as_json: bool) -> int:
    from .accounting import PLD_UP_TO_EPSILON

    rdp = plan.epsilon("rdp")
    values: dict[str, float | int | None] = {
        "noise_multiplier": plan.noise_multiplier,
        "epsilon_rdp": rdp,
        "epsilon_pld": plan.epsilon("pld") if rdp <= PLD_UP_TO_EPSILON else None,
        "delta": plan.delta,
        "sample_rate": plan.sample_rate,
        "steps": plan.steps,
    }
    if as_json:
        print(json.dumps(values))
        return 0
    notes = {"epsilon_rdp": "  (the headline)", "epsilon_pld": "  (tighter, of the same run)"}
    for name, value in values.items():
        shown = f"not computed: an epsilon above {PLD_UP_TO_EPSILON:g} promises nothing"
        if value is not None:
            shown = f"{value:.6g}{notes.get(name, '')}"
        print(f"{name:<17} {shown}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    weights = Path(options.weights)
    imgsz = options.imgsz if options.imgsz is not None else _run_imgsz(weights)
    for name, value, least in (("--imgsz", imgsz, 32), ("--batch-size", options.batch_size, 1)):
        if value < least:
            raise ConfigError(f"{name}={value} must be {least} or more")
    if imgsz % 32:
        raise ConfigError(f"--imgsz={imgsz} is not a multiple of 32")
    if options.workers < 0:
        raise ConfigError(f"--workers={options.workers} must be 0 or more")
    if options.split == "train":
        logging.getLogger(__name__).warning(
            "--split=train: metrics of private training images carry no noise; whoever sees them learns beyond epsilon"
        )
    from .config import parse_device

    device = parse_device(options.device, "--device")

    from .detection import load_model
    from .detection.data import DetectionDataset, load_data
    from .detection.evaluate import evaluate

    data = load_data(options.data)
    model = load_model(weights)
    device = _usable_device(device)
    dataset = DetectionDataset(data, options.split, imgsz)
    metrics = evaluate(model.to(device), dataset, batch_size=options.batch_size, device=device, workers=options.workers)
    if options.json:
        report = {"metrics": metrics.values, "per_class": metrics.per_class, "images": len(dataset), "imgsz": imgsz}
        print(json.dumps(report))
        return 0
    names = ("precision", "recall", "mAP50", "mAP50-95")
    width = max([len("all"), *(len(name) for name in metrics.per_class)])
    print(f"{'class':<{width}} " + " ".join(f"{name:>9}" for name in names))
    rows = {"all": {name: metrics.values[f"metrics/{name}B"] for name in names}, **metrics.per_class}
    for name, row in rows.items():
        print(f"{name:<{width}} " + " ".join(f"{row[column]:9.4f}" for column in names))
    return 0


def _run_imgsz(weights: Path) -> int:
    """The image size that the run which wrote these weights was trained at, where its config.yaml lies beside them."""
    config = weights.parent.parent / "config.yaml"
    if weights.parent.name == "weights" and config.is_file():
        from omegaconf import OmegaConf

        size = OmegaConf.select(OmegaConf.load(config), "imgsz")
        if isinstance(size, int):
            return size
    return 640


def _usable_device(name: str) -> str:
    """Turn ``auto`` into the accelerator that is there, and refuse one that is not."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device={name} cannot be used ({reason[:120]}): try --device cpu") from error
    return name


def _train(arguments: list[str], debug: bool) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(_train_help())
        return 0
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]

    from .hydra_app import run_hydra

    def job(config: TrainConfig) -> None:
        from .config import resolve

        config = resolve(config)  # before torch is imported: a wrong value is told at once
        from .run import train_from_config

        if not as_json:
            train_from_config(config)
            return
        with redirect_stdout(sys.stderr):
            result = train_from_config(config)
        names = ("output_dir", "weights", "epsilon", "metrics")
        print(json.dumps({name: getattr(result, name) for name in names}, default=str), flush=True)

    def report(run: str, error: Exception) -> None:
        if debug:
            traceback.print_exception(error)
        print(f"dptrain: {run} failed: {_described(error)}", file=sys.stderr, flush=True)

    failures, jobs = run_hydra(arguments, job, report)
    if jobs - len(failures) > 1:
        logging.getLogger(__name__).warning(
            "%d runs finished: where they share training images, all of them together cost more than any one epsilon",
            jobs - len(failures),
        )
    if not failures:
        return 0
    status = EXIT_REFUSED if all(isinstance(error, DptrainError) for error in failures) else EXIT_FAILED
    return _fail(f"{len(failures)} of {jobs} jobs failed", status, debug=False)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "").strip("'")


def _train_help() -> str:
    from omegaconf import MISSING

    from .hydra_app import conf_dir
    from .schema import REFUSED_AUGMENTATIONS, keys

    refused = [f"augment.{name}" for name in REFUSED_AUGMENTATIONS]
    lines = [
        "usage: dptrain train [KEY=VALUE ...] [-m] [--config-dir DIR] [--cfg job] [--json] [--debug]",
        "",
        "  dptrain train model=yolo26n.pt data=pets.yaml privacy.epsilon=8 privacy.dataset_size=10000",
        "  dptrain train -m privacy.noise_multiplier=0.6,0.8,1.0 ...     one run for each value (a sweep)",
        "  dptrain train --cfg job ...                                   show the settings, run nothing",
        "",
        "Give two of privacy.epsilon, privacy.noise_multiplier and steps: they determine the third.",
        "",
        "keys:",
    ]
    section = ""
    for name, item in keys():
        if name in refused:
            continue
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            lines.append("")
        default = item.default_factory() if callable(item.default_factory) else item.default
        shown = "" if default in (None, MISSING, "") else f" ({_yaml(default)})"
        lines.append(f"  {name:<29} {item.metadata['help']}{shown}")
    lines.append(f"  refused, since they would void the guarantee: {', '.join(refused)}")
    lines += ["", "presets (GROUP=NAME; your own from --config-dir DIR, as DIR/GROUP/NAME.yaml):"]
    for group in sorted(folder for folder in conf_dir().iterdir() if folder.is_dir()):
        lines.append(f"  {group.name:<29} {', '.join(sorted(file.stem for file in group.glob('*.yaml')))}")
    lines += ["", "-m, --multirun sweeps; --hydra-help shows the other options of Hydra (https://hydra.cc)."]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
