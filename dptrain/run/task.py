"""What every process of a run must have to take its steps; the first one hands it to the others, if there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..detection import DetectionModel
from ..detection.data import DetectionDataset, StepLoader
from ..detection.loss import PerImageLoss, one2many_weight
from ..detection.precision import settle_precision
from ..detection.probe import refuse_coupled_images
from ..gradients import trainable_parameters
from ..privacy.plan import PrivacyPlan
from ..privacy.units import UnitExamples
from ..settings.schema import TrainConfig
from ..training.phases import let_train
from ..training.processes import Group
from ..training.trainer import PrivateTrainer
from .build import loss_settings
from .optimizers import make_optimizer
from .phases import phases_of, rate_of


@dataclass(frozen=True)
class Task:
    """The steps of one run: all that decides them but the state, which is the checkpoint's.

    Attributes:
        config: The settings, with all that the plan and the rule of the learning rate settle written out.
        plan: The plan.
        model: The detector, with its start weights.
        dataset: The training split; its labels are in it, its images are read when asked for.
        pictures: The identity of the picture in every image file of ``dataset``.
        units: The examples of every unit; None where each image is one.
        identities: Of the units; None where nothing follows from them.
        at_once: How many examples go through the model at once.
        precision: What the model's passes compute in, ``fp32`` or ``bf16``; ``auto`` is settled by the first process.
    """

    config: TrainConfig
    plan: PrivacyPlan
    model: DetectionModel
    dataset: DetectionDataset
    pictures: Sequence[bytes]
    units: UnitExamples | None
    identities: Sequence[bytes] | None
    at_once: int
    precision: str = "fp32"

    def settled(self) -> Task:
        """Return the task with ``precision`` settled for the device that its model is on.

        Raises:
            ConfigError: The settings ask for bf16, which is not safe there.
        """
        loss = PerImageLoss(settings=loss_settings(self.config))
        config = self.config
        precision = settle_precision(config.precision, self.model, loss, config.imgsz, self.at_once, config.engine)
        return replace(self, precision=precision)

    def trainer(
        self, device: torch.device, group: Group | None = None, on_release: Callable[[int], None] | None = None
    ) -> PrivateTrainer:
        """Return what takes the steps, for a model that is on ``device``.

        Raises:
            DptrainError: The model or its optimizer cannot be trained privately.
        """
        config, plan, model = self.config, self.plan, self.model
        loss = PerImageLoss(settings=loss_settings(config), precision=self.precision)
        assert config.ema.decay is not None
        phases, rate, trained = phases_of(config, model), rate_of(config, plan), trainable_parameters(model)

        def weigh_heads(step: int) -> None:
            loss.one2many = one2many_weight(step / max(1, plan.steps - 1))

        for names in [phase.names for phase in phases] or [tuple(trained)]:
            let_train(trained, names)
            refuse_coupled_images(model, config.engine, loss)
        return PrivateTrainer(
            model,
            loss,
            plan,
            make_optimizer(replace(config.optimizer, lr=rate(0)), trained.values()),
            StepLoader(self.dataset, self.at_once, config.workers, device, self.units),
            len(self.dataset) if self.units is None else len(self.units),
            identities=self.identities,
            seed=config.seed,
            engine=config.engine,
            exact=config.noise.exact,
            ema_decay=config.ema.decay,
            set_rate=rate,
            phases=phases,
            before_step=weigh_heads,
            on_release=on_release,
            group=group,
            probe=False,
        )
