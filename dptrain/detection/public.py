"""Ultralytics' own trainer, for public data: the one place where it trains anything.

It has what public data may have and private data may not: mosaic, batches in an order, train-mode statistics. What it
would do beside that (loggers, plots, telemetry, downloads) is off.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from ..errors import ConfigError, ModelError
from .heads import check_names, set_classes, set_names
from .model import _BATCH_NORMS, _from_checkpoint, _from_yaml, _replace_norms

Epoch = Callable[[int, dict[str, float]], None]


def public_model(model: str, names: Mapping[int, str], norm: str = "auto") -> DetectionModel:
    """Load a detector to train on public data, every layer of it.

    Args:
        model: A model description or a public checkpoint.
        names: Class names by number; the class head is made anew where it differs, but for classes of the same name.
        norm: ``group``: group normalisation in place of batch normalisation, as private training from scratch has it;
            ``batch``: statistics that train here, and stay as they are in private training (``frozen_bn``); ``auto``:
            what a checkpoint has, ``group`` from scratch.

    Raises:
        ModelError: The file is missing, unreadable, or not a plain detector.
        ConfigError: ``norm=batch``, and the checkpoint has none.
    """
    check_names(names, len(names))
    file = Path(model)
    if file.suffix in (".yaml", ".yml"):
        detector = _from_yaml(model, len(names))
        norm = "group" if norm == "auto" else norm
    elif file.suffix == ".pt":
        detector = _from_checkpoint(file)
        set_classes(detector, len(names), names)
    else:
        raise ModelError(f"{model!r}: expected a model .yaml (such as yolo26n.yaml) or a .pt checkpoint")
    if norm == "group":
        _replace_norms(detector, norm)
    elif norm == "batch" and not any(isinstance(m, _BATCH_NORMS) for m in detector.modules()):
        raise ConfigError(f"norm=batch, and {model} has no batch normalisation: leave norm out, or start from another")
    set_names(detector, names)
    detector.args = get_cfg()
    detector.task = "detect"
    return detector.requires_grad_(True).train()


class PublicTraining(DetectionTrainer):  # not ...Trainer: Ultralytics adds its loggers to what is called so
    """Ultralytics' trainer with a given network, without its callbacks, plots and last evaluation.

    Args:
        detector: The network; ``None`` where ``arguments`` resume a training.
        arguments: Ultralytics' own.
        on_batch: Called after every step of an epoch.
        on_epoch: Called with the epochs done and Ultralytics' row for them.
    """

    callbacks: dict[str, list[Any]]
    last: Path

    def __init__(
        self, detector: DetectionModel | None, arguments: dict[str, Any], on_batch: Callable[[], None], on_epoch: Epoch
    ) -> None:
        super().__init__(overrides=arguments)
        if detector is not None:
            self.model = detector
        self.callbacks: dict[str, list[Callable[..., None]]] = defaultdict(list)
        self.add_callback("on_train_batch_end", lambda _: on_batch())
        self.add_callback("on_fit_epoch_end", lambda _: on_epoch(self.epoch + 1, self._row()))

    def _row(self) -> dict[str, float]:
        loss = sum(float(value) for value in (self.tloss or {}).values())
        values = {key.replace("(", "").replace(")", ""): float(value) for key, value in self.metrics.items()}
        return {"train/loss": loss, **{key: v for key, v in values.items() if key.startswith("metrics/")}}

    def get_model(
        self, cfg: str | dict | None = None, weights: nn.Module | None = None, verbose: bool = True
    ) -> nn.Module:
        """The network of the checkpoint that is resumed, as it is: Ultralytics would rebuild it with other norms."""
        assert weights is not None
        return weights.requires_grad_(True)

    def save_model(self) -> bool:
        """Write the checkpoint whole or not at all: a killed training must find a sound one."""
        whole = Path(self.last)
        self.last: Path = whole.with_suffix(".part")
        try:
            done = super().save_model()
            self.last.replace(whole)
        finally:
            self.last = whole
        return done

    def final_eval(self) -> None:
        """Nothing: dptrain evaluates what it keeps."""

    def average(self) -> DetectionModel:
        """The moving average of the weights after training."""
        return self.ema.ema


@contextmanager
def without_chatter() -> Iterator[None]:
    """Ultralytics' banner, tables and bars off; torch's random generators as they were afterwards."""
    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        with torch.random.fork_rng():
            yield
    finally:
        LOGGER.setLevel(level)
        sys.stdout.flush()
