"""What a private run would be worth, tried on public images that stand in for the private ones.

A run of B images a step with noise multiplier sigma has noise of sigma C / B on its mean gradient. A rehearsal has the
same noise from batches of b images, at a B / b-th of the cost (Sander, Stock and Sablayrolles 2023, "TAN without a
burn"): multiplier sigma b / B, and as many steps. It says nothing of how alike stand-in and private images are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..datasets.contents import files_held
from ..datasets.identity import pictures_in
from ..detection.data import DetectionDataset, load_data
from ..detection.evaluate import KEYS, evaluate
from ..errors import ConfigError, DataError
from ..privacy.plan import PrivacyPlan
from ..settings import resolve as settings
from ..settings.schema import TrainConfig
from ..support.devices import usable_device
from ..support.files import read_json, write_json
from ..support.released import found_start
from .build import augmentation_of, model_to_train, with_rate
from .by_time import settle_steps
from .declared_public import DeclaredPublic
from .outputs import OutputFiles
from .scales import PublicVal, settle_clipping
from .task import Task

FILE = "rehearsal.json"
BATCH = 32  # images a step: a mean of fewer has noise of its own that a private run does not have
_NO_NOISE = 1e-3


@dataclass(frozen=True)
class Cell:
    """One private run that is rehearsed.

    Attributes:
        size: Its declared number of images.
        epsilon: Its target; None for the same without noise.
        times: Its learning rate, in units of the one that the settings or the rule give.
    """

    size: int
    epsilon: float | None
    times: float


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal came to; ``steps`` to ``trainable`` are of the private run that it stands for.

    Attributes:
        cell: What was rehearsed.
        steps, batch, noise_multiplier, lr, trainable, head, ema: The private run's.
        images: Images in a step of the rehearsal.
        mAP50, mAP: On the stand-in's val split.
        seconds: It took.
    """

    cell: Cell
    steps: int
    batch: int
    noise_multiplier: float
    lr: float
    trainable: Any
    head: str
    ema: float
    images: int
    mAP50: float
    mAP: float
    seconds: float


def cells_of(sizes: Sequence[int], epsilons: Sequence[float], times: Sequence[float]) -> list[Cell]:
    """Return what to rehearse, the run without noise last.

    Raises:
        ConfigError: A list is empty, or has a number that is not above 0.
    """
    for name, values in (("sizes", sizes), ("epsilons", epsilons), ("rates", times)):
        if not values or not all(value > 0 for value in values):
            raise ConfigError(f"{name}={list(values)} must be a list of numbers above 0")
    private = [Cell(*of) for of in product(sorted(set(sizes)), sorted(set(epsilons), reverse=True), sorted(set(times)))]
    return [*private, Cell(max(sizes), None, 1.0)]


def rehearse(
    config: TrainConfig, cells: Sequence[Cell], on_step: Callable[[int, int], None] = lambda step, steps: None
) -> Iterator[tuple[Rehearsed, bool]]:
    """Rehearse private runs one after the other; what is in ``output_dir`` from before is not done again.

    Args:
        config: Resolved settings of the private run, but for ``data``, which names public images.
        cells: What to rehearse.
        on_step: Told of every step of a rehearsal, and of how many it has.

    Yields:
        What each came to, and whether it was there before.

    Raises:
        DptrainError: The settings, the start or the images cannot be used, the ledger knows an image, or the folder
            holds another rehearsal.
    """
    _refuse(config)
    file = Path(config.output_dir) / FILE
    own = _settings(config)
    found = _earlier(file, own)
    with files_held():
        stage = None
        for cell in cells:
            if cell in found:
                yield found[cell], True
                continue
            stage = stage or _Stage(config, on_step)
            found[cell] = stage.play(cell)
            write_json(file, {"settings": own, "rows": [asdict(row) for row in found.values()]})
            yield found[cell], False


