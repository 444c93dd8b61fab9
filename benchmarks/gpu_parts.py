"""The parts of :mod:`benchmarks.gpu`: each prints a line of JSON for everything that it found."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dptrain
from dptrain import PrivacyPlan
from dptrain.detection import PerImageLoss
from dptrain.detection.data import DetectionDataset, StepLoader, load_data
from dptrain.detection.precision import _Watched, settle_precision
from dptrain.gradients.autotune import by_rule
from dptrain.privacy import noise
from dptrain.privacy.streams import NoiseStream
from dptrain.training.trainer import PrivateTrainer

from .cases import Case
from .files import write_dataset
from .memory import peak
from .steps import detector, now, random_batch, steps, take_turns
from .worker import machine

Line = dict[str, Any]
_CLIP_NORM = 1e-3


def run(part: str, device: str, small: bool) -> None:
    """Print what a part finds, line by line."""
    tell({"machine": machine(device)})
    for line in {"correctness": correctness, "whole": whole, "table": table}[part](device, small):
        tell(line)


def tell(line: Line) -> None:
    """Print a line for whoever started this process."""
    print(json.dumps(line), flush=True)


def tried(what: str, lines: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """Yield the lines; an error among them is one that says what could not be done."""
    try:
        yield from lines()
    except Exception as error:
        yield {"what": what, "not_done": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def length(sums: dict[str, Tensor]) -> float:
    return float(torch.stack([value.double().square().sum() for value in sums.values()]).sum().sqrt())


# --- correctness -----------------------------------------------------------------------------------------------------


def correctness(device: str, small: bool) -> Iterator[Line]:
    """Whether what is guaranteed holds on this device."""
    pixels = 64 if small else 640
    model = detector(Case("gpu", "time", device=device))
    yield from tried("engines against the oracle", lambda: _engines(device))
    for precision in ("fp32", "bf16"):
        yield from tried(f"clip norm in {precision}", lambda p=precision: _clip_norm(model, device, pixels, p))  # type: ignore[misc]
        yield from tried(f"places in {precision}", lambda p=precision: _places(model, device, pixels, p))  # type: ignore[misc]
    yield from tried("the trial of bf16", lambda: _trial(model, pixels, 2 if small else 16))
    yield from tried("noise", lambda: _noise(device))
    yield from tried("resume", lambda: _resume(device))


def _engines(device: str) -> Iterator[Line]:
    """In double precision, where rounding moves no box to another anchor."""
    model = detector(Case("gpu", "time", device=device)).double()
    batch = random_batch(3, 64, device)
    batch["img"] = batch["img"].double()
    with by_rule():
        sums = {
            engine: dptrain.clipped_gradient_sum(model, PerImageLoss(), batch, 0.5, engine=engine)
            for engine in ("microbatch", "fused", "opacus")
        }
    for engine in ("fused", "opacus"):
        off = length({name: sums[engine][name] - sums["microbatch"][name] for name in sums[engine]})
        yield {"check": f"{engine} is plain autograd's clipped sum", "off": off, "holds": off < 1e-8}


def _clip_norm(model: nn.Module, device: str, pixels: int, precision: str) -> Iterator[Line]:
    loss, longest = PerImageLoss(precision=precision), 0.0
    for seed in range(3):
        batch = random_batch(1, pixels, device)
        batch["img"] = batch["img"].roll(seed * 7, 3)
        sums = dptrain.clipped_gradient_sum(model, loss, batch, _CLIP_NORM, examples_at_once=2)
        longest = max(longest, length(sums) / _CLIP_NORM)
    yield {
        "check": f"no image adds more than the clip norm, {precision}",
        "longest": longest,
        "holds": 0.99 < longest <= 1.0,
    }


def _places(model: nn.Module, device: str, pixels: int, precision: str) -> Iterator[Line]:
    """A box that is tied between two anchors goes to the same one wherever its image lies, if predictions are the same.

    To the last bit, that is: whoever crafts ties finds any other difference.
    """
    loss, batch, found = _Watched(precision=precision), random_batch(5, pixels, device), []
    for shift in (0, 1, 3):
        moved = {**batch, "img": batch["img"].roll(shift, 0)}
        with by_rule():
            dptrain.clipped_gradient_sum(model, loss, moved, 1.0, examples_at_once=5)
        found.append([tensor.roll(-shift, 0) for tensor in loss.seen])
    same = all(torch.equal(one, other) for moved in found[1:] for one, other in zip(found[0], moved, strict=True))
    yield {"check": f"predictions are the same bits in every place of a pass, {precision}", "holds": same}


def _trial(model: nn.Module, pixels: int, images: int) -> Iterator[Line]:
    auto = settle_precision("auto", model, PerImageLoss(), pixels, images)
    try:
        settle_precision("bf16", model, PerImageLoss(), pixels, images)
        why = ""
    except dptrain.ConfigError as error:
        why = str(error)
    yield {"check": "the trial of bf16 comes to an end", "auto": auto, "refused": why, "holds": True}


def _noise(device: str) -> Iterator[Line]:
    from scipy import stats

    value = {"a": torch.zeros(2**21, device=device, dtype=torch.float64)}
    how: dict[str, Any] = {"sensitivity": 0.5, "noise_multiplier": 1.3}
    added = noise.privatize(value, stream=NoiseStream(), **how)["a"].cpu()
    chance = float(stats.kstest(added.numpy(), stats.norm(0, 0.65).cdf).pvalue)
    yield {"check": "the noise is Gaussian of its scale", "p_value": chance, "holds": chance > 1e-6}
    there, here = (
        noise.privatize({"a": tensor}, stream=NoiseStream(1, "noise"), **how)["a"].cpu()
        for tensor in (value["a"], torch.zeros(2**21, dtype=torch.float64))
    )
    yield {"check": "a test's seed makes the CPU's noise", "holds": torch.equal(there, here)}


class _Rows:
    """Serves rows of a table on the device, in passes of four."""

    examples_at_once = 4

    def __init__(self, device: str) -> None:
        self.x = torch.linspace(-1, 1, 60, device=device).view(20, 3)

    def steps(self, draws: Iterator[Any]) -> Iterator[Iterator[Tensor]]:
        for draw in draws:
            rows = torch.as_tensor(draw.indices, device=self.x.device)
            yield iter([self.x[rows]] if len(rows) else [])


def _resume(device: str) -> Iterator[Line]:
    def trainer() -> PrivateTrainer:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.SiLU(), nn.Linear(8, 2)).to(device)
        plan = PrivacyPlan(0.3, 6, 1.0, 0.5, 1e-5, 6)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

        def loss(m: Any, x: Any) -> Tensor:
            return m(x).square().sum(1)  # type: ignore[no-any-return]

        return PrivateTrainer(module, loss, plan, optimizer, _Rows(device), 20, seed=3)

    whole, cut, resumed = trainer(), trainer(), trainer()
    list(whole.run())
    list(cut.run(3))
    resumed.restore(cut.state())
    list(resumed.run())
    off = length({name: whole.parameters[name] - resumed.parameters[name] for name in whole.parameters})
    yield {"check": "a run that was cut and resumed is the uncut one", "off": off, "holds": off < 1e-5}


# --- whole steps -----------------------------------------------------------------------------------------------------


def whole(device: str, small: bool) -> Iterator[Line]:
    """Whole private steps from image files: images a second, and the part that waits for noise."""
    images, pixels, physical, taken = (4, 64, 2, 2) if small else (64, 640, 32, 5)
    with tempfile.TemporaryDirectory() as folder:
        file = write_dataset(Path(folder), 2 * images)
        for name in ("yolo26n",) if small else ("yolo26n", "yolo11x"):
            for precision in ("fp32", "bf16"):
                what = f"{name} {precision}, steps of {images} x {pixels} px"

                def one(name: str = name, precision: str = precision, what: str = what) -> Iterator[Line]:
                    yield {"what": what, **_whole(file, name, device, precision, (images, pixels, physical, taken))}

                yield from tried(what, one)


def _whole(file: Path, name: str, device: str, precision: str, sizes: tuple[int, int, int, int]) -> Line:
    images, pixels, physical, taken = sizes
    model = detector(Case("gpu", "time", name, device=device))
    dataset = DetectionDataset(load_data(file), "train", pixels)
    loader = StepLoader(dataset, physical, 0 if device == "cpu" else 8, device)
    plan = PrivacyPlan(images / len(dataset), taken + 1, 1.0, 1.0, 1e-5, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    waited: list[float] = []
    real = noise.privatize

    def timed(value: Any, **how: Any) -> Any:
        began = now(device)
        noised = real(value, **how)
        waited.append(now(device) - began)
        return noised

    noise.privatize = timed
    try:
        loss = PerImageLoss(precision=precision)
        trainer = PrivateTrainer(model, loss, plan, optimizer, loader, len(dataset), probe=False)
        ends = [time.perf_counter() for _ in trainer.run() if now(device)]
    finally:
        noise.privatize = real
    seconds = [after - before for before, after in itertools.pairwise(ends)]  # the first one prepares
    step = statistics.median(seconds)
    return {
        "seconds_a_step": step,
        "images_a_second": images / statistics.mean(seconds),
        "waits_for_noise": statistics.median(waited[1:]) / step,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


# --- the table -------------------------------------------------------------------------------------------------------


def table(device: str, small: bool) -> Iterator[Line]:
    """Gradient steps: fused over plain and over Ultralytics' own, Opacus over fused; time and peak memory."""
    models = ("yolo26n",) if small else ("yolo26n", "yolo26s", "yolo26m", "yolo11x")
    pixels, repeats = (64, 1) if small else (640, 7)
    for images in (2,) if small else (16, 64, 32):
        for model in models:
            for precision in ("fp32", "bf16"):
                with_opacus = images <= 16
                methods = ("plain", "fused", "ultralytics", *(("opacus",) if with_opacus else ()))
                case = Case("gpu", "time", model, pixels, images, methods, repeats, precision=precision, device=device)
                what = f"{model} {precision}, {images} x {pixels} px"
                yield from tried(what, lambda case=case, what=what: _row(case, what))  # type: ignore[misc]


def _row(case: Case, what: str) -> Iterator[Line]:
    todo = steps(case)
    left_out: dict[str, str] = {}
    for name in list(todo):
        try:
            todo[name]()
        except Exception as error:
            left_out[name] = " ".join(str(error).split())[:200]
            del todo[name]
    for name, why in left_out.items():
        yield {"what": f"{what}, {name}", "not_done": why}
    seconds = take_turns(todo, case.repeats, case.device, warm_up=())
    memory = {name: peak(step, case.device) for name, step in todo.items()}
    line: Line = {"what": what, "seconds": {name: statistics.median(found) for name, found in seconds.items()}}
    for one, other in (("fused", "plain"), ("fused", "ultralytics"), ("opacus", "fused")):
        if one in todo and other in todo:
            ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
            line[f"{one}/{other}"] = statistics.median(ratios)
            line[f"{one}/{other} memory"] = memory[one] / max(memory[other], 1e-9)
    if "fused" in todo:
        line["images_a_second"] = case.images / line["seconds"]["fused"]
    yield {**line, "peak_mib": memory}
