"""Evaluation on a val split that is private: a few noised releases, planned, charged and counted as steps are.

How many there are, and after which steps, is fixed before the first one. Their whole cost is reserved under the val
images' own dataset in the ledger before any of them is evaluated on. Each is counted, in the folder and in the ledger,
before its noise is drawn, and never made again: what a crash loses stays spent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..datasets.groups import in_words as groups_in_words
from ..datasets.identity import pictures_in
from ..datasets.own import is_own
from ..datasets.repeats import refuse_repeats
from ..detection import DetectionModel
from ..detection.data import DataConfig, DetectionDataset
from ..detection.estimates import Estimates
from ..detection.noised import evaluate_noised
from ..errors import BudgetError, ConfigError, DataError, PrivacyError
from ..privacy.counts import ReleasePlan
from ..privacy.streams import NoiseStream
from ..privacy.units import UnitExamples
from ..settings.schema import TrainConfig
from ..training.journal import StepJournal
from .charge import RunCharge
from .declared_public import refuse_shared
from .folder import RELEASES

PART = "val_"  # of the names of the owner's files

logger = logging.getLogger(__name__)


@dataclass
class PrivateValidation:
    """The private val split of one run, and what may be released of it.

    Attributes:
        images: The split.
        units: Its privacy units.
        plan: What is released.
        every: Steps between two releases; the last one is after the last step.
        charge: Of all releases, under the val images' own dataset.
        name: What the val images are called.
        declared_size: Number of their units, as declared.
        groups: How groups are told, in words, where they are protected.
        seed: Of a test run, whose guarantee is void.
    """

    images: DetectionDataset
    units: UnitExamples
    plan: ReleasePlan
    every: int
    charge: RunCharge
    name: str
    declared_size: int | None
    groups: str | None
    seed: int | None

    def __post_init__(self) -> None:
        self._journal: StepJournal | None = None

    @property
    def begun(self) -> int:
        """Releases whose noise was drawn, or may have been."""
        assert self._journal is not None
        return self._journal.steps

    def open(self, folder: Path, resume: bool, steps: int) -> str:
        """Open the count of releases, and reserve all of them in the ledger; return a line for the screen.

        Args:
            folder: Of the run.
            resume: Whether the run that is there goes on.
            steps: Training steps that it has started.

        Raises:
            PrivacyError: The count of a resumed run is gone.
            BudgetError: The ledger has no room, or cannot be reached.
        """
        file = folder / RELEASES
        new = not resume or (steps == 0 and not file.exists())
        try:
            self._journal = StepJournal(file, new=new)
        except FileNotFoundError as error:
            raise PrivacyError(
                f"{file} is gone: it counts how often the private val images were released; put it back, or start a "
                "new run"
            ) from error
        try:
            line = self.charge.begin(folder, resume, self._journal.steps)
        except BudgetError as error:
            raise type(error)(f"of the val images (validation=private): {error}") from error
        self._journal.record(self.charge.taken)
        return f"val images: {line}"

    def due(self, step: int, steps: int) -> int | None:
        """Number of the release that belongs after a step of a run of ``steps``, from 1; None where none does.

        None too where it was begun before, in a process that was killed: it is spent, and not made again.
        """
        if step == 0 or (step % self.every and step != steps):
            return None
        number = -(-step // self.every)
        if number <= self.begun:
            logger.warning("the evaluation after step %d was begun before: it stays spent, and is not made again", step)
            return None
        return number

    def evaluate(self, model: DetectionModel, number: int, device: torch.device) -> Estimates:
        """Make release ``number``, once: it is counted before anything of it is computed.

        Raises:
            PrivacyError: It was begun before, or is beyond the plan.
            BudgetError: The ledger gives no leave.
            DataError: A val image cannot be read; the release stays spent.
        """
        assert self._journal is not None
        if not self.begun < number <= self.plan.releases:
            raise PrivacyError(
                f"release {number} of the val images is not the next of {self.plan.releases}, of which {self.begun} "
                "were begun: it would not be accounted for"
            )
        self.charge.lease(number)
        self._journal.record(number)
        return evaluate_noised(
            model,
            self.images,
            self.units,
            noise_multiplier=self.plan.noise_multiplier,
            stream=NoiseStream(self.seed, "validation").at(number),
            size=self.declared_size,
            device=device,
        )

    def close(self, reason: str) -> bool:
        """Charge the releases that were begun, and give back the others; return whether the ledger has it."""
        if self._journal is None:
            return True
        settled = self.charge.settle(self._journal.steps, reason)
        self._journal.close()
        self._journal = None
        return settled

    def facts(self, begun: int) -> dict[str, Any]:
        """Return what the statement says of it, all of it declared or planned."""
        return {
            "dataset": {
                "name": self.name,
                "declared_size": self.declared_size,
                **({} if self.groups is None else {"groups": self.groups}),
            },
            "noise_multiplier": self.plan.noise_multiplier,
            "releases": begun,
            "planned_releases": self.plan.releases,
            "delta": self.plan.delta,
            "unit": self.plan.unit,
            "budget": self.charge.facts,
        }


def prepare_private(
    config: TrainConfig,
    plan: ReleasePlan,
    data: DataConfig,
    train: Mapping[Path, bytes],
    groups: Sequence[str] | None,
    name: str,
) -> PrivateValidation:
    """Look at the val images, and open the ledger; what is refused is refused here, and nothing is written.

    Args:
        config: Resolved settings.
        plan: What is going to be released.
        data: The dataset.
        train: The identity of the picture in every training image.
        groups: The group of every val image, where groups are protected.
        name: What the dataset is called.

    Raises:
        DataError: A training image is among them, one is there twice, or one cannot be read.
        BudgetError: The ledger cannot be reached.
    """
    if not data.val:
        raise ConfigError(f"validation=private, and {config.data} has no val split: give one, or validation=off")
    images = DetectionDataset(data, "val", config.imgsz, verify=False)
    pictures = pictures_in(images.image_files)
    why = "which are charged as a dataset of their own"
    refuse_shared(pictures, train, "the val images", why, "remove it from val, or set validation=off")
    together = config.privacy.copies_are_one
    if not together:
        try:
            refuse_repeats(pictures, groups)
        except DataError as error:
            raise DataError(f"{error} (validation=private)") from error
    of_image: Sequence[Any] = groups if groups is not None else list(pictures.values())
    charge = RunCharge(
        replace(config.budget, name=config.validation_privacy.budget),
        plan.event(),
        plan.delta,
        plan.unit,
        pictures,
        f"{name}-val",
        groups,
        together,
        steps=plan.releases,
        boxes=data.boxes_in("val"),
        part=PART,
    )
    charge.prepare()
    assert config.evaluate_every is not None, "settings.with_plan fills it in"
    return PrivateValidation(
        images=images,
        units=UnitExamples(of_image),
        plan=plan,
        every=config.evaluate_every,
        charge=charge,
        name=f"{name}-val",
        declared_size=config.validation_privacy.dataset_size,
        groups=None if groups is None else groups_in_words(config.privacy.groups, is_own(config.data)),
        seed=config.seed,
    )