def _refuse(config: TrainConfig) -> None:
    privacy = config.privacy
    if privacy.unit != "image":
        raise ConfigError(
            f"privacy.unit={privacy.unit}: in a rehearsal an image stands for a group; leave it out, and give the "
            "number of groups as privacy.dataset_size"
        )
    if privacy.noise != "independent" or config.noise.exact:
        raise ConfigError("a rehearsal has independent noise: leave privacy.noise and noise.exact out")
    if privacy.noise_multiplier is not None or privacy.sample_rate is not None or config.tuning.method != "none":
        raise ConfigError("a rehearsal finds the noise by epsilon: give privacy.epsilon and privacy.dataset_size alone")
    if config.validation != "public":
        raise ConfigError("a rehearsal is measured on the stand-in's val split: leave validation out")
    if "," in config.device:
        raise ConfigError(f"device={config.device}: a rehearsal runs on one device")


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What all rehearsals of a folder share."""
    values = asdict(config)
    for name in (
        "output_dir",
        "workers",
        "physical_batch_size",
        "device",
        "tracking",
        "budget",
        "seal",
        "resume",
        "download",
    ):
        values.pop(name)
    values["privacy"] = {k: v for k, v in values["privacy"].items() if k not in ("epsilon", "dataset_size", "delta")}
    return values


def _earlier(file: Path, own: dict[str, Any]) -> dict[Cell, Rehearsed]:
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
        rows = [Rehearsed(**{**row, "cell": Cell(**row["cell"])}) for row in content["rows"]]
        same = content["settings"] == own
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read as a rehearsal: choose another output_dir") from error
    if not same:
        raise ConfigError(f"{file} holds a rehearsal of other settings: choose another output_dir")
    return {row.cell: row for row in rows}


class _Stage:
    """The stand-in: its images, compared with the ledger once."""

    def __init__(self, config: TrainConfig, on_step: Callable[[int, int], None]) -> None:
        config = replace(config, model=found_start(config.model, download=config.download))
        self.config, self.on_step = config, on_step
        self.device = torch.device(usable_device(config.device))
        self.data = load_data(config.data, config.labels)
        if not self.data.val:
            raise DataError(f"{config.data} has no val split: a rehearsal is measured on one")
        self.train = DetectionDataset(self.data, "train", config.imgsz, augmentation_of(config), verify=False)
        val = DetectionDataset(self.data, "val", config.imgsz, verify=False)
        fix = "a rehearsal releases what it learns without a guarantee: name public images"
        self.pictures = pictures_in(self.train.image_files)
        compared = ""
        for images in (self.train, val):
            declared = DeclaredPublic("the images of the stand-in", images.image_files, fix)
            compared = declared.refuse_protected(config.budget)
            pictures = declared.pictures
        self.val = PublicVal(val, pictures, compared)

    def play(self, cell: Cell) -> Rehearsed:
        """Rehearse one run."""
        began = time.perf_counter()
        epsilon = cell.epsilon or self.config.privacy.epsilon or 8.0
        config = replace(
            self.config,
            privacy=replace(self.config.privacy, epsilon=epsilon, dataset_size=cell.size),
            resume=False,
        )
        config = settle_steps(config)
        plan = settings.make_plan(config)
        config = settings.with_plan(config, plan)
        model = model_to_train(config, self.data).to(self.device)
        config = with_rate(config, plan, model)
        config, plan, _ = settle_clipping(
            config, plan, self.data, model, self.pictures, self.val, OutputFiles(config.seal)
        )
        decay = config.ema.decay
        assert config.optimizer.lr is not None and decay is not None
        lr = config.optimizer.lr * cell.times
        config = replace(config, optimizer=replace(config.optimizer, lr=lr))
        small = self._small(plan, noise=cell.epsilon is not None)
        at_once = min(BATCH, small.expected_batch_size)
        if config.physical_batch_size != "auto":
            at_once = int(config.physical_batch_size)
        task = Task(config, small, model, self.train, list(self.pictures.values()), None, None, at_once).settled()
        trainer = task.trainer(self.device)
        for step in trainer.run():
            self.on_step(step, plan.steps)
        with trainer.average.applied():
            values = evaluate(model, self.val.images, batch_size=at_once, device=self.device).values
        return Rehearsed(
            cell=cell,
            steps=plan.steps,
            batch=plan.expected_batch_size,
            noise_multiplier=plan.noise_multiplier if cell.epsilon is not None else 0.0,
            lr=lr,
            trainable=config.trainable,
            head=str(config.head),
            ema=decay,
            images=small.expected_batch_size,
            mAP50=round(values[KEYS[2]], 4),
            mAP=round(values[KEYS[3]], 4),
            seconds=round(time.perf_counter() - began, 1),
        )

    def _small(self, plan: PrivacyPlan, noise: bool) -> PrivacyPlan:
        """Return a plan with the same noise on the mean gradient, of fewer images."""
        batch = min(BATCH, plan.expected_batch_size, len(self.train))
        return replace(
            plan,
            noise_multiplier=plan.noise_multiplier * batch / plan.expected_batch_size if noise else _NO_NOISE,
            expected_batch_size=batch,
            sample_rate=batch / len(self.train),
        )
