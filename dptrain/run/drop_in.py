"""Private training in the place of Ultralytics' own: ``YOLO("yolo26n.pt").train(trainer=dptrain.trainer(...))``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ..datasets.roots import shipped
from ..detection.evaluate import KEYS, Metrics
from ..detection.model import open_checkpoint, save_weights
from ..errors import ConfigError, ModelError
from ..settings import resolve as settings
from ..settings.schema import PrivacyConfig
from ..settings.ultralytics import as_keywords
from ..statement.results import stock_name
from ..support.released import found_start
from .prepare import Prepared
from .train import train_from_config
from .watcher import Watcher

Callbacks = dict[str, list[Callable[[Any], object]]]
_OFF = (
    "mosaic and the other augmentations of Ultralytics' defaults are off; turn on what looks at one image only, such "
    "as fliplr=0.5",
    "no plots of training images: they would be released without noise",
    "Ultralytics' MLflow, TensorBoard and other integrations do not run; dptrain logs to MLflow itself, and your own "
    "callbacks are called",
)
_OF_THE_CALL = ("session", "mode", "task", "pretrained")  # what Ultralytics adds to the settings that people give


def trainer(
    epsilon: float | None = None, dataset_size: int | None = None, **options: Any
) -> Callable[..., PrivateDetectionTrainer]:
    """Return what ``ultralytics.YOLO(...).train(trainer=...)`` takes, to train privately by dptrain.

    ``YOLO("yolo26n.pt").train(trainer=dptrain.trainer(epsilon=8, dataset_size=10_000), data="pets.yaml", epochs=50)``

    Guarantee: that of :func:`dptrain.train`; the statement lies in the run's folder. Callbacks of yours are called at
    the evaluations, and see what is noised or public.

    Args:
        epsilon: Target of the whole run; or give ``noise_multiplier``.
        dataset_size: Declared, public number of training images (units).
        **options: Other keys of ``privacy``, such as ``delta`` or ``unit``, and keywords of :func:`dptrain.train`,
            such as ``budget={"url": ...}``. They go with the settings that ``train`` is given, in Ultralytics' words
            or in dptrain's.

    Raises:
        ConfigError: ``train`` raises it, before its first step, for a setting that cannot be.
    """
    of_privacy = vars(PrivacyConfig())
    given = {"epsilon": epsilon, "dataset_size": dataset_size, **options}
    privacy = {name: value for name, value in given.items() if name in of_privacy and value is not None}
    rest = {name: value for name, value in given.items() if name not in of_privacy}
    privacy |= rest.pop("privacy", {})

    def make(overrides: Mapping[str, Any], _callbacks: Callbacks | None = None) -> PrivateDetectionTrainer:
        return PrivateDetectionTrainer({**rest, "privacy": privacy}, overrides, _callbacks or {})

    return make


class PrivateDetectionTrainer(Watcher):
    """A trainer by Ultralytics' contract; everything underneath is :func:`dptrain.train`.

    Attributes:
        args: The settings, as a namespace.
        save_dir: Folder of the run; ``wdir`` is that of its weights.
        last: ``weights/last.pt``, to share.
        best: ``weights/best.pt``, the same weights and the place of your data, so that ``model.val()`` finds it.
        csv: ``results.csv``, in Ultralytics' columns and ``dp/*``.
        epochs: Passes over the declared data, rounded up; ``epoch`` is the one of the last evaluation.
        model: The network, with the last iterate.
        validator: Its ``metrics`` are Ultralytics' ``DetMetrics`` of the last evaluation.
        metrics: The last evaluation, by Ultralytics' names, and the budget as ``dp/*``.
        fitness: Its mAP50-95; ``best_fitness`` is the highest so far.
        lr: The learning rate, as ``lr/pg0``.
        stop: Set it in a callback to end the run at that evaluation; all of its steps so far stay charged.
    """

    def __init__(self, options: Mapping[str, Any], overrides: Mapping[str, Any], callbacks: Callbacks) -> None:
        given = {key: value for key, value in overrides.items() if key not in _OF_THE_CALL and value is not None}
        if twice := sorted(options.keys() & given.keys()):
            raise ConfigError(f"{twice[0]} is given to dptrain.trainer() and to train(): give it once")
        if not isinstance(given.get("data", ""), str | Path):
            raise ConfigError("data: Ultralytics takes a data.yaml; give a dataset of your own to dptrain.train")
        if isinstance(device := given.get("device"), list | tuple):
            given["device"] = ",".join(map(str, device))
        self.config = settings.resolve(settings.from_kwargs(**as_keywords({**options, **given})))
        if self.config.seal.recipients:
            raise ConfigError("seal.recipients: Ultralytics cannot open sealed weights: use dptrain.train")
        self.callbacks = {event: list(called) for event, called in callbacks.items()}
        self.args = SimpleNamespace(**given, save_dir=self.config.output_dir)
        self.save_dir = Path(self.config.output_dir)
        self.wdir = self.save_dir / "weights"
        self.last, self.best, self.csv = self.wdir / "last.pt", self.wdir / "best.pt", self.save_dir / "results.csv"
        self.model: Any = None
        self.validator = SimpleNamespace(metrics=None)
        self.metrics: dict[str, float] = {}
        self.fitness: float | None = None
        self.best_fitness: float | None = None
        self.epoch = self.start_epoch = self.epochs = 0
        self.batch_size = 0
        self.lr: dict[str, float] = {}
        self.device: torch.device | None = None
        self.data: dict[str, Any] = {}
        self.plots: dict[Any, Any] = {}
        self.tloss = self.loss = self.ema = self.optimizer = self.scheduler = None
        self.stop = False
        self.run_callbacks("on_pretrain_routine_start")

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module | None:
        """Return the weights that ``YOLO`` holds, once they are seen to be those of the file that is trained from.

        Raises:
            ModelError: They are others, so the statement would name a start that is not the start.
        """
        if weights is not None:
            start = Path(found_start(self.config.model, download=self.config.download))
            held, filed = weights.state_dict(), open_checkpoint(start).state_dict()
            if held.keys() != filed.keys() or any(
                not torch.equal(held[key].to(filed[key]), filed[key]) for key in held
            ):
                raise ModelError(f"this YOLO object holds other weights than {start}: save them, and open that file")
        return weights

    def add_callback(self, event: str, callback: Callable[[Any], object]) -> None:
        """Call ``callback(trainer)`` at an event, after those that are there."""
        self.callbacks.setdefault(event, []).append(callback)

    def set_callback(self, event: str, callback: Callable[[Any], object]) -> None:
        """Call ``callback(trainer)`` alone at an event."""
        self.callbacks[event] = [callback]

    def run_callbacks(self, event: str) -> None:
        """Call what was added for an event."""
        for callback in self.callbacks.get(event, []):
            callback(self)

    def train(self) -> None:
        """Train privately; afterwards ``last`` and ``best`` are there.

        Raises:
            DptrainError: As :func:`dptrain.train`.
        """
        console = Console(stderr=True)
        for line in _OFF:
            console.print(f"dptrain: {line}", soft_wrap=True, markup=False, highlight=False)
        try:
            train_from_config(self.config, self)
        except SystemExit:
            if not self.stop:
                raise
        finally:
            self.run_callbacks("teardown")

    def began(self, run: Prepared) -> None:
        """Take over what the run has settled."""
        self.model, self.device = run.model, run.device
        self.data = {"nc": len(run.model.names), "names": run.model.names, "val": self.config.data}
        self.batch_size = run.plan.expected_batch_size
        self.epochs = math.ceil(run.plan.steps * run.plan.sample_rate)
        self.run_callbacks("on_pretrain_routine_end")
        self.run_callbacks("on_train_start")

    def evaluated(self, run: Prepared, step: int, row: Mapping[str, float], metrics: Metrics | None) -> bool:
        """Call what waits for the end of an epoch; there is one at every evaluation."""
        self.epoch = max(0, math.ceil(step * run.plan.sample_rate) - 1)
        self.metrics = {stock_name(key): value for key, value in row.items() if key not in ("step", "epoch")}
        self.lr = {"lr/pg0": run.trainer.optimizer.param_groups[0]["lr"]}
        self.run_callbacks("on_train_epoch_start")
        self.run_callbacks("on_train_epoch_end")
        if metrics is not None:
            self.validator.metrics = metrics.whole
            self.fitness = metrics.values[KEYS[-1]]
            self.best_fitness = max(self.fitness, self.best_fitness or 0.0)
        if step:
            self.run_callbacks("on_model_save")
        self.run_callbacks("on_fit_epoch_end")
        if self.stop:
            self._write_best(run)
        return self.stop

    def ended(self, run: Prepared) -> None:
        """Write ``best.pt``, and call what waits for the end."""
        self._write_best(run)
        self.run_callbacks("on_train_end")

    def _write_best(self, run: Prepared) -> None:
        place = {"data": str(shipped(Path(self.config.data)).absolute()), "imgsz": self.config.imgsz}
        with run.trainer.average.applied():
            save_weights(run.model, self.best, train_args=place)
