"""The clip rule of a run: settled where the settings leave it open, and its scales measured on public images.

What is accounted is the same for ``flat`` and ``scaled``: the sensitivity is the clip norm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ..datasets.data_yaml import data_name
from ..detection import DetectionModel
from ..detection.data import DataConfig, DetectionDataset
from ..detection.loss import PerImageLoss, one2many_weight
from ..detection.scales import layer_scales, public_part, spread
from ..errors import ConfigError
from ..privacy.plan import PrivacyPlan
from ..settings.schema import AUTO, BY_VAL, PrivacyConfig, TrainConfig
from ..training.checkpoint import scales_of
from .build import loss_settings
from .declared_public import DeclaredPublic
from .folder import CHECKPOINT
from .outputs import OutputFiles
from .phases import trains_in_any


@dataclass(frozen=True)
class PublicVal:
    """The val split of a run that declares it public, which was compared with the training split and the ledger.

    Attributes:
        images: The split.
        pictures: The identity of the picture in every file.
        compared: What it was compared with besides the training split, in words.
    """

    images: DetectionDataset
    pictures: Mapping[Path, bytes]
    compared: str

    def measured(self) -> DetectionDataset | None:
        """The images that layers are measured on; None if none of them has a box."""
        if not any(len(self.images.labels(number)) for number in spread(range(len(self.images)))):
            return None
        part = replace(self.images.data, val=spread(self.images.data.val))
        return DetectionDataset(part, "val", self.images.imgsz, verify=False)


@dataclass(frozen=True)
class ScaledBy:
    """The public images that the layers' scales were measured on.

    Attributes:
        data: What they are, in words.
        images: How many.
        compared: What they were compared with besides the training split, in words.
        sha256: Of their pictures. A resumed run keeps its scales, so it must compare the same pictures again.
        val: Whether they are of the val split.
    """

    data: str
    images: int
    compared: str
    sha256: str
    val: bool

    def told(self) -> dict[str, str | int]:
        """Return what the statement says of them."""
        return {"data": self.data, "images": self.images, "compared": self.compared}


def settle_clipping(
    config: TrainConfig,
    plan: PrivacyPlan,
    data: DataConfig,
    model: DetectionModel,
    train: Mapping[Path, bytes],
    val: PublicVal | None,
    outputs: OutputFiles,
    private_val: Mapping[Path, bytes] = MappingProxyType({}),
) -> tuple[TrainConfig, PrivacyPlan, ScaledBy | None]:
    """Return the settings with the clip rule written out, the plan with its scales, and what those were measured on.

    ``auto`` becomes ``scaled`` by the val split where that is declared public and has boxes, else ``flat``. Adapters
    (``trainable=lora``) are clipped flat: they begin at zero, where half of their gradients are zero too.

    Args:
        config: The settings.
        plan: Their plan, flat where the rule is ``auto``.
        data: The private images, which have no part in it.
        model: The detector, with its start weights.
        train: The identity of the picture in every training image, which public images are held against.
        val: The val split, where it is public; compared already.
        outputs: Reads the checkpoint of a resumed run, whose scales it keeps: its start may have been random.
        private_val: The same as ``train`` of a private val split; public images are held against it too.

    Raises:
        DptrainError: The public images cannot be used, or are private.
    """
    privacy = config.privacy
    if privacy.clipping == AUTO:
        privacy = _default(config, val)
        config = replace(config, privacy=privacy)
        plan = replace(plan, clipping=replace(plan.clipping, name=privacy.clipping))
    if privacy.clip_scales is None:
        return config, plan, None
    images, by = _by_val(config, val) if privacy.clip_scales == BY_VAL else _by_file(config, data, train, private_val)
    checkpoint = Path(config.output_dir) / CHECKPOINT
    if config.resume and outputs.place(checkpoint).exists():
        scales = scales_of(outputs.place(checkpoint), outputs.read(checkpoint))
    else:
        scales = layer_scales(model, PerImageLoss(one2many_weight(0.5), settings=loss_settings(config)), images)
    return config, replace(plan, clipping=replace(plan.clipping, scales=scales)), by


def _default(config: TrainConfig, val: PublicVal | None) -> PrivacyConfig:
    trainable = trains_in_any(config)
    adapts = "lora" in ([trainable] if isinstance(trainable, str) else trainable)
    if adapts or val is None or val.measured() is None:
        return replace(config.privacy, clipping="flat")
    return replace(config.privacy, clipping="scaled", clip_scales=BY_VAL)


def _by_val(config: TrainConfig, val: PublicVal | None) -> tuple[DetectionDataset, ScaledBy]:
    """Images of the val split; it has been compared, and is not again."""
    images = None if val is None else val.measured()
    if val is None or images is None:
        reason = "there is no val split" if val is None else "none of the val images to measure has a box"
        raise ConfigError(
            f"privacy.clip_scales={BY_VAL} and data={config.data}: {reason}; name labelled public images, or set "
            "privacy.clipping=flat"
        )
    words = f"the val split of {data_name(Path(config.data))}, which validation=public declares public"
    return images, ScaledBy(words, len(images), val.compared, _sha256(images, val.pictures), val=True)


def _by_file(
    config: TrainConfig, data: DataConfig, train: Mapping[Path, bytes], private_val: Mapping[Path, bytes]
) -> tuple[DetectionDataset, ScaledBy]:
    """Train images of another data.yaml, compared with the training split and the ledger here."""
    file = str(config.privacy.clip_scales)
    public = public_part(file, data)
    declared = DeclaredPublic(f"the images of privacy.clip_scales={file}", public.train, "name other public images")
    declared.refuse_training(train)
    declared.refuse_private_val(private_val)
    compared = declared.refuse_protected(config.budget)
    images = DetectionDataset(public, "train", config.imgsz, verify=False)
    sha256 = _sha256(images, declared.pictures)
    return images, ScaledBy(data_name(Path(file)), len(images), compared, sha256, val=False)


def _sha256(images: DetectionDataset, pictures: Mapping[Path, bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(pictures[file] for file in images.image_files))).hexdigest()
