"""A site: a run of our own that takes its steps in rounds, beginning each where the server says.

The plan is one over all rounds, frozen before the first and charged in the site's own ledger. Sampling, noise,
optimizer state, journal and charge go on from round to round as those of any run that is stopped and resumed. Only the
iterate is replaced, by what the server sends: that is made of what sites released, so the steps after it are an
adaptive composition, which is what the accountant counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..datasets.contents import files_held
from ..errors import BudgetError, PrivacyError
from ..run.folder import CHECKPOINT, ROUNDS
from ..run.job import Run
from ..run.outputs import OutputFiles
from ..run.prepare import prepare
from ..run.progress import make_console
from ..run.train import opened_start
from ..sealing.weights import is_weights, weights_hash
from ..settings.resolve import with_plan
from ..support.files import read_json, write_json
from ..training.average import copy_into
from ..training.checkpoint import last_release
from ..training.journal import JOURNAL, steps_started
from ..training.trainer import PrivateTrainer
from .exchange import DeclinedError, Offer, Release, check_parameters, class_list, frozen_hash
from .settings import SiteSettings, read_settings

logger = logging.getLogger(__name__)

_FORMAT = 1
NO_LEAVE = "out: the ledger of the site gives no leave for further steps"
FAILED = "failed: the log of the site says why"


@dataclass(frozen=True)
class _Kept:
    """What the folder of a site knows of its rounds.

    Attributes:
        numbers: The server's numbers of the rounds that the site has begun, in order.
        step: Of the checkpoint; None before the first.
        parameters: The iterate of the checkpoint.
        begun: Whether there is a run to resume.
    """

    numbers: tuple[int, ...] = ()
    step: int | None = None
    parameters: Mapping[str, Tensor] | None = None
    begun: bool = False


def take_round(file: str | Path, offer: Offer) -> Release:
    """Take a site's next steps, or answer again what the last round released.

    Guarantee: whatever a server sends, in whatever order and however often, all answers of the site together are
    (plan.epsilon(), plan.delta)-differentially private in its units, by the one plan of its settings.

    Args:
        file: The settings of the site, see :class:`~dptrain.federated.settings.SiteSettings`. Relative paths in it
            start from its folder.
        offer: What the server sent. Its parameters take the place of the iterate, and nothing else of it has any
            effect: a round whose terms are not the site's is declined.

    Raises:
        DeclinedError: One line that may be sent to the server.
        DptrainError: One line for the site alone, which may speak of its files.
    """
    file = Path(file).absolute()
    with chdir(file.parent), files_held():
        return _Site(read_settings(file)).take(offer)


@contextmanager
def told() -> Iterator[None]:
    """Turn whatever stops a site inside the block into a line that may leave it; the line itself is logged here.

    A message about a file or an image is for the site alone, and so is one of the ledger, which may hold what other
    runs have spent.

    Raises:
        DeclinedError: In place of every other error.
    """
    try:
        yield
    except DeclinedError as error:
        logger.warning("declined: %s", error)
        raise
    except BudgetError as error:
        logger.warning("%s", error)
        raise DeclinedError(NO_LEAVE) from None
    except Exception as error:
        logger.error("%s", error, exc_info=error if logger.isEnabledFor(logging.DEBUG) else None)
        raise DeclinedError(FAILED) from None


class _Site:
    def __init__(self, settings: SiteSettings) -> None:
        self.settings = settings
        self.folder = Path(settings.config.output_dir)

    def take(self, offer: Offer) -> Release:
        settings = self.settings
        self._refuse_terms(offer)
        kept = self._kept()
        last, count = max(kept.numbers, default=0), len(kept.numbers)
        end = count * settings.steps_per_round  # of the round that was begun last
        done = not count or (kept.step is not None and kept.step >= end)
        if type(offer.number) is not int or offer.number < max(1, last):
            raise DeclinedError(f"round {offer.number!r:.40} goes backwards: the site was in round {last}")
        if done and count and offer.number == last:
            assert kept.parameters is not None
            return self._release(offer.number, end, kept.parameters)
        if done and count == settings.rounds:
            raise DeclinedError(f"out: the plan of the site is finished, all {settings.plan.steps} steps are taken")
        if done:
            end += settings.steps_per_round
        begun = kept.numbers if done else kept.numbers[:-1]
        first = end - settings.steps_per_round
        # A round that was cut goes on from its own checkpoint; under another number it begins with what came with it.
        cut = not done and offer.number == last and kept.step is not None and kept.step > first
        return self._train(offer, [*begun, offer.number], end, resume=kept.begun, fresh=not cut)

    def _refuse_terms(self, offer: Offer) -> None:
        """Compare what the server and the site must agree on, before an image is read."""
        config, settings = self.settings.config, self.settings
        start = Path(config.model)
        own = replace(
            offer.terms,  # its other terms are compared when the model is there
            rounds=settings.rounds,
            steps_per_round=settings.steps_per_round,
            start_sha256=weights_hash(start) if is_weights(start) else "random",
        )
        offer.terms.refuse_other(own)

    def _kept(self) -> _Kept:
        """Read what is kept between rounds.

        Raises:
            PrivacyError: The folder holds a run that is not of rounds, or of others.
        """
        place = self.folder / ROUNDS
        if not (self.folder / JOURNAL).exists():
            return _Kept()
        if not place.exists() and not steps_started(self.folder):
            return _Kept(begun=True)  # killed before it began
        try:
            known = read_json(place)
            numbers = known["numbers"]
            sound = known["format"] == _FORMAT and numbers and all(type(number) is int for number in numbers)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrivacyError(f"{place} cannot be read, so the run of the site cannot go on: put it back") from error
        if not sound or known["rounds"] != self.settings.rounds:
            raise PrivacyError(
                f"{place} is of another number of rounds than {self.settings.rounds}: the plan is one over all rounds, "
                "so give the number that it began with"
            )
        outputs = OutputFiles(self.settings.config.seal)
        checkpoint = outputs.place(self.folder / CHECKPOINT)
        if not checkpoint.exists():
            return _Kept(tuple(numbers), begun=True)
        step, parameters = last_release(checkpoint, outputs.read(self.folder / CHECKPOINT))
        return _Kept(tuple(numbers), step, parameters, begun=True)

    def _train(self, offer: Offer, numbers: list[int], end: int, resume: bool, fresh: bool) -> Release:
        """Take the steps up to number ``end``, as a run that is stopped there."""
        settings = self.settings

        def begin(trainer: PrivateTrainer) -> None:
            own = {name: parameter.detach() for name, parameter in trainer.parameters.items()}
            check_parameters(offer.parameters, own)
            mine = replace(
                offer.terms,
                frozen_sha256=frozen_hash(trainer.state()["frozen"]),
                classes=class_list(prepared.model.names),
            )
            offer.terms.refuse_other(mine)
            write_json(self.folder / ROUNDS, {"format": _FORMAT, "rounds": settings.rounds, "numbers": numbers})
            if fresh:
                copy_into(trainer.parameters, offer.parameters)

        config = opened_start(replace(settings.config, resume=resume))
        prepared = prepare(with_plan(config, settings.plan), settings.plan)
        run = Run(prepared, make_console(), end)
        run.execute_part(begin)
        trainer = run.trainer
        return self._release(offer.number, trainer.step, {n: p.detach() for n, p in trainer.parameters.items()})

    def _release(self, number: int, steps: int, parameters: Mapping[str, Tensor]) -> Release:
        plan = self.settings.plan
        return Release(
            name=self.settings.name,
            number=number,
            parameters={name: tensor.cpu().clone() for name, tensor in parameters.items()},
            dataset_size=self.settings.declared_size,
            epsilon=plan.epsilon(),
            delta=plan.delta,
            epsilon_so_far=plan.epsilon(steps=steps),
            steps=steps,
            planned_steps=plan.steps,
            valid=self.settings.config.seed is None,
            unit=plan.unit,
        )
