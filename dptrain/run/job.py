"""One training run from its first step to its statement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from ..datasets.groups import COLUMN as GROUP
from ..datasets.groups import in_words as groups_in_words
from ..datasets.own import is_own
from ..datasets.people_table import COLUMN as PERSON
from ..detection.evaluate import evaluate
from ..detection.model import save_weights
from ..errors import BudgetError, PrivacyError, SupersededError
from ..privacy.plan import PrivacyPlan
from ..statement import claim_of, make_statement, write_statement
from ..statement.results import append_rows
from ..support.files import even_times
from ..support.signals import stop_signal
from ..support.words import shown
from ..training.checkpoint import load_checkpoint, save_checkpoint
from ..training.trainer import PrivateTrainer
from .facts import training_facts, validation_words
from .folder import CHECKPOINT
from .lines import in_words, lines_before
from .notes import tell_owner
from .phases import facts_of, number_of
from .prepare import Prepared
from .private_validation import PrivateValidation
from .progress import Progress
from .publishing import config_text, draw, open_tracker, publish
from .tracking import NoTracker, Tracker
from .watcher import Watcher


@dataclass(frozen=True)
class TrainResult:
    """What a finished run gives back.

    Attributes:
        weights: ``weights/last.pt``, the moving average; opens with ``ultralytics.YOLO``; ``last.pt.age`` if sealed.
        epsilon: RDP epsilon of the plan, all of whose steps were taken, at ``plan.delta``; that of the whole tuning,
            where there was one.
        metrics: Ultralytics' metrics on the public validation split at the end; of a private one the noised
            estimates, ``metrics/noised/...``; empty without evaluation.
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
    """Executes what :func:`~dptrain.run.prepare.prepare` has decided, once: from its first step to its statement.

    Or up to step ``until``, by :meth:`execute_part`, after which it stops, to be resumed. ``watcher`` is told of it.
    """

    def __init__(
        self, prepared: Prepared, console: Console, until: int | None = None, watcher: Watcher | None = None
    ) -> None:
        self.prepared, self.console, self.watcher = prepared, console, watcher or Watcher()
        self.config, self.plan, self.trainer = prepared.config, prepared.plan, prepared.trainer
        self.folder, self.outputs, self.charge = prepared.folder, prepared.outputs, prepared.charge
        self.output = self.folder.path
        self.until = self.plan.steps if until is None else until
        self._untold: int | None = None  # steps that the ledger could not be told of
        self._unseen = 0  # steps that may have been taken, and this folder does not know it

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def execute(self) -> TrainResult:
        """Train, and leave a folder whose files all have one time, however it ends."""
        result = self.execute_part()
        assert result is not None, "a whole run was asked for"
        return result

    def execute_part(self, begin: Callable[[PrivateTrainer], None] | None = None) -> TrainResult | None:
        """Do what :meth:`execute` does up to step ``until``; return None where the run stopped there.

        Args:
            begin: Called before the first step, with the state restored. It may put other parameters in the place of
                the iterate, if they are public or were released by this run or another; nothing else.
        """
        for line in lines_before(self.prepared):
            self._say(line)
        try:
            return self._execute(begin)
        finally:
            even_times(self.output)

    def _execute(self, begin: Callable[[PrivateTrainer], None] | None) -> TrainResult | None:
        with ExitStack() as stack:
            stack.enter_context(self.folder.opened(config_text(self.config), self.prepared.settings()))
            if self.prepared.pays:  # the number of a tuning's runs is secret
                tell_owner(self.output, self.prepared.notes)
            stack.enter_context(self._charged())
            tracker = stack.enter_context(self._tracker())
            self._restore()
            if begin is not None:
                begin(self.trainer)
            if self.prepared.group is not None:
                self.prepared.group.hand_out((self.trainer.state(), self.trainer.step))
            stop = stack.enter_context(stop_signal())
            stack.enter_context(self._says_how_to_go_on())
            if not self._checkpoint_file.exists():
                self._checkpoint()  # the start, which may be random
            self.watcher.began(self.prepared)
            if self.trainer.step == 0 and self._evaluate(tracker):
                self._end_here(tracker)
            with Progress(self.console, self.plan) as progress:
                progress.update(self.trainer.step)
                self._lease()
                for step in self.trainer.run(self.until):
                    progress.update(step)
                    if step == self.until:
                        break
                    if stop.is_set():
                        self._end_here(tracker)
                    if step % self._every == 0:
                        self._write_weights()
                        self._write_statement("running")
                        if self._evaluate(tracker, progress):
                            self._end_here(tracker)
                    elif step % (self.config.checkpoint_every or self._every) == 0:
                        self._checkpoint()
                    self._lease()
            if self.until < self.plan.steps:
                self._stop(tracker)
                return None
            self._write_weights()
            self._evaluate(tracker)
            return self._finish(tracker)

    @contextmanager
    def _charged(self) -> Iterator[None]:
        """Reserve the whole run before its first step, and settle it at the steps it started, however it ends."""
        reason = "finished"
        try:
            if self.prepared.pays:
                self._begin()
            if (private := self.prepared.private_validation) is not None:
                self._say(private.open(self.output, self.config.resume, self.folder.journal.steps))
            yield
        except (SystemExit, KeyboardInterrupt):
            reason = "stopped"
            raise
        except BaseException:
            reason = "failed"
            raise
        finally:
            try:
                self._settle(reason)
            finally:
                self._close_releases(reason)

    def _close_releases(self, reason: str) -> None:
        private = self.prepared.private_validation
        if private is not None and not private.close(reason):
            self.folder.keep = True

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
        if not self.prepared.pays or self.trainer.step >= self.until:
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
        if self.prepared.pays and steps != self._untold and not self.charge.settle(steps, reason):
            self.folder.keep, self._untold = True, steps

    @contextmanager
    def _says_how_to_go_on(self) -> Iterator[None]:
        """Add to what stops a run between its first and its last step what is kept of it, and the next command."""
        try:
            yield
        except (PrivacyError, SupersededError):  # going on would fail again
            raise
        except (Exception, KeyboardInterrupt) as error:
            if self.prepared.pays and (steps := self.folder.journal.steps):
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
        return open_tracker(self.config, self.plan, self.output, self.prepared.data_name, self.trainer.secure)

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
        folder, told = self.output / "weights", {"imgsz": self.config.imgsz}
        save_weights(self.prepared.model, folder / "last_raw.pt", train_args=told, write=self.outputs.write)
        with self.trainer.average.applied():
            save_weights(self.prepared.model, folder / "last.pt", train_args=told, write=self.outputs.write)

    def _write_statement(self, status: str) -> dict[str, Any]:
        prepared, config = self.prepared, self.config
        private = prepared.private_validation
        statement = make_statement(
            self.plan,
            steps=max(self.trainer.step, self.folder.journal.steps if self.trainer.secure else 0),
            status=status,
            secure=self.trainer.secure,
            dataset={
                "name": prepared.data_name,
                "declared_size": config.privacy.dataset_size,
                **({} if prepared.groups is None else {"groups": self._groups_in_words}),
                **(
                    {"same_picture": "copies of one picture count as one image"}
                    if config.privacy.copies_are_one
                    else {}
                ),
            },
            model={
                "start": Path(config.model).name,
                "start_sha256": prepared.start_hash,
                **({"phases": facts_of(config)} if config.phases else {"trainable": config.trainable}),
                "trainable_parameters": sum(p.numel() for p in self.trainer.parameters.values()),
            },
            validation=validation_words(
                prepared.validation is not None,
                chose=not prepared.pays,
                scaled=prepared.scaled_by is not None and prepared.scaled_by.val,
                private=private is not None,
            ),
            validation_release=None if private is None else private.facts(private.begun),
            deviations=self.charge.deviations,
            start_runs=prepared.start_runs,
            public_data={
                "start_weights": Path(config.model).name,
                "sha256": prepared.start_hash,
                "declared": config.public_data,
                "compared": config.public_images is not None,
                **({} if prepared.scaled_by is None else {"clip_scales": prepared.scaled_by.told()}),
            },
            training=training_facts(config, self.plan.unit),
            tuning=prepared.tuning,
            dataset_budget=self.charge.facts,
        )
        return write_statement(self.output, statement, self.outputs.contents)

    @property
    def _groups_in_words(self) -> str:
        column = PERSON if self.plan.unit == "person" else GROUP
        return groups_in_words(self.config.privacy.groups, is_own(self.config.data), column)

    def _evaluate(self, tracker: Tracker, progress: Progress | None = None) -> bool:
        """Evaluate on the val split, if there is one; return whether somebody wants the run to end here."""
        prepared = self.prepared
        step = self.trainer.step
        costs = {**self._costs(step), "dp/delta": self.plan.delta}
        if prepared.private_validation is not None:
            return self._evaluate_privately(prepared.private_validation, costs, tracker, progress)
        if prepared.validation is None:
            return self.watcher.evaluated(self.prepared, step, costs, None)
        with self.trainer.average.applied():
            result = evaluate(
                prepared.model,
                prepared.validation,
                batch_size=prepared.physical_batch_size,
                device=str(prepared.device),
            )
        row = self._row(costs, result.values)
        append_rows(self.output / "results.csv", [row])
        per_class: list[dict[str, Any]] = [
            {"step": step, "class": name, **values} for name, values in result.per_class.items()
        ]
        append_rows(self.output / "per_class.csv", per_class)
        text = f"mAP50 {row['metrics/mAP50B']:.3f}  mAP50-95 {row['metrics/mAP50-95B']:.3f}"
        self._tell(row, text, tracker, progress)
        return self.watcher.evaluated(self.prepared, step, row, result)

    def _evaluate_privately(
        self, private: PrivateValidation, costs: dict[str, float], tracker: Tracker, progress: Progress | None
    ) -> bool:
        """Release noised counts of the private val split, where the plan has a release after this step."""
        step = self.trainer.step
        number = private.due(step, self.plan.steps)
        if number is None:
            return self.watcher.evaluated(self.prepared, step, costs, None)
        with self.trainer.average.applied():
            found = private.evaluate(self.prepared.model, number, self.prepared.device)
        row = self._row(costs, found.row())
        append_rows(self.output / "results.csv", [row])
        self._tell(row, in_words(found), tracker, progress)
        return self.watcher.evaluated(self.prepared, step, row, None)

    def _row(self, costs: Mapping[str, float], values: Mapping[str, float]) -> dict[str, float]:
        """The line of ``results.csv`` for the step that was evaluated."""
        step = self.trainer.step
        return {
            "epoch": round(step * self.plan.sample_rate, 4),
            "step": step,
            **({"phase": number_of(self.trainer.phases, step)} if self.config.phases else {}),
            **costs,
            **values,
        }

    def _tell(self, row: Mapping[str, float], metrics: str, tracker: Tracker, progress: Progress | None) -> None:
        """Log what was evaluated, and show it."""
        step = self.trainer.step
        tracker.metrics({key: value for key, value in row.items() if key not in ("epoch", "step")}, step)
        text = (
            f"step {step:>5}/{self.plan.steps}  "
            f"epsilon {shown(row['dp/epsilon'])} of {shown(row['dp/epsilon_claimed'])}  {metrics}"
        )
        (progress.print if progress else self._say)(text)

    def _costs(self, step: int) -> dict[str, float]:
        """What the outputs up to a step cost whoever sees no later ones, and what is claimed, wherever the run ends.

        Of a tuning's winner both are what all of the tuning costs.
        """
        if self.prepared.tuning is not None:
            epsilon = claim_of(self.plan, self.plan.steps, self.prepared.tuning).epsilon
            return {"dp/epsilon": epsilon, "dp/epsilon_pld": epsilon, "dp/epsilon_claimed": epsilon}
        return {
            "dp/epsilon": self.plan.epsilon(steps=step),
            "dp/epsilon_pld": self.plan.epsilon("pld", steps=step),
            "dp/epsilon_claimed": self.plan.epsilon(),
        }

    def _end_here(self, tracker: Tracker) -> NoReturn:
        self._stop(tracker)
        raise SystemExit(f"stopped after step {self.trainer.step} of {self.plan.steps}; {self._next_command}")

    def _stop(self, tracker: Tracker) -> None:
        """Leave the run as it is resumed from, with the steps it has taken charged and stated."""
        self._write_weights()
        self._settle("stopped")
        draw(self.config, self.output, self.prepared.data_name)
        self._write_statement("stopped")
        publish(self.output, tracker)

    def _finish(self, tracker: Tracker) -> TrainResult:
        self._settle("finished")
        draw(self.config, self.output, self.prepared.data_name)
        statement = self._write_statement("finished")  # last of the folder: from here on the run is over
        metrics = publish(self.output, tracker)
        epsilon = statement["guarantee"]["epsilon"]
        weights = self.outputs.place(self.output / "weights" / "last.pt")
        self._say(f"done: epsilon {shown(epsilon)} at delta {self.plan.delta:.3g}; {weights}")
        self.watcher.ended(self.prepared)
        return TrainResult(weights, epsilon, metrics, statement, self.output, self.plan)
