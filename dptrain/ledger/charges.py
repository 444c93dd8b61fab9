"""The life of a charge: reserved before the first step, leased while it works, resumed, settled."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Row, select

from ..errors import BudgetError, SupersededError
from . import admission, curves, events, keys, naming, run_rows, snapshots
from .admission import Request
from .manifest import Manifest
from .state import State
from .store import Store
from .tables import runs

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

RELEASED = ("finished", "stopped", "failed", "killed", "lost")


@dataclass
class Charge:
    """What one run has reserved or spent.

    Attributes:
        run: Identifier of the run in the ledger.
        dataset: Name of the dataset it is charged to.
        planned: Steps of the whole run.
        attempt: Token that lets the run go on after a stop or a crash, once; kept in the run's folder.
        taken: Steps that count as taken already: the next one is ``taken + 1``.
        leased: Number of the last step that may be taken before :meth:`advance`.
        notes: What whoever starts the run should read, a line each.
    """

    ledger: Charges = field(repr=False)
    run: str
    dataset: str
    planned: int
    attempt: str = field(repr=False)
    taken: int = 0
    leased: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._held = [self.attempt]  # the last of them the ledger knows, but for an answer that was lost

    def advance(self, until: int) -> None:
        """Get leave for the steps up to number ``until``; see :meth:`Charges.advance`."""
        lease = secrets.token_hex(16)
        self._held.append(lease)
        self.ledger.advance(self.run, until, held=self._held, lease=lease)
        self._held, self.leased = [lease], max(self.leased, until)

    def settle(self, steps: int, reason: str = "finished") -> None:
        """Charge the steps that were started; see :meth:`Charges.settle`."""
        self.ledger.settle(self.run, steps, reason, held=self._held)
        self.leased = steps

    def resume(self, manifest: Manifest, steps: int = 0) -> Charge:
        """Go on with the run after ``steps`` started steps; see :meth:`Charges.resume`."""
        return self.ledger.resume(self.run, manifest, attempts=[self.attempt], steps=steps)


class Charges:
    """What :class:`dptrain.ledger.BudgetLedger` does for a run, from its reservation to its settlement."""

    _store: Store

    def reserve(
        self,
        event: DpEvent,
        manifest: Manifest,
        *,
        dataset: str | None = None,
        data_name: str = "dataset",
        name: str = "",
        delta: float = 1e-5,
        unit: str = "image",
        required: bool = False,
        run: str | None = None,
        attempt: str | None = None,
        leased: int | None = None,
    ) -> Charge:
        """Reserve a whole planned run, before its first noised step; all or nothing, whoever else asks meanwhile.

        Args:
            event: Of the whole run. A ``SelfComposedDpEvent`` can be settled at fewer steps; anything else is one step.
            manifest: Of the images that the run can draw from.
            dataset: The dataset to charge; by default the one that these pictures are known by.
            data_name: What to call the pictures if they are new.
            name: Name of the run, for people.
            delta: The run's own; a budget is judged at its own delta.
            unit: What one unit of the run is.
            required: Refuse unless every picture is under a budget with a limit.
            run: Identifier, 32 hexadecimal digits, of a caller that keeps it beforehand.
            attempt: Token, likewise.
            leased: Number of the last step that may be taken before :meth:`advance`; by default that of the whole run,
                which then cannot be resumed after a crash, since any of its steps may have been taken.

        Raises:
            BudgetError: A budget that shares a picture with the run has no room for it (the message says what would
                fit), or the dataset is unknown. Nothing is written.
        """
        from ..privacy.accounting import check_delta

        step, steps = events.split_steps(event)
        text = events.event_to_json(step)
        leased = steps if leased is None else leased
        _check_steps("leased", leased, steps)
        run, attempt = run or secrets.token_hex(16), attempt or secrets.token_hex(16)
        check_delta(delta)
        naming.check_unit(unit)
        self._own(manifest)
        if re.fullmatch(r"[0-9a-f]{32}", run) is None:
            raise BudgetError(f"run={run} is not 32 hexadecimal digits")
        curves.step_curve(text, self._store.orders)  # the costly part, outside the transaction that others wait for
        with self._store.change() as (connection, state):
            number, found, notes = naming.dataset_for(connection, state, manifest, dataset, data_name, unit)
            state, snapshot = snapshots.register(self._store, connection, state, number, found, manifest)
            mechanism, curve = run_rows.mechanism_for(self._store, connection, text)
            admission.admit(self._store, connection, state, Request(step, curve, steps, run, snapshot), required)
            payload = {"event": text, "steps": steps, "snapshot": manifest.digest, "dataset": found, "name": name}
            payload |= {"delta": delta, "unit": unit, "attempt": self._hashed(attempt), "leased": leased}
            seq = self._store.append(connection, "reserve", payload, run)
            row = {"id": run, "seq": seq, "name": name[:200], "snapshot_id": snapshot, "mechanism_id": mechanism}
            row |= {"delta": float(delta), "planned": steps, "charged": steps, "settled": 0, "is_open": True}
            row |= {"attempt": payload["attempt"], "leased": leased, "lease": payload["attempt"]}
            run_rows.add_run(self._store, connection, row)
        manifest.files.clear()  # remembered now
        return Charge(self, run, found, steps, attempt, 0, leased, notes)

    def advance(self, run: str, until: int, *, held: Sequence[str], lease: str) -> None:
        """Give a run at work leave for its steps up to number ``until``, before it takes any of them.

        Whoever opens the run later, from whatever copy of its folder, finds all of them spent.

        Args:
            run: Identifier.
            until: Number of the last step.
            held: Tokens of the process at work, one of which the ledger gave it leave by last.
            lease: Its new token: a copy of the process, of the same memory, has the old one.

        Raises:
            SupersededError: The run was opened elsewhere, or was settled.
            BudgetError: There is no such run, or it has not so many steps.
        """
        with self._store.change() as (connection, _):
            row = run_rows.run_of(self._store, connection, run)
            _check_steps("until", until, row.planned)
            self._refuse_superseded(row, held)
            if not row.is_open:
                raise SupersededError(f"run {run} was settled at {row.charged} steps: resume it to continue")
            # The answer to the same question was lost: nothing more is given.
            values = {"leased": max(row.leased, until), "lease": self._hashed(lease)}
            self._store.append(connection, "lease", {"until": values["leased"], "lease": values["lease"]}, run)
            run_rows.change_run(self._store, connection, row, values)

    def resume(
        self, run: str, manifest: Manifest, *, attempts: Sequence[str], steps: int, attempt: str | None = None
    ) -> Charge:
        """Go on with a run: its own charge, extended by what was given back when it stopped.

        A run that was not settled was killed, or is still at work elsewhere, or the folder is a copy from before it
        went on: nothing tells which. So each of its steps that may have been taken counts as taken, and whoever is at
        work on it gets no further leave.

        Args:
            run: Identifier.
            manifest: Of the images now; they must be what they were.
            attempts: Tokens that the run's folder holds; one of them must be the run's last. A copy of a folder whose
                run continued elsewhere would otherwise take the same steps twice on one charge.
            steps: Steps started so far, by the run's own journal.
            attempt: The new token, if the caller keeps it beforehand.

        Returns:
            The charge; its ``taken`` is where to go on, which may be beyond ``steps``.

        Raises:
            BudgetError: The images or labels changed, the folder is an old copy, the budget is gone meanwhile, or the
                ledger knows of fewer steps than the folder.
        """
        self._own(manifest)
        attempt = attempt or secrets.token_hex(16)
        with self._store.change() as (connection, state):
            row = run_rows.run_of(self._store, connection, run)
            self._refuse_other_images(connection, state, row, manifest)
            early = not row.is_open and steps < row.settled
            if row.attempt not in [self._hashed(token) for token in attempts] or early:
                raise SupersededError(
                    f"run {run} continued elsewhere, or this folder is an older copy of it: its steps would be taken "
                    "twice on one charge; start a new run"
                )
            if steps > row.leased:
                raise BudgetError(
                    f"run {run} has taken {steps} steps by its folder, and the ledger {self._store.name} knows of "
                    f"{row.leased}: it was set back to an earlier copy; put the newer one back, or charge them with "
                    "dptrain budget settle and the run's folder"
                )
            taken = int(row.leased)
            more = max(0, row.planned - row.charged)
            mechanism = run_rows.mechanism_of(self._store, connection, row)
            if more:
                step, curve = events.event_from_json(mechanism.event), curves.decode(mechanism.curve)
                request = Request(step, curve, more, run, row.snapshot_id)
                admission.admit(self._store, connection, state, request)
            payload = {"steps": more, "taken": taken, "attempt": self._hashed(attempt)}
            self._store.append(connection, "resume", payload, run)
            values = {"charged": row.charged + more, "settled": taken, "leased": taken, "is_open": True}
            values |= {"attempt": payload["attempt"], "lease": payload["attempt"]}
            run_rows.change_run(self._store, connection, row, values)
            found = state.with_snapshot(row.snapshot_id)[0].name
        return Charge(self, run, found, row.planned, attempt, taken, taken)

    def settle(
        self,
        run: str,
        steps: int | None = None,
        reason: str = "finished",
        *,
        held: Sequence[str] | None = None,
        attempts: Sequence[str] | None = None,
    ) -> None:
        """Charge a run the steps that it started; what it had reserved beyond becomes free again.

        A charge only ever falls from a reservation to the steps started, whatever the results are. Settling again is
        no error and takes nothing back.

        Args:
            run: Identifier.
            steps: Steps started; ``None`` for the whole reservation, where no one can tell any more.
            reason: ``finished``, ``stopped``, ``failed``, ``killed`` or ``lost``.
            held: Tokens of the process at work, which knows what it started. Without them nobody does, and each step
                that may have been taken is charged, whatever ``steps`` says.
            attempts: Tokens that the run's folder holds, where it is a folder that is settled.

        Raises:
            SupersededError: The run was opened elsewhere after these tokens were given.
            BudgetError: There is no such run, or ``steps`` is less than what it was settled at before.
        """
        if reason not in RELEASED:
            raise BudgetError(f"reason={reason} is not one of {', '.join(RELEASED)}")
        if steps is not None and (isinstance(steps, bool) or steps < 0):
            raise BudgetError(f"steps={steps} must be 0 or more")
        with self._store.change() as (connection, _):
            row = run_rows.run_of(self._store, connection, run)
            # More than reserved cannot happen in a sound run; if it did, it was released and so it is charged.
            charged = row.charged if steps is None else int(steps)
            if attempts is not None and row.attempt not in [self._hashed(token) for token in attempts]:
                raise SupersededError(
                    f"run {run} continued elsewhere, and this folder is an older copy of it: settle the folder where "
                    "it continued, or, if that is lost, use --run, which charges all that was planned"
                )
            if held is not None:
                self._refuse_superseded(row, held)
            elif row.is_open:
                charged = max(charged, row.leased)
            if not row.is_open and charged <= row.charged:
                return
            if charged < row.settled:
                raise BudgetError(f"run {run} was settled at {row.settled} steps, which {charged} would take back")
            self._store.append(connection, "settle", {"steps": charged, "reason": reason}, run)
            values = {"charged": charged, "settled": charged, "leased": charged, "is_open": False}
            run_rows.change_run(self._store, connection, row, values)

    def find_run(self, run: str) -> Row | None:
        """Return the row of a run by its identifier, or by the start of it; ``None`` where no run or several have it.

        At least 8 of the 32 digits are needed.
        """
        if re.fullmatch(r"[0-9a-f]{8,32}", run) is None:
            return None
        with self._store.read() as connection:
            found = connection.execute(select(runs).where(runs.c.id.startswith(run)).limit(2)).all()
        return found[0] if len(found) == 1 else None

    def _refuse_other_images(self, connection: Connection, state: State, row: Row, manifest: Manifest) -> None:
        if state.snapshot(manifest.digest) == row.snapshot_id:
            return
        changes = manifest.changes_since(snapshots.snapshot_units(connection, row.snapshot_id))
        raise BudgetError(
            f"the images are not those that run {row.id} began with ({changes}): put them back, or start a new run"
        )

    def _refuse_superseded(self, row: Row, held: Sequence[str]) -> None:
        if row.lease not in [self._hashed(token) for token in held]:
            raise SupersededError(
                f"run {row.id} continued elsewhere, from a copy of its folder: this process may take no further step, "
                "and its steps are charged there; resume the copy"
            )

    def _own(self, manifest: Manifest) -> None:
        if manifest.key != self._store.key:
            raise BudgetError("the manifest was made under another ledger's key: make it with this ledger's manifest()")

    def _hashed(self, attempt: str) -> str:
        return keys.mac(self._store.key, "attempt", attempt.encode()).hex()


def _check_steps(name: str, steps: int, planned: int) -> None:
    if isinstance(steps, bool) or not 0 <= steps <= planned:
        raise BudgetError(f"{name}={steps} is not one of the run's {planned} steps, or 0")
