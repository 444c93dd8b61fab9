"""What a run spends, in the ledger: reserved before its first step, settled at the steps it started.

The run's folder keeps ``owner/budget.json``: which charge is its own, and the token that lets it go on. It is written
before the ledger is, so that whatever moment a process dies at, a charge that holds budget can be found from its
folder.

What the ledger knows of the dataset depends on the private images: which dataset they are taken for, its limit, what it
has spent, by how many runs. It goes to ``owner/dataset_budget.json`` alone. The screen, the log and the statement hold
what was declared: the limit of a budget that the user named.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BudgetError, SupersededError
from ..ledger.hashing import hash_images
from ..support.files import read_json, write_json
from .owner import OWNER, owner_folder

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

    from ..datasets.boxes import TextBoxes
    from ..ledger import BudgetLedger, Charge, Manifest
    from ..settings.schema import BudgetConfig

logger = logging.getLogger(__name__)

_NOTE_NAME, _READING = "budget.json", "dataset_budget.json"
NOTE = f"{OWNER}/{_NOTE_NAME}"
NOTE_FORMAT, _READING_FORMAT = 2, 1
_RETRIES = (0.5, 2.0, 5.0)  # seconds; the ledger itself waits for other writers
_LEASES = 100  # a run; each is one transaction, and a crash costs the steps of at most one

UNRECORDED = "The spending of the dataset was not recorded (budget.url=null): what other runs have cost is not known."


@dataclass
class RunCharge:
    """The charge of one run, or of one tuning; with ``budget.url=null`` it does nothing and says so.

    With correlated noise the ledger counts rounds of ``bands`` steps, each charged whole before its first step. What is
    resumed goes on at the next round: a copy of the folder may have taken every step of a round that was begun.

    Attributes:
        budget: Its settings.
        event: All that is going to be released.
        delta, unit: Of the run.
        pictures: What it can draw from: the identity of the picture in every image file.
        data_name: What to call them if the ledger does not know them.
        groups: The group of every image, where groups are protected.
        copies_are_one: Whether the copies of a picture are drawn, and charged, as one image.
        facts: What the statement says of the dataset's budget, all of it declared; ``None`` without a ledger.
        whole: Whether the event counts as taken from the start, all of it, so that nothing asks for :meth:`lease`.
        bands: Steps that one of the event's repetitions is for.
        steps: Steps of the run; None where the event has one repetition for each.
        boxes: Where the labels of the pictures are.
        part: Before the names of the owner's files: the charge of a private val split has files of its own.
    """

    budget: BudgetConfig
    event: DpEvent
    delta: float
    unit: str
    pictures: Mapping[Path, bytes]
    data_name: str
    groups: Sequence[str] | None = None
    copies_are_one: bool = False
    facts: dict[str, Any] | None = None
    whole: bool = False
    bands: int = 1
    steps: int | None = None
    boxes: TextBoxes | None = None
    part: str = ""

    def __post_init__(self) -> None:
        self._ledger: BudgetLedger | None = None
        self._manifest: Manifest | None = None
        self._charge: Charge | None = None
        self._settled: int | None = None
        self._folder: Path | None = None
        self._superseded = False

    @property
    def deviations(self) -> tuple[str, ...]:
        """What the statement must say."""
        return () if self.budget.url is not None else (UNRECORDED,)

    def prepare(self) -> None:
        """Open the ledger and look at the images, so that what is refused is refused before anything is written.

        Raises:
            BudgetError: The ledger cannot be reached, or its key is missing; or a budget is required and none is kept.
        """
        if self.budget.url is None:
            if self.budget.required:
                raise BudgetError("budget.required=true and budget.url=null cannot be combined: give the ledger")
            return
        from ..ledger import BudgetLedger

        self._ledger = BudgetLedger(self.budget.url, self.budget.key)
        self._manifest = hash_images(
            self._ledger, list(self.pictures), self.groups, self.pictures, self.copies_are_one, self.boxes
        )

    def begin(self, folder: Path, resume: bool = False, steps: int = 0) -> str:
        """Reserve the whole run, or go on with the charge of a resumed one after ``steps`` started steps.

        Returns:
            A line for the screen. What the ledger noticed of the images goes to the owner's file.

        Raises:
            BudgetError: It does not fit, the images changed, or the folder's charge is not in this ledger.
        """
        note = note_of(folder, self.part)
        _refuse_earlier(folder)
        if self._ledger is None or self._manifest is None:
            if note.exists():
                raise BudgetError(f"the run in {folder} is charged in a ledger: resume it with its budget.url")
            return "budget: not recorded (budget.url=null)"
        known = read_note(folder, self.part) if resume and note.exists() else None
        row = self._ledger.find_run(known["run"]) if known else None
        if known and row is None and steps:
            raise BudgetError(
                f"the ledger {self._ledger.address} does not know the run in {folder}: give the one it began with, "
                f"budget.url={known['ledger']}"
            )
        run = known["run"] if known else secrets.token_hex(16)
        attempt = secrets.token_hex(16)
        earlier = list(known["attempts"]) if known else []
        self._write_note(folder, run, [*earlier, attempt])
        if row is not None:
            self._charge = self._ledger.resume(
                run, self._manifest, attempts=earlier, steps=self._rounds(steps), attempt=attempt
            )
        else:
            self._charge = self._ledger.reserve(
                self.event,
                self._manifest,
                dataset=self.budget.name,
                data_name=self.data_name,
                name=folder.name,
                delta=self.delta,
                unit=self.unit,
                required=self.budget.required,
                run=run,
                attempt=attempt,
                leased=None if self.whole else self._rounds(steps),
            )
        if self.budget.name not in (None, self._charge.dataset):
            raise BudgetError(
                f"budget.name={self.budget.name}, and the run in {folder} is charged to {self._charge.dataset}: resume "
                "it with the name that it began with"
            )
        self._folder = folder
        self.facts = self._declared()
        self._write_reading()
        return self._line(folder)

    def _write_note(self, folder: Path, run: str, attempts: Sequence[str]) -> None:
        assert self._ledger is not None
        payload = {"format": NOTE_FORMAT, "run": run, "ledger": self._ledger.address, "key": self.budget.key}
        payload |= {"attempts": list(attempts), "bands": self.bands, "steps": self.steps}
        write_json(owner_folder(folder) / f"{self.part}{_NOTE_NAME}", payload)

    def _declared(self) -> dict[str, Any]:
        """What may be published: a limit only where the user named the budget, for one that the images chose tells."""
        assert self._ledger is not None
        named = None if self.budget.name is None else self._ledger.show(self.budget.name)[0]
        limit = None if named is None else named.limit
        return {
            "name": self.budget.name or self.data_name,
            "unit": self.unit,
            "limit": limit,
            "delta": None if named is None or limit is None else named.delta,
        }

    def _line(self, folder: Path) -> str:
        assert self._ledger is not None and self.facts is not None
        name, limit, delta = (self.facts[key] for key in ("name", "limit", "delta"))
        declared = "" if limit is None else f"{name} may spend epsilon {limit:g} in all (RDP, delta {delta:.3g}); "
        return (
            f"budget: {declared}recorded in {self._ledger.name}; what is spent, for the owner: {self._reading(folder)}"
        )

    def _write_reading(self) -> None:
        """Tell the owner what the ledger now says of the dataset that these images are taken for."""
        assert self._ledger is not None and self._charge is not None and self._folder is not None
        self._ledger.refresh_pld(self._charge.dataset)
        reading = self._ledger.show(self._charge.dataset)[0]
        values = {
            "format": _READING_FORMAT,
            "name": reading.name,
            "unit": reading.unit,
            "delta": reading.delta,
            "spent": reading.epsilon,
            "charged": reading.epsilon_charged,
            "spent_pld": reading.epsilon_pld,
            "limit": reading.limit,
            "runs": reading.runs,
            "head": self._ledger.head,
            "notices": list(self._charge.notes),
        }
        owner_folder(self._folder)
        write_json(self._reading(self._folder), values)

    def _reading(self, folder: Path) -> Path:
        return folder / OWNER / f"{self.part}{_READING}"

    @property
    def taken(self) -> int:
        """Steps that count as taken after :meth:`begin`, by whatever copy of the folder: the run goes on after them."""
        return 0 if self._charge is None else steps_of(self._charge.taken, self.bands, self.steps)

    def _rounds(self, steps: int) -> int:
        """How many of the event's repetitions are charged for the first steps of the run."""
        return rounds_of(steps, self.bands)

    def lease(self, step: int) -> None:
        """Have the ledger's leave for a step before it is taken; it gives leave for a few at a time.

        How many is a function of the planned number alone. A ledger that is away is asked again a few times.

        Raises:
            SupersededError: The run continued elsewhere.
            BudgetError: The ledger cannot be reached.
        """
        if self._charge is None or (wanted := self._rounds(step)) <= self._charge.leased:
            return
        until = min(self._charge.planned, wanted - 1 + steps_per_lease(self._charge.planned))
        for wait in (*_RETRIES, None):
            try:
                self._charge.advance(until)
                return
            except SupersededError:
                self._superseded = True
                raise
            except BudgetError as error:
                if wait is None:
                    raise BudgetError(f"step {step} is not taken without a lease from the ledger: {error}") from error
                time.sleep(wait)

    def settle(self, steps: int, reason: str) -> bool:
        """Charge the steps that were started. A ledger that is away does not lose the run: it is said how to do it.

        Returns:
            Whether the ledger has it.

        Raises:
            SupersededError: The run continued elsewhere, where these steps are charged; said once.
        """
        if self._charge is None or self._settled == steps or self._superseded:
            return True
        for wait in (*_RETRIES, None):
            try:
                self._charge.settle(max(self._rounds(steps), self._charge.taken), reason)
                break
            except SupersededError:
                self._superseded = True
                raise
            except BudgetError as error:
                if wait is None:
                    logger.warning(
                        "the ledger could not record that %d steps were taken (%s): the whole reservation stays "
                        "charged until you run dptrain budget settle on this run's folder",
                        steps,
                        error,
                    )
                    return False
                time.sleep(wait)
        self._settled = steps
        with suppress(BudgetError, OSError):  # the owner's copy; dptrain budget show has it as well
            self._write_reading()
        return True


