"""One training run from its settings to its statement: ``dptrain train`` and ``dptrain.train``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..datasets.data_yaml import data_name
from ..datasets.groups import groups_of, in_words, refuse_shared_groups
from ..datasets.identity import pictures_in
from ..datasets.repeats import refuse_repeats
from ..datasets.sources import public_images
from ..detection.data import DataConfig, DetectionDataset, StepLoader, load_data
from ..detection.evaluate import evaluate
from ..detection.loss import PerImageLoss, one2many_weight
from ..detection.memory import physical_batch_size
from ..detection.model import save_weights
from ..detection.probe import refuse_coupled_images
from ..detection.scales import layer_scales, public_part
from ..errors import BudgetError, PrivacyError, SupersededError
from ..gradients import trainable_parameters
from ..privacy.plan import PrivacyPlan
from ..privacy.units import UnitRows
from ..sealing.weights import is_weights, weights_hash
from ..settings.schema import DEFAULT_ROWS_PER_UNIT, FREE_TO_CHANGE, TrainConfig
from ..statement import claim_of, make_statement, write_statement
from ..statement.results import append_rows
from ..statement.start_runs import StartRun
from ..support.devices import usable_device
from ..support.files import even_times
from ..support.signals import stop_signal
from ..support.words import shown
from ..training.checkpoint import load_checkpoint, save_checkpoint, scales_of
from ..training.trainer import PrivateTrainer, learning_rate
from .build import augmentation_of, loss_settings, model_of, with_rate
from .charge import RunCharge
from .declared_public import DeclaredPublic
from .facts import runs_behind, training_facts, validation_words
from .folder import CHECKPOINT, RunFolder
from .optimizers import make_optimizer
from .outputs import OutputFiles
from .progress import Progress
from .publishing import config_text, draw, open_tracker, publish
from .tracking import NoTracker, Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run gives back.

    Attributes:
        weights: ``weights/last.pt``, the moving average; opens with ``ultralytics.YOLO``; ``last.pt.age`` if sealed.
        epsilon: RDP epsilon of the plan, all of whose steps were taken, at ``plan.delta``; that of the whole tuning,
            where there was one.
        metrics: Ultralytics' metrics on the validation split at the end; empty without evaluation.
        statement: The privacy statement, as in ``statement.json``.
        output_dir: The folder of the run.
        plan: The plan it followed.
    """

    weights: Path
    epsilon: float
    metrics: dict[str, float]
    statement: dict[str, Any] = field(repr=False)
    output_dir: Path
    plan: PrivacyPlan


