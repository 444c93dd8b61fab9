"""The dataclasses of a run's settings: Hydra's schema and the keyword defaults of ``dptrain.train``.

Every field carries its help line, so ``dptrain train --help`` cannot drift from what is accepted. The values are
checked in :mod:`dptrain.settings.resolve`; :mod:`dptrain.settings.keys` lists the keys by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ..datasets.groups import GroupsConfig
from ..datasets.labels import LABELS, STRICT
from ..privacy.clipping import CLIPPINGS
from ..privacy.random_stopping import STOPPINGS
from ..support.environment import EXPERIMENT, LEDGER, STORE

DEFAULT_TIME = "1h"
DEFAULT_EXPECTED_BATCH_SIZE = 256
EVALUATIONS_PER_RUN = 10
CHECKPOINTS_PER_RUN = 50
DEFAULT_IMAGES_PER_GROUP = 8
# A team sets these variables once; dptrain.support.environment has the same order for the commands that take no schema.
DEFAULT_LEDGER = f"${{oc.env:DPTRAIN_BUDGET_URL,'{LEDGER}'}}"
DEFAULT_STORE = f"${{oc.env:MLFLOW_TRACKING_URI,'{STORE}'}}"
DEFAULT_EXPERIMENT = f"${{oc.env:MLFLOW_EXPERIMENT_NAME,'{EXPERIMENT}'}}"

AUTO = "auto"  # of privacy.clipping: scaled by the val split where it is public and has boxes, else flat
BY_VAL = "val"  # of privacy.clip_scales: the val split that validation=public declares public
SAME_PICTURE = ("refuse", "one_unit")  # what is done about copies of one picture in the training split
NOISES = ("independent", "banded")
NORMS = ("auto", "group", "frozen_bn")
HEADS = ("auto", "both", "one_to_many", "one_to_one")
NEW_CLASSES = ("random", "zero", "mean")
NORMALISERS = ("image", "constant")
ENGINES = ("fused", "opacus", "microbatch")
PRECISIONS = ("auto", "fp32", "bf16")
# What may be another when a run or a sweep goes on: where and how fast it runs, not what it releases.
FREE_TO_CHANGE = (
    "time", "epochs", "device", "workers", "physical_batch_size", "checkpoint_every", "tracking", "budget", "resume",
    "output_dir", "download",
)  # fmt: skip
PUBLIC, PRIVATE, OFF = VALIDATIONS = ("public", "private", "off")
TUNINGS = ("none", "random_stopping")
SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS = (
    "sgd", "adam", "adamw", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop", "asgd",
)  # fmt: skip

_MIXES = "one image would then enter the gradients of several others, and clipping no longer bounds what it changes"
REFUSED_AUGMENTATIONS = {
    "mosaic": _MIXES,
    "mixup": _MIXES,
    "cutmix": _MIXES,
    "copy_paste": _MIXES,
    "rect": "batches sorted by the shapes of the private images are not Poisson samples, so the accounting is void",
    "cls_pw": "class weights are counted on the private labels, and nothing adds noise to them",
    "autobatch": "a batch size that is measured on private images is not a public constant",
    "autoanchor": "anchors fitted to the private boxes would be released without noise",
}


# What earlier versions had, by key or by key=value, and what to use now; docs/results.md has what each one measured.
REMOVED = {
    "privacy.preset": "leave steps open, and time=30m (by default 1h) chooses steps, batch and what trains",
    "privacy.precondition": "it gained nothing over privacy.clipping=scaled",
    "privacy.clipping=adaptive": "the clip norm made no difference: use privacy.clipping=automatic, which has none",
    "privacy.clipping=rescaled": "use privacy.clipping=flat, or automatic, whose sensitivity is 1",
    "privacy.clipping=per_layer": "it was worse than flat: use privacy.clipping=scaled, or groups",
    "privacy.rows_per_unit": "use privacy.images_per_group",
    "privacy.clip_split": "groups share the clip norm out equally",
    "privacy.clip_quantile": "it belonged to clipping=adaptive: use privacy.clipping=automatic",
    "privacy.clip_count_noise": "it belonged to clipping=adaptive: use privacy.clipping=automatic",
    "norm=group_ws": "its starts were worse than group's: use norm=group, or frozen_bn from a checkpoint",
    "optimizer.floor": "it belonged to dp_adam_bc: use optimizer.name=adam",
    "optimizer.name=dp_adam_bc": "it was no better than adam at its best rate: use optimizer.name=adam",
    **{
        f"model={name}_scratch": f"use model={name}.yaml, which starts from random weights by itself"
        for name in ("yolo11n", "yolo26n", "yolo26s", "yolov8n")
    },
}


def _key(default: Any, help: str) -> Any:
    """A field with a default and the line that ``dptrain train --help`` shows for it."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class PrivacyConfig:
    """The guarantee: any two of epsilon, noise_multiplier and the run's ``steps`` find the third."""

    epsilon: float | None = _key(None, "target epsilon of the whole run (RDP)")
    delta: float | None = _key(None, "chance of failure allowed; default dataset_size**-1.1")
    noise_multiplier: float | None = _key(None, "noise standard deviation in units of clip_norm")
    clip_norm: float = _key(1.0, "L2 norm to which every unit's gradient is clipped")
    sample_rate: float | None = _key(None, "chance that a unit is in a step; default expected_batch_size/dataset_size")
    expected_batch_size: int | None = _key(None, "public constant that divides the noisy sum; default 256")
    dataset_size: int | None = _key(None, "declared, public number of units (never counted in the folder)")
    unit: str = _key(
        "image", "what is protected: image, group (patient, camera, video), or person (several may be in one picture)"
    )
    same_picture: str = _key(
        "refuse", "the same picture twice in train: refuse, or one_unit: its copies count as one image"
    )
    images_per_group: int | None = _key(
        None, f"most images of a group in one step, drawn anew each time; default {DEFAULT_IMAGES_PER_GROUP}"
    )
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    clipping: str = _key(AUTO, f"clip rule, {', '.join(CLIPPINGS)}; auto: scaled by a public val split, else flat")
    clip_groups: list[str] = _key([], "of clipping=groups: patterns on layer names, one a group, such as [model.23.*]")
    clip_scales: str | None = _key(
        None, "of clipping=scaled: data.yaml of public images to measure the layers' gradients on; val: the val split"
    )
    noise: str = _key(
        "independent", f"of the steps, one of {', '.join(NOISES)}; banded: correlated, for many steps of small batches"
    )
    bands: int | None = _key(None, "of noise=banded: steps it is correlated over; default the number that saves most")

    @property
    def copies_are_one(self) -> bool:
        """Whether the copies of a picture are drawn, and charged, as one image."""
        return self.same_picture == "one_unit"


