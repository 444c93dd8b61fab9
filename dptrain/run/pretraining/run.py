"""One public training from its settings to weights with their record: ``dptrain pretrain``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...datasets.data_yaml import data_name
from ...detection.data import DetectionDataset, load_data
from ...detection.evaluate import evaluate
from ...detection.model import save_weights
from ...detection.public import PublicTraining, public_model, without_chatter
from ...errors import ConfigError
from ...statement.facts import package_version
from ...statement.results import MAP, MAP50
from ...support.devices import usable_device
from ...support.files import differences, file_hash, read_json, write_json, write_text
from ...support.released import found_start
from ..declared_public import DeclaredPublic
from ..progress import make_console
from ..public_start import RECORD, declared_start, refuse_private_start, write_record
from .scenes import Generator, load_generator, write_scenes
from .schema import FREE_TO_CHANGE, PretrainConfig, from_kwargs, resolve

_SETTINGS, _WORK, _SCENES = "settings.json", "ultralytics", "scenes"
_PACKAGES = ("dptrain", "ultralytics", "torch", "numpy")


@dataclass(frozen=True)
class PretrainResult:
    """What a finished training gives back.

    Attributes:
        weights: ``weights/last.pt``, the moving average in half precision; a start for ``dptrain train model=``.
        metrics: Ultralytics' metrics on the public validation split.
        record: What ``weights/pretraining.json`` says.
        output_dir: The folder.
    """

    weights: Path
    metrics: dict[str, float]
    record: dict[str, Any] = field(repr=False)
    output_dir: Path


def pretrain(**options: Any) -> PretrainResult:
    """Train a detector on public data, without privacy; the keywords are the keys of ``dptrain pretrain``.

    No guarantee of any kind holds for the images that are trained on here.

    Raises:
        DptrainError: One line with what is wrong and the fix, before the first epoch wherever that is possible.
    """
    return pretrain_from_config(from_kwargs(options))


def pretrain_from_config(config: PretrainConfig) -> PretrainResult:
    """Do what :func:`pretrain` does, from the typed configuration."""
    return PublicRun(resolve(config), make_console()).execute()


class PublicRun:
    """One public training. What can be refused is refused before anything is written."""

    def __init__(self, config: PretrainConfig, console: Console) -> None:
        config = replace(config, model=found_start(config.model, download=config.download))
        self.config, self.console = config, console
        self.output = Path(config.output_dir)
        self.device = usable_device(config.device)
        self.start = Path(config.model)
        refuse_private_start(self.start)
        self.generator: Generator | None = None
        if config.scenes.generator is not None:
            self.generator = load_generator(config.scenes.generator)
        self.settings = self._settings()
        self._check_folder()
        if self.generator is None:
            assert config.data is not None
            self.data = load_data(config.data, text_for="dptrain pretrain")
            self._compare_with_ledger()
        names = self.data.names if self.generator is None else self.generator.names
        self.detector = None if self._checkpoint.exists() else public_model(config.model, names, config.norm)

    @property
    def _checkpoint(self) -> Path:
        return self.output / _WORK / "weights" / "last.pt"

    def _settings(self) -> dict[str, Any]:
        values = asdict(self.config)
        for name in FREE_TO_CHANGE:
            values.pop(name)
        start = file_hash(self.start) if self.start.suffix == ".pt" and self.start.is_file() else None
        generator = self.generator.sha256 if self.generator else None
        return json.loads(json.dumps({**values, "start_sha256": start, "generator_sha256": generator}))

    def _check_folder(self) -> None:
        """Refuse a folder with something else in it, and a training that goes on with other settings."""
        file = self.output / _SETTINGS
        if not self.config.resume:
            if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
                raise ConfigError(f"output_dir={self.output} is not empty: choose another, or resume=true to continue")
            return
        if not file.is_file():
            raise ConfigError(f"resume=true, and output_dir={self.output} holds no pre-training: leave resume out")
        if (self.output / "weights" / RECORD).is_file():
            raise ConfigError(f"the pre-training in output_dir={self.output} is finished: start a new one elsewhere")
        try:
            changed = differences(self.settings, read_json(file))
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"{file} cannot be read ({error}), so the training cannot be resumed") from error
        if changed:
            raise ConfigError(
                f"{changed}: not the settings of the training in {self.output}; "
                "resume with its own (config.yaml), or start a new one elsewhere"
            )

    def _compare_with_ledger(self) -> None:
        images = [*self.data.files("train"), *self.data.files("val")]
        declared = DeclaredPublic("the images to pre-train on", images, "take it out")
        self.compared = declared.refuse_protected(self.config.budget)

    def execute(self) -> PretrainResult:
        self.output.mkdir(parents=True, exist_ok=True)
        write_json(self.output / _SETTINGS, self.settings)
        write_text(self.output / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.config)))
        with self._says_how_to_go_on():
            if self.generator is not None:
                self.data = load_data(self._scenes(self.generator))
                self._compare_with_ledger()
            for split in ("train", "val"):  # every image and label is looked at, with one line for what is wrong
                dataset = DetectionDataset(self.data, split, self.config.imgsz)
            self._say(
                f"dptrain: {self.start.name} on {self._name}, {len(self.data.train)} images, WITHOUT privacy, "
                f"{self.config.epochs} epochs, {self.device}; compared with {self.compared}"
            )
            training = self._train()
        return self._finish(training, dataset)

    @property
    def _name(self) -> str:
        return self.generator.module if self.generator else data_name(self.data.file)

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    @contextmanager
    def _says_how_to_go_on(self) -> Iterator[None]:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            error.add_note(f"resume with the same command and output_dir={self.output} resume=true")
            raise

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Any]:
        """A bar on a terminal, nothing elsewhere; gives what moves it on by one."""
        columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(), TextColumn("left"), TimeRemainingColumn())
        off = not (self.console.is_terminal and self.console.file.isatty())
        with Progress(*columns, console=self.console, disable=off, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)

    def _scenes(self, generator: Generator) -> Path:
        root, scenes = self.output / _SCENES, self.config.scenes
        if (root / "data.yaml").is_file():  # written last
            return root / "data.yaml"
        counts = {"train": scenes.train, "val": scenes.val}
        self._say(f"dptrain: drawing {sum(counts.values())} scenes of {generator.module}")
        with self._bar("scenes", sum(counts.values())) as advance:
            return write_scenes(generator, root, counts, scenes.seed, advance)

    def _train(self) -> PublicTraining:
        batches = -(-len(self.data.train) // self.config.batch_size)
        with self._bar("steps", batches * self.config.epochs) as advance, without_chatter():

            def on_epoch(done: int, row: dict[str, float]) -> None:
                self._say(
                    f"epoch {done:>4}/{self.config.epochs}  loss {row['train/loss']:.3f}  mAP50 {row[MAP50]:.3f}  "
                    f"mAP50-95 {row[MAP]:.3f}"
                )

            training = PublicTraining(self.detector, self._arguments(), advance, on_epoch)
            training.train()
        return training

    def _arguments(self) -> dict[str, Any]:
        """Ultralytics' own names for the settings."""
        config, work = self.config, (self.output / _WORK).absolute()
        optimizer, schedule, augment = config.optimizer, config.schedule, asdict(config.augment)
        lr = optimizer.lr if optimizer.lr is not None else 0.01 if "sgd" in optimizer.name else 0.001
        augment["close_mosaic"] = min(config.augment.close_mosaic, config.epochs // 5)
        arguments = {
            "model": config.model, "data": str(self._list_images(work)), "imgsz": config.imgsz,
            "epochs": config.epochs, "batch": config.batch_size, "nbs": config.batch_size, "workers": config.workers,
            "device": self.device, "seed": config.seed, "project": str(work.parent), "name": work.name,
            "exist_ok": True, "save_dir": str(work), "patience": 0, "plots": False, "verbose": False, "amp": False,
            "optimizer": optimizer.name, "lr0": lr, "momentum": optimizer.momentum,
            "weight_decay": optimizer.weight_decay, "warmup_bias_lr": 0.0, "cos_lr": schedule.name == "cosine",
            "lrf": schedule.final, "warmup_epochs": min(schedule.warmup_epochs, config.epochs / 10), **augment,
        }  # fmt: skip
        return {**arguments, "resume": str(self._checkpoint)} if self.detector is None else arguments

    def _list_images(self, work: Path) -> Path:
        """The same images in a data.yaml that leaves Ultralytics nothing to look for or to download."""
        work.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            lines = (str(image.resolve()) for image in self.data.files(split))
            write_text(work / f"{split}.txt", "".join(f"{line}\n" for line in lines))
        content = {"path": str(work), "train": "train.txt", "val": "val.txt", "names": self.data.names}
        write_text(work / "data.yaml", yaml.safe_dump(content, sort_keys=False))
        return work / "data.yaml"

    def _finish(self, training: PublicTraining, validation: DetectionDataset) -> PretrainResult:
        model = training.average()
        metrics = evaluate(model, validation, device=self.device).values
        weights = save_weights(model, self.output / "weights" / "last.pt", half=True)
        shutil.copy(self.output / _WORK / "results.csv", self.output / "results.csv")
        write_record(weights, self._record(metrics))  # last: from here on the training is over
        shutil.rmtree(self.output / _WORK)
        self._say(f"done: mAP50 {metrics[MAP50]:.3f} on the public val split; {weights}, and what made it beside it")
        return PretrainResult(weights, metrics, read_json(weights.parent / RECORD), self.output)

    def _record(self, metrics: dict[str, float]) -> dict[str, Any]:
        config, generator = self.config, self.generator
        source: dict[str, Any] = {"name": self._name, "train": len(self.data.train), "val": len(self.data.val)}
        if generator is not None:
            source |= {"seed": config.scenes.seed, "generator_sha256": generator.sha256}
        return {
            "public_data": self._in_words(),
            "start": self.start.name,
            "start_sha256": self.settings["start_sha256"],
            "images": source,
            "compared_with": self.compared,
            "classes": [self.data.names[i] for i in sorted(self.data.names)],
            "metrics": {key: round(value, 4) for key, value in metrics.items()},
            "settings": {key: value for key, value in self.settings.items() if not key.endswith("sha256")},
            "versions": {name: package_version(name) for name in _PACKAGES},
            "date": datetime.now(UTC).date().isoformat(),
        }

    def _in_words(self) -> str:
        """What the statement of a private run will say its start was made from."""
        if self.generator is not None:
            images = f"{len(self.data.train)} scenes drawn by {self.generator.module} (seed {self.config.scenes.seed})"
        else:
            images = f"{len(self.data.train)} images of {self._name}, declared public"
        own = self.config.public_data
        words = f"dptrain pretrain on {images}{f' ({own})' if own else ''}"
        if self.start.suffix != ".pt":
            return words
        earlier = declared_start(self.start) or "made from data that was not declared"
        return f"{words}, from {self.start.name}: {earlier}"
