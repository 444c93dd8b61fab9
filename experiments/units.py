"""What image-level privacy does not protect when a patient has many images, and what group-level privacy costs.

    python -m experiments.units             # the attack, about three minutes on one core
    python -m experiments.units --cost      # what folding the examples of a unit costs, about two minutes

Every "patient" is a white-box Dirac canary: a gradient of one coordinate, in each of the patient's images. Half of the
patients are in, by a fair coin. Someone who sees every iterate guesses which ones (Steinke, Nasr and Jagielski 2023),
once from runs that protect images, with 1 to 40 images a patient, and once from a run that protects patients. Beside
each bound from below stands the exact epsilon of one patient in an image-level run (Ganesh 2024, by dp-accounting).

Writes experiments/results/units.json, and docs/images/units.png. No image of anybody is used.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dp_accounting.dp_event import MixtureOfGaussiansDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from scipy import special, stats
from torch import Tensor

import dptrain
from dptrain import PrivacyPlan
from dptrain.audit import all_bounds
from dptrain.audit.canaries import DiracLoss, choose_sites, read_sites
from dptrain.audit.scenes import draw_scene
from dptrain.audit.small import SceneExamples, SmallNet, class_losses
from dptrain.detection.data import StepLoader
from dptrain.privacy.accounting import rdp_curve
from dptrain.privacy.streams import NoiseStream
from dptrain.privacy.units import UnitExamples
from dptrain.training.trainer import PrivateTrainer
from experiments.sweep import machine

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "units.json"
PICTURE = HERE.parent / "docs" / "images" / "units.png"
EPSILON, DELTA, RATE, STEPS = 1.0, 1e-5, 0.1, 30
PATIENTS, SCENES, SIDE = 600, 64, 16
IMAGES = (1, 2, 5, 10, 40)
GUESSES = 200
IMAGES_PER_GROUP = 8
_STEP = 1e-4  # what noise moves a weight by in a step


class Patients:
    """Public scenes, and after them the images of the patients that are in, each blank and marked as its canary."""

    def __init__(self, scenes: SceneExamples, included: np.ndarray, images: int) -> None:
        self.scenes, self.imgsz = scenes, scenes.imgsz
        self.patients = np.flatnonzero(included).repeat(images)

    def __len__(self) -> int:
        return len(self.scenes) + len(self.patients)

    def sample(self, index: int, seed: int = 0) -> dict[str, Tensor]:
        if index < len(self.scenes):
            return self.scenes.sample(index, seed)
        return {
            "img": torch.zeros((3, self.imgsz, self.imgsz), dtype=torch.uint8),
            "cls": torch.tensor([[-1.0 - int(self.patients[index - len(self.scenes)])]]),
            "bboxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]]),
        }

    def groups(self) -> list[tuple[str, int]]:
        scenes = [("scene", number) for number in range(len(self.scenes))]
        return scenes + [("patient", int(number)) for number in self.patients]


def attack(unit: str, images: int) -> dict[str, Any]:
    """Train once on about half of the patients, by the plan; return the bound that the guesses prove."""
    plan = PrivacyPlan.calibrate(
        epsilon=EPSILON, delta=DELTA, sample_rate=RATE, steps=STEPS, expected_batch_size=64, unit=unit
    )
    rng = np.random.default_rng()
    included = NoiseStream().uniform(PATIENTS) < 0.5
    data = Patients(SceneExamples([draw_scene(SIDE, rng) for _ in range(SCENES)]), included, images)
    units = UnitExamples(data.groups() if unit == "group" else range(len(data)), IMAGES_PER_GROUP)
    module = SmallNet()
    sites = choose_sites(module, PATIENTS)
    rate = _STEP * plan.expected_batch_size / (plan.noise_multiplier * plan.clip_norm)
    trainer = PrivateTrainer(
        module, DiracLoss(class_losses, sites, plan.clip_norm), plan,
        torch.optim.SGD(module.parameters(), lr=rate), StepLoader(data, 256, units=units), len(units),
    )  # fmt: skip
    began, scores, before = time.perf_counter(), np.zeros(PATIENTS), read_sites(module, sites)
    counts = np.arange((images if unit == "image" else 1) + 1)
    chances = stats.binom(counts[-1], RATE).logpmf(counts)
    for _ in trainer.run():
        after = read_sites(module, sites)
        x = (before - after)[:, None] * (plan.noise_multiplier / _STEP)  # what a step's sum has there, in clip norms
        ratios = chances + (2.0 * counts * x - counts**2) / (2.0 * plan.noise_multiplier**2)
        scores += special.logsumexp(ratios, axis=1)  # of "in" to "out": no test beats it
        before = after
    found = all_bounds(scores, included, [GUESSES], delta=DELTA)[0]
    return {
        "unit": unit, "images": images, "claimed": plan.epsilon(), "noise_multiplier": plan.noise_multiplier,
        "bound": found.epsilon_lower_bound, "correct": found.correct, "guesses": found.guesses,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def of_one_patient(images: int, plan: PrivacyPlan) -> dict[str, float | None]:
    """What a run that protects images costs a patient of so many: exactly, and by two general conversions."""
    counts = np.arange(images + 1)
    step = MixtureOfGaussiansDpEvent(
        plan.noise_multiplier, counts.tolist(), stats.binom(images, plan.sample_rate).pmf(counts).tolist()
    )
    fine = 1e-3 if images <= 10 else 1e-2  # the reading is an upper bound either way
    exact = PLDAccountant(value_discretization_interval=fine).compose(SelfComposedDpEvent(step, plan.steps))
    # For pure epsilon: images * epsilon; a delta grows by (e^(k eps) - 1) / (e^eps - 1) with it.
    weak = plan.delta * math.expm1(images * plan.epsilon()) / math.expm1(plan.epsilon())
    # Mironov 2017, proposition 2: 2^c units at order a / 2^c cost 3^c times the divergence at order a.
    doublings = math.ceil(math.log2(images))
    curve = {order: value for order, value in rdp_curve(plan.event()).items() if order >= 2 ** (doublings + 1)}
    orders, values = [order / 2**doublings for order in curve], [3**doublings * value for value in curve.values()]
    return {
        "exact": float(exact.get_epsilon(plan.delta)),
        "times": images * plan.epsilon(),
        "delta_then": weak if weak < 1 else None,
        "renyi": float(compute_epsilon(orders, values, plan.delta)[0]) if orders else None,
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Epsilon of one patient by the number of the patient's images: claimed, exact, and found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4), layout="constrained")
    axes = figure.subplots()
    rows = results["by_image"]
    images = [row["images"] for row in rows]
    axes.plot(images, [row["exact"] for row in rows], "-", color="tab:red", label="image-level run: exact, one patient")
    axes.plot(images, [row["bound"] for row in rows], "o", color="tab:red", label="image-level run: found by attack")
    axes.axhline(rows[0]["claimed"], color="black", linestyle="dashed", label="claimed, per image or per patient")
    group = results["by_group"]
    axes.plot([group["images"]], [group["bound"]], "s", color="tab:blue", label="group-level run: found by attack")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_xticks(images, [str(count) for count in images])
    axes.set_yticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images of one patient")
    axes.set_ylabel(f"epsilon of one patient (delta {DELTA:g})")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def cost(images: int = 4, copies: int = 4, side: int = 320) -> dict[str, Any]:
    """Time of a clipped sum over ``images * copies`` examples, in units of several or of one, and without privacy."""
    from dptrain.detection import load_model
    from dptrain.detection.loss import PerImageLoss

    count = images * copies
    torch.manual_seed(0)
    model, loss = load_model("yolo26n.yaml", 3, norm="group"), PerImageLoss()
    boxes = 5
    batch = {
        "img": torch.rand(count, 3, side, side),
        "batch_idx": torch.arange(count).repeat_interleave(boxes).float(),
        "cls": torch.zeros(count * boxes, 1),
        "bboxes": torch.cat((0.3 + 0.4 * torch.rand(count * boxes, 2), 0.1 + 0.3 * torch.rand(count * boxes, 2)), 1),
    }
    parameters = [p for p in model.parameters() if p.requires_grad]

    def private(units: list[int] | None) -> Callable[[], object]:
        own = None if units is None else torch.tensor(units)
        return lambda: dptrain.clipped_gradient_sum(model, loss, batch, 1.0, units=own)

    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: torch.autograd.grad(loss(model, batch).sum(), parameters),
        "units of one": private(None),
        f"units of {copies}": private([number // copies for number in range(count)]),
        "units of 1, 2, 4 and the rest": private([min(number.bit_length() - 1, 3) for number in range(1, count + 1)]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(4):  # the first chooses the fastest ways
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "model": "yolo26n", "examples": count, "side": side, "seconds": {k: round(v, 3) for k, v in medians.items()},
        "over_plain": {k: round(v / medians["plain"], 3) for k, v in medians.items()},
        "over_units_of_one": {k: round(v / medians["units of one"], 3) for k, v in medians.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.units", description=__doc__.splitlines()[0])
    parser.add_argument("--cost", action="store_true", help="measure what folding costs, and no more")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if parser.parse_args().cost:
        results["cost"] = {**cost(), "machine": machine()}
    else:
        by_image = [attack("image", images) for images in IMAGES]
        plan = PrivacyPlan(RATE, STEPS, by_image[0]["noise_multiplier"], 1.0, DELTA, 64)
        results["by_image"] = [{**row, **of_one_patient(row["images"], plan)} for row in by_image]
        results["by_group"] = attack("group", max(IMAGES))
        results["plan"] = {"epsilon": EPSILON, "delta": DELTA, "sample_rate": RATE, "steps": STEPS}
        results["machine"] = machine()
        draw(results, PICTURE)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