@dataclass
class ValidationPrivacyConfig:
    """With ``validation=private``: the guarantee for the val images, of which only noised counts are released."""

    epsilon: float | None = _key(None, "target epsilon of all evaluations of the run (RDP); or give noise_multiplier")
    delta: float | None = _key(None, "chance of failure allowed; default dataset_size**-1.1 of this section")
    noise_multiplier: float | None = _key(None, "noise standard deviation, where a val image adds at most 1")
    dataset_size: int | None = _key(None, "declared, public number of units in the val split (never counted)")
    budget: str | None = _key(None, "dataset of the ledger to charge; default the one the val images are known by")


@dataclass
class OptimizerConfig:
    """An optimizer of :data:`OPTIMIZERS`; it sees noisy gradients only."""

    name: str = _key("adamw", f"one of {', '.join(OPTIMIZERS)}")
    lr: float | None = _key(None, "learning rate; default by rule, from shapes, steps and noise (docs/training.md)")
    momentum: float = _key(0.0, "momentum (sgd, rmsprop)")
    weight_decay: float = _key(0.0, "weight decay")
    betas: list[float] = _key([0.9, 0.999], "decay rates of the Adam family")


@dataclass
class ScheduleConfig:
    """Learning rate by step; it depends on no data."""

    name: str = _key("constant", f"one of {', '.join(SCHEDULES)}")
    warmup_steps: int = _key(0, "steps of linear warm-up")
    final: float = _key(0.01, "last learning rate as a fraction of optimizer.lr (cosine, linear)")


