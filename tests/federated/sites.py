"""Sites and their server's part, made small, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dptrain.datasets.sources import load_data
from dptrain.detection import load_model, save_weights
from dptrain.federated.exchange import Offer, Release, Terms, frozen_hash
from dptrain.federated.site import take_round
from dptrain.gradients import trainable_parameters
from dptrain.ledger import BudgetLedger
from dptrain.run.build import model_to_train
from dptrain.sealing.weights import weights_hash
from dptrain.settings.resolve import from_kwargs, resolve

from ..conftest import SMALL, dataset_maker

ROUNDS, STEPS = 3, 6


def write_start(folder: Path) -> Path:
    """Write the checkpoint that all sites begin from."""
    torch.manual_seed(5)
    return save_weights(load_model(SMALL, 2, names={0: "green", 1: "blue"}), folder / "start.pt")


def write_site(folder: Path, start: Path, *, images: int = 6, pictures: int = 0, **changes: Any) -> Path:
    """Make a site: its images, its ledger, and its settings, which are returned."""
    folder.mkdir()
    data = folder / "data"
    data.mkdir()
    dataset_maker(data)(train=images, seed=pictures)
    values = {
        "name": folder.name,
        "rounds": ROUNDS,
        "steps": STEPS,
        "model": str(start),
        "data": "data/data.yaml",
        "imgsz": 64,
        "trainable": "head",
        "physical_batch_size": 2,
        "validation": "off",
        "privacy": {"noise_multiplier": 1.0, "dataset_size": 6, "expected_batch_size": 3, "delta": 1e-3},
        "optimizer": {"lr": 1e-3},
        "output_dir": "out",
        "tracking": {"enabled": False},
        "budget": {"url": "sqlite:///budget.db"},
        **changes,
    }
    file = folder / "site.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML
    return file


def first_offer(site: Path) -> Offer:
    """Return what an honest server sends in round 1 to sites of these settings."""
    values = json.loads(site.read_text())
    rounds, _ = values.pop("rounds"), values.pop("name")
    config = resolve(from_kwargs(**values))
    data = load_data(site.parent / config.data)
    model = model_to_train(config, data)
    trained = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    frozen = {name: t for name, t in model.state_dict().items() if name not in trained}
    assert config.steps is not None
    terms = Terms(
        rounds, config.steps // rounds, weights_hash(Path(config.model)), frozen_hash(frozen), ("green", "blue")
    )
    return Offer(1, terms, trained)


def average(releases: Sequence[Release]) -> dict[str, Tensor]:
    """Return the average by declared sizes."""
    total = sum(release.dataset_size for release in releases)
    return {
        name: sum((r.parameters[name] * (r.dataset_size / total) for r in releases), torch.zeros(()))
        for name in releases[0].parameters
    }


def play(sites: Sequence[Path], rounds: int = ROUNDS) -> list[list[Release]]:
    """Play rounds with all sites, and return what they release."""
    offer, played = first_offer(sites[0]), []
    for number in range(1, rounds + 1):
        played.append([take_round(site, replace(offer, number=number)) for site in sites])
        offer = replace(offer, parameters=average(played[-1]))
    return played


def spent(site: Path) -> list[int]:
    """Return the steps that a site's ledger has charged, run by run."""
    ledger = BudgetLedger(f"sqlite:///{site.parent / 'budget.db'}")
    return [run.charged for run in ledger.history()]


def equal(first: dict[str, Tensor] | Any, second: dict[str, Tensor] | Any) -> bool:
    """Whether two sets of parameters are the same to the last bit."""
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