def rounds_of(steps: int, bands: int) -> int:
    """Return how many rounds of ``bands`` steps the first ``steps`` steps of a run are in; a begun one counts."""
    return -(-steps // bands)


def steps_of(rounds: int, bands: int, planned: int | None) -> int:
    """Return how many steps of a run the first ``rounds`` rounds have; the last one may be cut short by the plan."""
    return rounds * bands if planned is None else min(rounds * bands, planned)


def steps_per_lease(planned: int) -> int:
    """Return how many steps a run may take at a time before it asks the ledger: a hundredth of what is planned."""
    return max(1, -(-planned // _LEASES))


def note_of(folder: Path, part: str = "") -> Path:
    """Where a run's folder keeps what it knows of its charge; ``part`` as in :class:`RunCharge`."""
    return folder / OWNER / f"{part}{_NOTE_NAME}"


def read_note(folder: Path, part: str = "") -> dict[str, Any]:
    """Return what a run's folder knows of its charge, or of that of its val split; ``part`` as in :class:`RunCharge`.

    Raises:
        BudgetError: There is no such note, or it is damaged.
    """
    note = note_of(folder, part)
    _refuse_earlier(folder)
    try:
        payload = read_json(note)
        if payload["format"] != NOTE_FORMAT:
            raise BudgetError(
                f"{note} is of format {payload['format']!r}, and {NOTE_FORMAT} is expected: use the dptrain that wrote "
                "it, or settle the run by its identifier, --run (budget history)"
            )
        known = {name: payload[name] for name in ("run", "ledger", "key", "attempts", "bands", "steps")}
        if not all(isinstance(text, str) for text in (known["run"], known["ledger"], known["key"] or "")):
            raise ValueError("run, ledger and key are texts")
        if not isinstance(known["attempts"], list) or not all(isinstance(text, str) for text in known["attempts"]):
            raise ValueError("attempts is a list of texts")
        if type(known["bands"]) is not int or known["bands"] < 1 or not isinstance(known["steps"], int | None):
            raise ValueError("bands and steps are whole numbers")
        return known
    except FileNotFoundError:
        raise BudgetError(
            f"{folder} holds no charge ({note.relative_to(folder)} is missing): the run was not recorded in a ledger"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BudgetError(f"{note} cannot be read: settle the run by its identifier, --run (budget history)") from error


def _refuse_earlier(folder: Path) -> None:
    if (folder / _NOTE_NAME).exists():
        raise BudgetError(
            f"{folder / _NOTE_NAME} was written by an earlier dptrain: resume or settle the run with that one, "
            "or settle it by its identifier, --run (budget history)"
        )