@dataclass
class EmaConfig:
    """Exponential moving average of the iterates: post-processing, free of privacy cost."""

    decay: float | None = _key(None, "decay of the average; 0 turns it off; default 0.99")


@dataclass
class LoraConfig:
    """Low-rank adapters on convolutions, with ``trainable=lora``."""

    rank: int | None = _key(None, "rank of the adapters; default 4")
    alpha: float | None = _key(None, "adapters are multiplied by alpha/rank; default rank")
    targets: Any = _key(None, "all, head, neck_and_head, or a list of parameter name patterns; default all")


@dataclass
class LossConfig:
    """The loss of one image."""

    box: float = _key(7.5, "gain of the box loss")
    cls: float = _key(0.5, "gain of the class loss")
    dfl: float = _key(1.5, "gain of the distance loss (DFL, or L1 in yolo26)")
    normaliser: str = _key("image", "image: divide by the image's own target scores; constant: by loss.constant")
    constant: float | None = _key(None, "public divisor; default 10")
    focal_gamma: float = _key(0.0, "focal weighting of the class loss: 0 (none), or 1 and more")


@dataclass
class AugmentConfig:
    """Augmentations of one image only. Those that couple images or read private data exist to be refused by name."""

    fliplr: float = _key(0.0, "chance of a left-right flip")
    flipud: float = _key(0.0, "chance of an up-down flip")
    hsv_h: float = _key(0.0, "hue jitter, fraction")
    hsv_s: float = _key(0.0, "saturation jitter, fraction")
    hsv_v: float = _key(0.0, "brightness jitter, fraction")
    scale: float = _key(0.0, "zoom jitter, fraction")
    translate: float = _key(0.0, "shift, fraction of the image")
    crop: float = _key(0.0, "largest fraction cropped away")
    multiplicity: int = _key(1, "augmentations of each image, averaged before the clip; costs time, no privacy")
    mosaic: float = _key(0.0, "refused: mixes images")
    mixup: float = _key(0.0, "refused: mixes images")
    cutmix: float = _key(0.0, "refused: mixes images")
    copy_paste: float = _key(0.0, "refused: mixes images")
    rect: bool = _key(False, "refused: batches by image shape")
    cls_pw: float = _key(0.0, "refused: class weights counted on private labels")
    autobatch: bool = _key(False, "refused: batch size measured on private images")
    autoanchor: bool = _key(False, "refused: anchors fitted to private boxes")


@dataclass
class TrackingConfig:
    """Where MLflow writes."""

    uri: str = _key(DEFAULT_STORE, "MLflow tracking URI")
    experiment: str = _key(DEFAULT_EXPERIMENT, "MLflow experiment name")
    run_name: str | None = _key(None, "MLflow run name; default chosen by MLflow")
    enabled: bool = _key(True, "false: no MLflow at all")


@dataclass
class NoiseConfig:
    """How the noise is made; it is the same amount either way."""

    exact: bool = _key(False, "whole-number noise that no rounding weakens; images go through one at a time")


@dataclass
class BudgetConfig:
    """The ledger of what every dataset has spent. ``docs/budget.md`` has what it promises."""

    url: str | None = _key(DEFAULT_LEDGER, "sqlite:///FILE or postgresql://USER@HOST/NAME; null: not recorded")
    name: str | None = _key(None, "dataset to charge, with its limit stated; default the one these images are known by")
    required: bool = _key(False, "refuse images that no budget with a limit covers")
    key: str | None = _key(None, "file with the ledger's key; default DPTRAIN_BUDGET_KEY, else beside an SQLite file")


@dataclass
class SealConfig:
    """Sealed datasets (``data=pets.seal``) and sealed outputs. ``docs/seal.md`` has what it promises."""

    identity: str | None = _key(
        None, "file with the key of a sealed dataset or checkpoint; default from the environment"
    )
    keyring: str | None = _key(None, "or its entry in the system's keyring")
    recipients: list[str] = _key([], "age1... or files of them: weights and checkpoints are written sealed")


@dataclass
class TuningConfig:
    """Choosing among settings at a price that is accounted (Papernot and Steinke 2022)."""

    method: str = _key("none", f"one of {', '.join(TUNINGS)}; random_stopping: only the winner is kept and shown")
    distribution: str = _key("geometric", f"of the secret number of runs, one of {', '.join(STOPPINGS)}")
    mean_runs: float = _key(10.0, "mean of that distribution")
    search: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "candidates, such as {optimizer.lr:[1e-3,3e-3]}"}
    )


