"""The way into a ledger: its datasets, their limits, what they have spent, and its chain."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from ..datasets.people import names_in
from ..support.environment import ledger_address
from . import admission, naming, roles, seals, snapshots
from .charges import Charges
from .manifest import Manifest, find_units, group_of, make_manifest
from .reading import DatasetReading, Movement, read_datasets, read_movements, refresh_pld
from .state import read_state
from .store import Store, sqlite_file
from .tables import datasets
from .verify import Verification, export, verify

if TYPE_CHECKING:
    from ..datasets.boxes import TextBoxes


class BudgetLedger(Charges):
    """The privacy budget of datasets across runs, sweeps and teams.

    Formal guarantee: everything released by the runs that were charged to a budget is (epsilon, delta)-differentially
    private in the units of its dataset, also where each run was chosen after seeing the results of the others (a
    privacy filter, Feldman and Zrnic 2021; see :mod:`dptrain.ledger.filters`), provided that every run on these images
    reserves here before its first step and releases nothing beyond the event it reserved.

    Args:
        url: ``sqlite:///budget.db`` (made if it is not there) or ``postgresql://user@host/name``. By default the
            environment's ``DPTRAIN_BUDGET_URL``, else the former.
        key: 32 bytes, their hexadecimal digits, or a file with those. By default the environment's
            ``DPTRAIN_BUDGET_KEY``, else the file ``<database>.key`` beside an SQLite ledger, made with it.
        create: Whether an SQLite ledger that is not there is made.

    Raises:
        BudgetError: The ledger cannot be reached, is no ledger, or the key is missing or wrong.
    """

    def __init__(self, url: str | None = None, key: bytes | str | Path | None = None, *, create: bool = True) -> None:
        self._store = Store(ledger_address(url), key, create)

    @classmethod
    def existing(cls, url: str, key: bytes | str | Path | None = None) -> BudgetLedger | None:
        """Open a ledger that is there; ``None`` where an SQLite file is not."""
        file = sqlite_file(url)
        return None if file is not None and not file.exists() else cls(url, key, create=False)

    @property
    def address(self) -> str:
        """Where the ledger is, without a password."""
        return self._store.address

    @property
    def name(self) -> str:
        """The same for people: a file in the working directory without the way to it."""
        return self._store.name

    @property
    def head(self) -> str:
        """The signed end of the chain, ``<number of entries>:<mac>``: kept elsewhere, it shows a rollback."""
        with self._store.read() as connection:
            count, last = self._store.head(connection)
        return f"{count}:{last[:32]}"

    def manifest(
        self,
        image_files: Sequence[str | Path],
        progress: Callable[[int, int], None] | None = None,
        groups: Sequence[str] | None = None,
        pictures: Mapping[Path, bytes] | None = None,
        copies_are_one: bool = False,
        boxes: TextBoxes | None = None,
    ) -> Manifest:
        """Hash the pictures and labels of a training split; files that the ledger knows need no decoding.

        ``groups`` has the group of every image, for runs and budgets that protect groups; ``pictures`` the identities
        of the images, where they have been decoded already (:func:`dptrain.datasets.identity.pictures_in`). With
        ``copies_are_one`` you promise that no step draws two copies of a picture as two units. ``boxes`` says where
        their labels are (``data.boxes_in("train")``); without it they are where Ultralytics looks for them.

        Raises:
            DataError: An image or a label file cannot be read, or the same picture is there twice, turned and mirrored
                copies included, but for copies that are in one group.
        """
        files = [Path(file) for file in image_files]
        return make_manifest(
            self._store.key, files, self._known_files, progress, groups, pictures, copies_are_one, boxes
        )

    def holders(
        self,
        image_files: Sequence[Path],
        pictures: Mapping[Path, bytes] | None = None,
        groups: Sequence[str] | None = None,
    ) -> dict[Path, list[str]]:
        """Return those of some images that datasets hold, or have ever held, each with the names of these datasets.

        With ``groups`` also those whose group a dataset protects. Nothing is written. The arguments are as for
        :meth:`manifest`.

        Raises:
            DataError: An image cannot be read.
            BudgetError: The database was changed by other ways.
        """
        units: list[bytes] = []
        for _, hashes in find_units(self._store.key, image_files, self._known_files, pictures):
            units += (unit for _, unit in hashes)
        with self._store.read() as connection:
            state = seals.check(self._store, connection)
            seals.check_units(self._store, connection)
            people = [()] * len(units) if groups is None else map(names_in, groups)
            named = [[group_of(self._store.key, name) for name in names] for names in people]
            known = snapshots.holders(connection, state, sorted({*units, *itertools.chain(*named)}))
        held = {
            file: next((known[one] for one in (unit, *names) if one in known), [])
            for file, unit, names in zip(image_files, units, named, strict=True)
        }
        return {file: names for file, names in held.items() if names}

    def _known_files(self, hashes: Sequence[bytes]) -> dict[bytes, bytes]:
        with self._store.read() as connection:
            return snapshots.find_files(self._store, connection, hashes)

    def create(
        self, name: str, *, epsilon: float, delta: float, unit: str = "image", manifest: Manifest
    ) -> DatasetReading:
        """Set the limit of a dataset; what its pictures have spent so far counts.

        Raises:
            BudgetError: The name has a limit already, or belongs to other pictures.
            ConfigError: ``epsilon`` or ``delta`` is out of range.
        """
        from ..privacy.accounting import check_delta, check_epsilon

        check_epsilon(epsilon)
        check_delta(delta)
        naming.check_unit(unit)
        self._own(manifest)
        with self._store.change() as (connection, state):
            number = naming.dataset_to_limit(connection, state, name, unit, manifest)
            snapshots.register(self._store, connection, state, number, name, manifest)
            limit = {"dataset": name, "epsilon": epsilon, "delta": delta, "unit": unit, "orders": self._store.orders}
            values = {"epsilon": epsilon, "delta": delta, "limited": self._store.append(connection, "budget", limit)}
            connection.execute(update(datasets).where(datasets.c.id == number).values(values))
            state = read_state(connection)
            if admission.has_charges(state, number):
                admission.budget_filter(self._store, connection, state, state.datasets[number])
        manifest.files.clear()  # remembered now
        return self.show(name)[0]

    def show(self, name: str | None = None) -> list[DatasetReading]:
        """Return what the datasets have spent, one or all of them.

        Raises:
            BudgetError: There is no dataset of this name.
        """
        with self._store.read() as connection:
            return read_datasets(self._store, connection, name)

    def history(self, name: str | None = None, last: int | None = None) -> list[Movement]:
        """Return the charges of a dataset, or of all, in the order of their reservations; the ``last`` ones only."""
        with self._store.read() as connection:
            return read_movements(self._store, connection, name, last)

    def refresh_pld(self, name: str) -> None:
        """Compute the tighter reading of a dataset where that is quick, and keep it for :meth:`show`."""
        refresh_pld(self._store, name)

    def verify(self, expect: str | None = None) -> Verification:
        """Check every entry, and everything that follows from them; see :mod:`dptrain.ledger.verify`."""
        return verify(self._store, expect)

    def export(self) -> dict[str, Any]:
        """Return the whole chain as plain data, with its head."""
        return export(self._store)

    def grant_roles(self) -> list[str]:
        """Make the roles of a ledger on a PostgreSQL server: who may read, spend, set limits (:mod:`.roles`).

        Returns:
            The SQL that was run.

        Raises:
            BudgetError: The ledger is a file, or this user may not make roles there.
        """
        return roles.grant(self._store)