class Run:
    """The state of one run. Everything that can be refused is refused before the output folder exists.

    ``tuning``, where there was one, is that section of the statement; the run is then paid for by the tuning, whose
    ``charge`` has been reserved before, and ``start_runs`` are those behind the start of any of its candidates.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: PrivacyPlan,
        console: Console,
        tuning: Mapping[str, Any] | None = None,
        charge: RunCharge | None = None,
        start_runs: Sequence[StartRun] | None = None,
    ) -> None:
        self.config, self.plan, self.console, self.tuning = config, plan, console, tuning
        self.folder = RunFolder(Path(config.output_dir), config.resume)
        self.output = self.folder.path
        self.outputs = OutputFiles(config.seal)
        self.folder.check()
        self.device = torch.device(usable_device(config.device))
        data = load_data(config.data)
        self.data_name = data_name(Path(config.data))
        self.evaluates = config.validation == "public" and bool(data.val)
        with _seeded(config.seed):
            self.model = model_of(config, data).to(self.device)
        self._rate_by_rule = config.optimizer.lr is None
        self.config = config = with_rate(config, plan, self.model)
        start = Path(config.model)
        self.start_hash = weights_hash(start) if is_weights(start) else None
        self.start_runs = runs_behind(start, config.start_runs) if start_runs is None else start_runs
        self.folder.refuse_inside(data)
        self.groups, self._val_groups = self._groups(data)
        self.dataset = DetectionDataset(data, "train", config.imgsz, augmentation_of(config), verify=False)
        self.pictures = pictures_in(self.dataset.image_files)  # each decoded once, by which it is also checked
        self._copies_are_one = config.privacy.same_picture == "one_unit"
        if not self._copies_are_one:
            refuse_repeats(self.pictures, self.groups)
        self.validation = DetectionDataset(data, "val", config.imgsz, verify=False) if self.evaluates else None
        self._refuse_private_images()
        self._scaled_by: dict[str, Any] | None = None
        self.plan = plan = self._with_scales(data)  # from here on the layers are those that train
        self.units = self._units()
        rows = 1 if self.units is None else self.units.most_at_once
        self.physical_batch_size = (
            physical_batch_size(
                self.model,
                config.imgsz,
                plan.expected_batch_size,
                self.device,
                sample_rate=plan.sample_rate,
                rows=rows,
            )
            if config.physical_batch_size == "auto"
            else int(config.physical_batch_size)
        )
        self.trainer = self._trainer()
        self._describe(data)
        self._pays = charge is None and tuning is None
        self._untold: int | None = None  # steps that the ledger could not be told of
        self._unseen = 0  # steps that may have been taken, and this folder does not know it
        self.charge = charge or RunCharge(
            config.budget,
            plan.event(),
            plan.delta,
            plan.unit,
            self.pictures,
            self.data_name,
            self.groups,
            self._copies_are_one,
        )
        if self._pays:
            self.charge.prepare()

    def _refuse_private_images(self) -> None:
        """Refuse training images, and images that the ledger protects, where public ones are declared."""
        declared: list[DeclaredPublic] = []
        if self.validation is not None:
            fix = "take it out of val, or set validation=off"
            declared.append(DeclaredPublic("the val images", self.validation.image_files, fix, self._val_groups))
        if self.config.public_images is not None:
            files = public_images(self.config.public_images)
            fix = "start from weights that other images made, or train without it"
            declared.append(DeclaredPublic("public_images", files, fix))
        for images in declared:
            images.refuse_training(self.pictures)
            images.refuse_protected(self.config.budget)

    def _groups(self, data: DataConfig) -> tuple[list[str] | None, list[str] | None]:
        """The group of every train and val image, where groups are protected; none of them is in both splits."""
        if self.plan.unit != "group":
            return None, None
        val = data.val if self.evaluates else ()
        found = groups_of(self.config.privacy.groups, (*data.train, *val))
        count = len(data.train)
        refuse_shared_groups(
            dict(zip(data.train, found[:count], strict=True)), dict(zip(val, found[count:], strict=True))
        )
        return found[:count], found[count:]

    def _units(self) -> UnitRows | None:
        """The rows of every unit; None where each image, seen once, is one."""
        copies = self.config.augment.multiplicity
        if self.groups is not None:
            return UnitRows(self.groups, self.config.privacy.rows_per_unit or DEFAULT_ROWS_PER_UNIT, copies)
        if self._copies_are_one:  # a step takes one of a picture's copies, drawn anew
            return UnitRows(list(self.pictures.values()), copies=copies)
        return UnitRows(range(len(self.dataset)), copies=copies) if copies > 1 else None

    def _with_scales(self, data: DataConfig) -> PrivacyPlan:
        """The plan with the scales that its clip rule asks for, measured on public images with the start's weights."""
        file = self.config.privacy.clip_scales
        if file is None:
            return self.plan
        public = public_part(file, data)
        declared = DeclaredPublic(f"the images of privacy.clip_scales={file}", public.train, "name other public images")
        declared.refuse_training(self.pictures)
        compared = declared.refuse_protected(self.config.budget)
        self._scaled_by = {"data": data_name(Path(file)), "images": len(public.train), "compared": compared}
        if self.config.resume and self._checkpoint_file.exists():  # a start that was random is gone
            scales = scales_of(self._checkpoint_file, self.outputs.read(self.output / CHECKPOINT))
        else:
            loss = PerImageLoss(one2many_weight(0.5), settings=loss_settings(self.config))
            images = DetectionDataset(public, "train", self.config.imgsz, verify=False)
            scales = layer_scales(self.model, loss, images)
        return replace(self.plan, clipping=replace(self.plan.clipping, scales=scales))

    def _settings(self) -> dict[str, Any]:
        """What must not change when a run goes on, all of it public."""
        values = asdict(self.config)
        for name in FREE_TO_CHANGE:
            values.pop(name)
        del values["seal"]
        if self.config.seal.recipients:
            values["sealed"] = True
        return {
            **values,
            "start_sha256": self.start_hash,
            **({"start_runs_found": [run.model_dump() for run in self.start_runs]} if self.start_runs else {}),
            "names": [self.model.names[i] for i in sorted(self.model.names)],
        }

    def _trainer(self) -> PrivateTrainer:
        config, plan = self.config, self.plan
        loss = PerImageLoss(settings=loss_settings(config))
        schedule, highest = config.schedule, config.optimizer.lr
        assert highest is not None and config.ema.decay is not None

        def rate(step: int) -> float:
            return learning_rate(schedule.name, highest, step, plan.steps, schedule.warmup_steps, schedule.final)

        def weigh_heads(step: int) -> None:
            loss.one2many = one2many_weight(step / max(1, plan.steps - 1))

        refuse_coupled_images(self.model, config.engine, loss)
        return PrivateTrainer(
            self.model,
            loss,
            plan,
            make_optimizer(config.optimizer, trainable_parameters(self.model).values()),
            StepLoader(self.dataset, self.physical_batch_size, config.workers, self.device, self.units),
            len(self.dataset) if self.units is None else len(self.units),
            seed=config.seed,
            engine=config.engine,
            exact=config.noise.exact,
            ema_decay=config.ema.decay,
            set_rate=rate,
            before_step=weigh_heads,
            on_release=self._count,
            probe=False,
        )

    def _count(self, steps: int) -> None:
        """Count a step before its noise is drawn, if the ledger has given leave for it."""
        if self._pays:
            self.charge.lease(steps)
        self.folder.journal.record(steps)

    def _describe(self, data: DataConfig) -> None:
        plan, say = self.plan, self._say
        rule = "" if plan.clipping.name == "flat" else f" ({plan.clipping.name})"
        trainable = sum(p.numel() for p in self.trainer.parameters.values())
        total = sum(p.numel() for p in self.model.parameters())
        say(
            f"dptrain: {Path(self.config.model).name} on {self.data_name}: {data.num_classes} classes, "
            f"{trainable:,} of {total:,} parameters train, {self.device}"
        )
        say(
            f"epsilon {shown(plan.epsilon())} (RDP; PLD {shown(plan.epsilon('pld'))}), delta {plan.delta:.3g}, "
            f"unit {plan.unit}: {plan.steps} steps, noise multiplier {plan.noise_multiplier:.4g}, "
            f"clip norm {plan.clip_norm:g}{rule}, sample rate {plan.sample_rate:.4g}, "
            f"expected batch {plan.expected_batch_size} ({self.physical_batch_size} at a time)"
        )
        if self._rate_by_rule:
            say(f"optimizer.lr is not set: {self.config.optimizer.lr:g}, by the rule of docs/training.md")
        if self.evaluates:
            say("validation=public: the metrics of the val split are released without noise")
        elif self.config.validation == "public":
            say(f"no evaluation: {self.config.data} has no val split")

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def execute(self) -> TrainResult:
        """Train, and leave a folder whose files all have one time, however it ends."""
        try:
            return self._execute()
        finally:
            even_times(self.output)

    def _execute(self) -> TrainResult:
        with ExitStack() as stack:
            stack.enter_context(self.folder.opened(config_text(self.config), self._settings()))
            stack.enter_context(self._charged())
            tracker = stack.enter_context(self._tracker())
            self._restore()
            stop = stack.enter_context(stop_signal())
            stack.enter_context(self._says_how_to_go_on())
            if not self._checkpoint_file.exists():
                self._checkpoint()  # the start, which may be random
            if self.trainer.step == 0:
                self._evaluate(tracker)
            with Progress(self.console, self.plan) as progress:
                progress.update(self.trainer.step)
                self._lease()
                for step in self.trainer.run():
                    progress.update(step)
                    if step == self.plan.steps:
                        break
                    if stop.is_set():
                        self._stop_early(tracker)
                    if step % self._every == 0:
                        self._write_weights()
                        self._write_statement("running")
                        self._evaluate(tracker, progress)
                    elif step % (self.config.checkpoint_every or self._every) == 0:
                        self._checkpoint()
                    self._lease()
            self._write_weights()
            self._evaluate(tracker)
            return self._finish(tracker)

    @contextmanager
    def _charged(self) -> Iterator[None]:
        """Reserve the whole run before its first step, and settle it at the steps it started, however it ends."""
        reason = "finished"
        try:
            if self._pays:
                self._begin()
            yield
        except (SystemExit, KeyboardInterrupt):
            reason = "stopped"
            raise
        except BaseException:
            reason = "failed"
            raise
        finally:
            self._settle(reason)

    def _begin(self) -> None:
        journal = self.folder.journal
        self._say(self.charge.begin(self.output, self.config.resume, journal.steps))
        self._unseen = max(0, self.charge.taken - journal.steps)
        journal.record(self.charge.taken)

    def _lease(self) -> None:
        """Ask for the next step before anything of it is computed; where it is refused, nothing of the others is lost.

        Raises:
            BudgetError: The ledger gives no leave, or is away.
        """
        if not self._pays or self.trainer.step >= self.plan.steps:
            return
        try:
            self.charge.lease(self.trainer.step + 1)
        except SupersededError:
            raise
        except BudgetError:
            self._checkpoint()
            raise

    def _settle(self, reason: str) -> None:
        steps = self.folder.journal.steps
        if self._pays and steps != self._untold and not self.charge.settle(steps, reason):
            self.folder.keep, self._untold = True, steps

    @contextmanager
    def _says_how_to_go_on(self) -> Iterator[None]:
        """Add to what stops a run between its first and its last step what is kept of it, and the next command."""
        try:
            yield
        except (PrivacyError, SupersededError):  # going on would fail again
            raise
        except (Exception, KeyboardInterrupt) as error:
            if self._pays and (steps := self.folder.journal.steps):
                error.add_note(f"{steps} of {self.plan.steps} steps are taken and kept: {self._next_command}")
            raise

    @property
    def _next_command(self) -> str:
        return f"resume with the same command and output_dir={self.output} resume=true"

    @property
    def _every(self) -> int:
        return self.config.evaluate_every or self.plan.steps

    def _tracker(self) -> Tracker:
        if not self.config.tracking.enabled:
            return NoTracker()
        return open_tracker(self.config, self.plan, self.output, self.data_name, self.trainer.secure)

    def _restore(self) -> None:
        if not self.config.resume:
            return
        checkpoint = self._checkpoint_file
        if checkpoint.exists():
            content = self.outputs.read(self.output / CHECKPOINT)
            state = load_checkpoint(checkpoint, self.plan, self.config.seed, content)
        elif self.folder.journal.steps < self.plan.steps:
            state = self.trainer.state()  # stopped before its first checkpoint: the start, with those steps spent
        else:
            raise PrivacyError(
                f"{checkpoint} is gone and all {self.plan.steps} steps are spent: nothing is left to resume"
            )
        spent = self.folder.journal.steps if self.trainer.secure else state["step"]
        lost = spent - state["step"]
        self.trainer.restore(state, spent)
        lost -= self._unseen
        self._say(
            f"resumed after step {state['step']}"
            + (f"; {lost} later steps were started and lost, and stay spent" if lost > 0 else "")
            + (
                f"; {self._unseen} more may have been taken since, here or by the folder that this is a copy of, and "
                "stay spent"
                if self._unseen
                else ""
            )
        )

    @property
    def _checkpoint_file(self) -> Path:
        return self.outputs.place(self.output / CHECKPOINT)

    def _checkpoint(self) -> None:
        state = self.trainer.state()
        save_checkpoint(self.output / CHECKPOINT, state, self.plan, self.config.seed, self.outputs.write)

    def _write_weights(self) -> None:
        """Write the state and the weights, in this order, before anything of them is reported."""
        self._checkpoint()
        save_weights(self.model, self.output / "weights" / "last_raw.pt", write=self.outputs.write)
        with self.trainer.average.applied():
            save_weights(self.model, self.output / "weights" / "last.pt", write=self.outputs.write)

    def _write_statement(self, status: str) -> dict[str, Any]:
        statement = make_statement(
            self.plan,
            steps=max(self.trainer.step, self.folder.journal.steps if self.trainer.secure else 0),
            status=status,
            secure=self.trainer.secure,
            dataset={
                "name": self.data_name,
                "declared_size": self.config.privacy.dataset_size,
                **({} if self.groups is None else {"groups": in_words(self.config.privacy.groups)}),
                **({"same_picture": "copies of one picture count as one image"} if self._copies_are_one else {}),
            },
            model={
                "start": Path(self.config.model).name,
                "start_sha256": self.start_hash,
                "trainable": self.config.trainable,
                "trainable_parameters": sum(p.numel() for p in self.trainer.parameters.values()),
            },
            validation=validation_words(self.evaluates, chose=self.tuning is not None),
            deviations=self.charge.deviations,
            start_runs=self.start_runs,
            public_data={
                "start_weights": Path(self.config.model).name,
                "sha256": self.start_hash,
                "declared": self.config.public_data,
                "compared": self.config.public_images is not None,
                **({} if self._scaled_by is None else {"clip_scales": self._scaled_by}),
            },
            training=training_facts(self.config, self.plan.unit),
            tuning=self.tuning,
            dataset_budget=self.charge.facts,
        )
        return write_statement(self.output, statement, self.outputs.contents)

    def _evaluate(self, tracker: Tracker, progress: Progress | None = None) -> None:
        if self.validation is None:
            return
        step = self.trainer.step
        with self.trainer.average.applied():
            result = evaluate(self.model, self.validation, batch_size=self.physical_batch_size, device=str(self.device))
        row = {
            "step": step,
            **self._costs(step),
            "dp/delta": self.plan.delta,
            **result.values,
        }
        append_rows(self.output / "results.csv", [row])
        per_class: list[dict[str, Any]] = [
            {"step": step, "class": name, **values} for name, values in result.per_class.items()
        ]
        append_rows(self.output / "per_class.csv", per_class)
        tracker.metrics({key: value for key, value in row.items() if key != "step"}, step)
        text = (
            f"step {step:>5}/{self.plan.steps}  "
            f"epsilon {shown(row['dp/epsilon'])} of {shown(row['dp/epsilon_claimed'])}  "
            f"mAP50 {row['metrics/mAP50B']:.3f}  mAP50-95 {row['metrics/mAP50-95B']:.3f}"
        )
        (progress.print if progress else self._say)(text)

    def _costs(self, step: int) -> dict[str, float]:
        """What the outputs up to a step cost whoever sees no later ones, and what is claimed, wherever the run ends.

        Of a tuning's winner both are what all of the tuning costs.
        """
        if self.tuning is not None:
            epsilon = claim_of(self.plan, self.plan.steps, self.tuning).epsilon
            return {"dp/epsilon": epsilon, "dp/epsilon_pld": epsilon, "dp/epsilon_claimed": epsilon}
        return {
            "dp/epsilon": self.plan.epsilon(steps=step),
            "dp/epsilon_pld": self.plan.epsilon("pld", steps=step),
            "dp/epsilon_claimed": self.plan.epsilon(),
        }

    def _stop_early(self, tracker: Tracker) -> None:
        self._write_weights()
        self._settle("stopped")
        draw(self.config, self.output, self.data_name)
        self._write_statement("stopped")
        publish(self.output, tracker)
        raise SystemExit(f"stopped after step {self.trainer.step} of {self.plan.steps}; {self._next_command}")

    def _finish(self, tracker: Tracker) -> TrainResult:
        self._settle("finished")
        draw(self.config, self.output, self.data_name)
        statement = self._write_statement("finished")  # last of the folder: from here on the run is over
        metrics = publish(self.output, tracker)
        epsilon = statement["guarantee"]["epsilon"]
        weights = self.outputs.place(self.output / "weights" / "last.pt")
        self._say(f"done: epsilon {shown(epsilon)} at delta {self.plan.delta:.3g}; {weights}")
        return TrainResult(weights, epsilon, metrics, statement, self.output, self.plan)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Make the random start of a test run repeatable; torch's own generator makes nothing that protects."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