@dataclass
class PhaseConfig:
    """Consecutive steps of one plan in which the same layers train."""

    trainable: Any = _key(None, "what trains in it, as for the key trainable; not lora")
    steps: int | None = _key(None, "number of its steps; those of all phases are the run's")
    lr: float | None = _key(None, "its learning rate; default by rule, from its shapes and steps")


@dataclass
class TrainConfig:
    """Everything one training run is told. See ``dptrain train --help`` for the keys."""

    model: str = _key(MISSING, "yolo26n.pt, another .pt of public data, yolo26n.yaml (from scratch), or a preset")
    data: str = _key(MISSING, "an Ultralytics data.yaml, a sealed dataset (.seal), or a preset")
    labels: str = _key(
        STRICT,
        f"one of {', '.join(LABELS)}: a bad row in a label file stops the run, or is left out and told the owner",
    )
    imgsz: int = _key(640, "side of the letterboxed square image in pixels, a multiple of 32")
    device: str = _key("auto", "auto, cpu, cuda, cuda:1; several, such as 0,1 or cpu,cpu: a process on each")
    steps: int | None = _key(None, "number of noised steps; default found from epsilon and noise, or by time")
    time: str | None = _key(
        None, f"how long the run may take, such as 30m; chooses steps, batch and what trains; default {DEFAULT_TIME}"
    )
    epochs: float | None = _key(
        None, "or as many images in all as so many passes over privacy.dataset_size; chooses what time would"
    )
    physical_batch_size: Any = _key("auto", "images in memory at once, for speed only; auto: what fits")
    output_dir: str = _key("", "folder of the run; default runs/<date>_<time>")
    seed: int | None = _key(None, "for tests only: predictable noise voids the guarantee")
    trainable: Any = _key(
        None,
        "all (default), head, neck_and_head, norm_and_bias, head_and_norms, lora, new_classes, patterns, or a list",
    )
    phases: list[PhaseConfig] = _key(
        [], "instead of trainable, what trains in which steps: [{trainable:head,steps:60},{trainable:all,steps:100}]"
    )
    norm: str = _key("auto", f"one of {', '.join(NORMS)}; auto: frozen_bn from a checkpoint, group from scratch")
    head: str | None = _key(
        None,
        f"branches of yolo26's head that are trained and kept, one of {', '.join(HEADS)}; auto unless steps is open",
    )
    new_classes: str = _key("random", f"first weights of classes that the start lacks, one of {', '.join(NEW_CLASSES)}")
    similar_classes: dict[str, str] = field(
        default_factory=dict, metadata={"help": "class of the data to the class of the start that it begins as"}
    )
    workers: int = _key(2, "processes that load images")
    evaluate_every: int | None = _key(
        None, f"steps between evaluations; default {EVALUATIONS_PER_RUN} in a run, 1 with validation=private"
    )
    checkpoint_every: int | None = _key(None, f"steps a crash can lose; default 1/{CHECKPOINTS_PER_RUN} of the run")
    validation: str | None = _key(
        None,
        "public (default): metrics of the val split without noise, you declare it public; private: noised; off: none",
    )
    public_data: str | None = _key(None, "what public data made the start weights, in your words; for the statement")
    start_runs: list[str] = _key([], "folders of the private runs that the start was made from, as a mean of weights")
    public_images: str | None = _key(None, "folder or .txt list of the start's images: none may be a training image")
    engine: str = _key("fused", f"per-image gradients by one of {', '.join(ENGINES)}")
    precision: str = _key(
        "auto", "of the model's passes, fp32 or bf16; auto: bf16 on a GPU that has it, where a trial says it is safe"
    )
    download: bool = _key(True, "fetch a released checkpoint, such as model=yolo26n.pt, that is not here; never data")
    resume: bool = _key(False, "continue the run in output_dir")
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    validation_privacy: ValidationPrivacyConfig = field(default_factory=ValidationPrivacyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    seal: SealConfig = field(default_factory=SealConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
