"""The boundary to Ultralytics: the only room that imports it."""

# isort: off
from . import quiet  # noqa: F401 - before anything of Ultralytics
from ultralytics.nn.tasks import DetectionModel

# isort: on
from .heads import set_names
from .loss import LossSettings, PerImageLoss, per_image_losses
from .model import load_model, save_weights
from .trainable import Lora, set_trainable

__all__ = [
    "DetectionModel",
    "Lora",
    "LossSettings",
    "PerImageLoss",
    "load_model",
    "per_image_losses",
    "save_weights",
    "set_names",
    "set_trainable",
]
