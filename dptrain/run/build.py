"""The detector, the loss and the learning rate that the settings of a run describe."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, replace

from ..detection import DetectionModel
from ..detection.centring import centre_inputs
from ..detection.data import Augmentation, DataConfig
from ..detection.loss import LossSettings
from ..detection.model import load_model, norm_of
from ..detection.trainable import RANK, Lora, trainable_names
from ..gradients import trainable_parameters
from ..privacy.plan import PrivacyPlan
from ..sealing.weights import is_weights
from ..settings.schema import PhaseConfig, TrainConfig
from .phases import trains_in_any
from .rates import LACKING, NEW_ONLY, SCRATCH, default_rate


def model_of(config: TrainConfig, data: DataConfig) -> DetectionModel:
    """Load the detector for the classes of the data; refuse one that cannot train as the settings ask."""
    assert config.head is not None, "resolve settles it"
    targets = config.lora.targets or "all"
    return load_model(
        config.model,
        data.num_classes,
        norm=config.norm,
        trainable=trains_in_any(config),
        names=data.names,
        head=config.head,
        lora=Lora(
            config.lora.rank or RANK,
            config.lora.alpha,
            (targets,) if isinstance(targets, str) else tuple(targets),
        ),
        new_classes=config.new_classes,
        similar=config.similar_classes,
    )


def model_to_train(config: TrainConfig, data: DataConfig) -> DetectionModel:
    """Return :func:`model_of` as a run trains it: with centred inputs."""
    detector = model_of(config, data)
    centre_inputs(detector)
    return detector


def augmentation_of(config: TrainConfig) -> Augmentation:
    """Return how images are varied; how often one is, is the sampler's."""
    return Augmentation(**{name: getattr(config.augment, name) for name in Augmentation.__dataclass_fields__})


def loss_settings(config: TrainConfig) -> LossSettings:
    """Return the gains, the normaliser and the focal weighting."""
    return LossSettings(**{name: value for name, value in asdict(config.loss).items() if value is not None})


def with_rate(config: TrainConfig, plan: PrivacyPlan, model: DetectionModel) -> TrainConfig:
    """Return the settings with the learning rate written out, or that of every phase: by rule, if nobody gave one."""

    def by_rule(steps: int, names: Collection[str]) -> float:
        parameters = dict(model.named_parameters())
        return default_rate(
            config.optimizer.name,
            replace(plan, steps=steps),
            # What noise does to the first convolution of an adapter is multiplied by the second, which begins at zero.
            [tuple(parameters[name].shape) for name in names if not name.endswith(".down.weight")],
            norm=norm_of(model),
            times=_times(config, model, names),
            momentum=config.optimizer.momentum,
        )

    if config.phases:
        return replace(config, phases=[_with_rate(phase, model, by_rule) for phase in config.phases])
    if config.optimizer.lr is not None:
        return config
    rate = by_rule(plan.steps, trainable_parameters(model))
    return replace(config, optimizer=replace(config.optimizer, lr=rate))


def _times(config: TrainConfig, model: DetectionModel, names: Collection[str]) -> float:
    """How far noise may move a weight, by what the start does not know yet."""
    if not is_weights(config.model):
        return SCRATCH
    if not getattr(model, "lacks_classes", False):
        return 1.0
    unfilled = getattr(model, "unfilled_layers", ())
    return NEW_ONLY if all(name.rpartition(".")[0] in unfilled for name in names) else LACKING


def _with_rate(
    phase: PhaseConfig, model: DetectionModel, by_rule: Callable[[int, Collection[str]], float]
) -> PhaseConfig:
    if phase.lr is not None:
        return phase
    assert phase.steps is not None, "resolve settles it"
    return replace(phase, lr=by_rule(phase.steps, trainable_names(model, phase.trainable)))
