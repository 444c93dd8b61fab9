"""From settings and a plan to a run that is ready to start. All that can be refused is refused here.

Nothing is written before :func:`prepare` returns, and nothing is decided after it: :class:`~dptrain.run.job.Run` only
executes what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.data_yaml import data_name
from ..datasets.grouping import grouped
from ..datasets.identity import pictures_in
from ..datasets.listing import public_images
from ..datasets.repeats import refuse_repeats
from ..detection import DetectionModel
from ..detection.data import DetectionDataset, load_data
from ..detection.memory import physical_batch_size
from ..privacy.plan import PrivacyPlan
from ..privacy.units import UnitExamples
from ..sealing.weights import is_weights, weights_hash
from ..settings.schema import DEFAULT_IMAGES_PER_GROUP, FREE_TO_CHANGE, OFF, PUBLIC, TrainConfig
from ..settings.to_plan import make_release_plan
from ..statement.start_runs import StartRun
from ..support.devices import usable_device
from ..training.processes import Group
from ..training.trainer import PrivateTrainer
from .build import augmentation_of, model_to_train, with_rate
from .charge import RunCharge
from .declared_public import DeclaredPublic
from .facts import runs_behind
from .folder import RunFolder
from .notes import labels_read, same_source
from .outputs import OutputFiles
from .private_validation import PrivateValidation, prepare_private
from .scales import PublicVal, ScaledBy, settle_clipping
from .task import Task


@dataclass(frozen=True)
class PaidByTuning:
    """What a tuning gives to each of its candidates, which it has paid for.

    Attributes:
        facts: The ``tuning`` section of the statement.
        charge: Of the whole tuning, reserved before; None while it is only tried whether a candidate can start.
        start_runs: The private runs behind the start of any candidate.
    """

    facts: Mapping[str, Any]
    charge: RunCharge | None
    start_runs: Sequence[StartRun]


@dataclass(frozen=True)
class Prepared:
    """All that is decided before the first step of a run. One run uses it up: it trains ``model`` by ``trainer``.

    Attributes:
        config: The settings, with all that the plan and the rule of the learning rate settle written out.
        plan: The plan, with the scales that its clip rule asks for.
        folder: Where the run goes; not there yet, unless the run is resumed.
        outputs: How its files are written, sealed or not.
        device: Where it trains.
        data_name: What the dataset is called.
        model: The detector, with its start weights.
        start_hash: sha256 of the start weights; None for a random start.
        start_runs: The private runs behind the start.
        pictures: What it draws from: the identity of the picture in every image file.
        groups: The group of every image, where groups are protected.
        validation: The public split that it is evaluated on; None without one.
        private_validation: The private one, of which only noised counts are released; None without one.
        scaled_by: The public images that the layers' scales were measured on; None without scales.
        rate_by_rule: Whether nobody gave a learning rate: of the run, or of its phases.
        physical_batch_size: How many examples go through the model at once.
        trainer: Takes the steps; each is counted in the folder's journal before its sum is noised.
        group: Of the processes that take the steps, of which this is the first; None where it is the only one.
        charge: What the run spends: its own, or that of the tuning.
        tuning: The ``tuning`` section of the statement; None for a run that pays for itself.
        notes: What the data's owner is told of the images and labels, and nobody else.
    """

    config: TrainConfig
    plan: PrivacyPlan
    folder: RunFolder
    outputs: OutputFiles
    device: torch.device
    data_name: str
    model: DetectionModel
    start_hash: str | None
    start_runs: Sequence[StartRun]
    pictures: Mapping[Path, bytes]
    groups: Sequence[str] | None
    validation: DetectionDataset | None
    private_validation: PrivateValidation | None
    scaled_by: ScaledBy | None
    rate_by_rule: tuple[bool, ...]
    physical_batch_size: int
    trainer: PrivateTrainer
    group: Group | None
    charge: RunCharge
    tuning: Mapping[str, Any] | None
    notes: Sequence[str]

    @property
    def pays(self) -> bool:
        """Whether the run pays for itself; else the tuning has paid, and the ledger is not told of its steps."""
        return self.tuning is None

    @property
    def where(self) -> str:
        """On what the run trains, in words."""
        return str(self.device) if self.group is None else f"{self.group.count} processes on {self.device.type}"

    def settings(self) -> dict[str, Any]:
        """Return what must not change when the run is resumed, all of it public."""
        values = asdict(self.config)
        for name in FREE_TO_CHANGE:
            values.pop(name)
        del values["seal"]
        if not self.config.phases:
            del values["phases"]
        if self.private_validation is None:
            del values["validation_privacy"]
        if self.config.seal.recipients:
            values["sealed"] = True
        return {
            **values,
            "start_sha256": self.start_hash,
            **({} if self.scaled_by is None else {"scales_of_pictures_sha256": self.scaled_by.sha256}),
            **({"start_runs_found": [run.model_dump() for run in self.start_runs]} if self.start_runs else {}),
            "names": [self.model.names[i] for i in sorted(self.model.names)],
        }


def prepare(
    config: TrainConfig, plan: PrivacyPlan, paid: PaidByTuning | None = None, group: Group | None = None
) -> Prepared:
    """Decide all that a run needs before its first step; nothing is written.

    Args:
        config: Resolved settings, with the plan written out (``settings.resolve.with_plan``).
        plan: The plan that they make, without scales, which are measured here, and flat where the settings leave the
            clip rule to the run (``privacy.clipping=auto``).
        paid: Given for a tuning's candidate. Without it the run pays for itself.
        group: Of several processes, of which this is the first; the others are handed their task.

    Raises:
        DptrainError: The run cannot start: one line with what is wrong and the fix.
    """
    folder, outputs = RunFolder(Path(config.output_dir), config.resume), OutputFiles(config.seal)
    folder.check()
    device = torch.device(usable_device(config.device)) if group is None else group.device
    data = load_data(config.data, config.labels)
    with _seeded(config.seed):
        model = model_to_train(config, data).to(device)
    settled = with_rate(config, plan, model)
    start = Path(config.model)
    start_hash = weights_hash(start) if is_weights(start) else None
    start_runs = runs_behind(start, config.start_runs) if paid is None else paid.start_runs
    folder.refuse_inside(data)
    evaluates = config.validation == PUBLIC and bool(data.val)
    found = grouped(config.privacy.groups, plan.unit, data, config.validation != OFF)
    data, groups = found.data, found.train
    dataset = DetectionDataset(data, "train", config.imgsz, augmentation_of(config), verify=False)
    small: list[np.ndarray] = []
    pictures = pictures_in(dataset.image_files, small)  # each decoded once, by which it is also checked
    # What shows somebody who is in another unit is not trained on, and private all the same.
    private = pictures | pictures_in(found.left_out)
    if not config.privacy.copies_are_one:
        refuse_repeats(private, groups and [*groups, *found.left_out.values()])
    validation = DetectionDataset(data, "val", config.imgsz, verify=False) if evaluates else None
    name = data_name(Path(config.data))
    releases = make_release_plan(settled, plan.steps)
    of_val = None if releases is None else prepare_private(settled, releases, data, private, found.val, name)
    private_val = {} if of_val is None else of_val.charge.pictures
    val = _compared(config, private, validation, found.val, private_val)
    settled, final, scaled_by = settle_clipping(settled, plan, data, model, private, val, outputs, private_val)
    units = _units(config, groups, pictures, len(dataset))
    at_once = _physical_batch_size(config, final, model, device, units, group)
    own = RunCharge(
        config.budget,
        final.event(),
        final.delta,
        final.unit,
        pictures,
        name,
        groups,
        config.privacy.copies_are_one,
        bands=final.bands,
        steps=final.steps,
        boxes=data.boxes_in("train"),
    )
    charge = own if paid is None or paid.charge is None else paid.charge

    def count(steps: int) -> None:
        """Count a step before its sum is noised, if the ledger has given leave for it."""
        if paid is None:
            charge.lease(steps)
        folder.journal.record(steps)

    identities = _identities(groups, pictures) if final.bands > 1 or group is not None else None
    task = Task(settled, final, model, dataset, list(pictures.values()), units, identities, at_once).settled()
    trainer = task.trainer(device, group, count)
    if paid is None:
        charge.prepare()
    if group is not None:
        group.hand_out(task)
    return Prepared(
        config=settled,
        plan=final,
        folder=folder,
        outputs=outputs,
        device=device,
        data_name=name,
        model=model,
        start_hash=start_hash,
        start_runs=start_runs,
        pictures=pictures,
        groups=groups,
        validation=validation,
        private_validation=of_val,
        scaled_by=scaled_by,
        rate_by_rule=tuple(phase.lr is None for phase in config.phases) or (config.optimizer.lr is None,),
        physical_batch_size=at_once,
        trainer=trainer,
        group=group,
        charge=charge,
        tuning=None if paid is None else paid.facts,
        notes=[
            *(same_source(pictures, small) if groups is None else found.notes),
            *labels_read([dataset, validation if of_val is None else of_val.images]),
        ],
    )


def _compared(
    config: TrainConfig,
    pictures: Mapping[Path, bytes],
    validation: DetectionDataset | None,
    val_groups: Sequence[str] | None,
    private_val: Mapping[Path, bytes],
) -> PublicVal | None:
    """The val split; training images, and images that the ledger protects, are refused there and behind the start."""
    val: PublicVal | None = None
    if validation is not None:
        fix = "remove it from val, or set validation=off"
        declared = DeclaredPublic("the val images", validation.image_files, fix, val_groups)
        declared.refuse_training(pictures)
        val = PublicVal(validation, declared.pictures, declared.refuse_protected(config.budget))
    if config.public_images is not None:
        files = public_images(config.public_images)
        fix = "start from weights that other images made, or train without it"
        declared = DeclaredPublic("public_images", files, fix)
        declared.refuse_training(pictures)
        declared.refuse_private_val(private_val)
        declared.refuse_protected(config.budget)
    return val


def _units(
    config: TrainConfig, groups: Sequence[str] | None, pictures: Mapping[Path, bytes], images: int
) -> UnitExamples | None:
    """The examples of every unit; None where each image, seen once, is one."""
    copies = config.augment.multiplicity
    if groups is not None:
        return UnitExamples(groups, config.privacy.images_per_group or DEFAULT_IMAGES_PER_GROUP, copies)
    if config.privacy.copies_are_one:  # a step takes one of a picture's copies, drawn anew
        return UnitExamples(list(pictures.values()), copies=copies)
    return UnitExamples(range(images), copies=copies) if copies > 1 else None


def _identities(groups: Sequence[str] | None, pictures: Mapping[Path, bytes]) -> list[bytes]:
    """Of every unit, in the order of their numbers; copies that are one unit have one picture."""
    return list(dict.fromkeys(pictures.values() if groups is None else (name.encode() for name in groups)))


def _physical_batch_size(
    config: TrainConfig,
    plan: PrivacyPlan,
    model: DetectionModel,
    device: torch.device,
    units: UnitExamples | None,
    group: Group | None,
) -> int:
    if config.physical_batch_size != "auto":
        return int(config.physical_batch_size)
    return physical_batch_size(
        model,
        config.imgsz,
        -(-plan.expected_batch_size // (1 if group is None else group.count)),  # of a process
        device,
        sample_rate=plan.sample_rate / (1 if group is None else group.count),
        most_of_a_unit=1 if units is None else units.most_at_once,
        memory=None if group is None else group.memory,
    )


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Make the random start of a test run repeatable; torch's own generator makes nothing that protects."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
