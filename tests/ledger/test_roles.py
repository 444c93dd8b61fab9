"""Roles on a PostgreSQL server: the server itself keeps a reader from spending, and a spender from setting limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import dptrain
from dptrain.detection.data import load_data
from dptrain.errors import BudgetError
from dptrain.ledger import BudgetLedger
from dptrain.ledger.roles import ROLES

from ..conftest import MakeDataset
from .conftest import KEY

pytestmark = pytest.mark.usefixtures("postgres_server")


@pytest.fixture
def as_role(postgres_url: str) -> Callable[[str], str]:
    """Make a ledger with its roles and a user of each; return the address for the user of a role."""
    import psycopg

    BudgetLedger(postgres_url, KEY).grant_roles()
    with psycopg.connect(postgres_url.replace("dptrain@", "dptrain:x@"), autocommit=True) as connection:
        for role in ROLES:
            connection.execute(f"DROP ROLE IF EXISTS user_of_{role}")
            connection.execute(f"CREATE ROLE user_of_{role} LOGIN IN ROLE {role}")
    return lambda role: postgres_url.replace("dptrain@", f"user_of_{role}@")


@pytest.fixture
def images(make_dataset: MakeDataset) -> tuple[Path, ...]:
    return load_data(make_dataset()).train


@pytest.fixture
def plan() -> dptrain.PrivacyPlan:
    return dptrain.PrivacyPlan(0.1, 10, 2.0, 1.0, 1e-5, 8)


def test_a_reader_reads_and_cannot_spend_register_or_settle(
    as_role: Callable[[str], str], images: tuple[Path, ...], plan: dptrain.PrivacyPlan
) -> None:
    keeper = BudgetLedger(as_role("dptrain_keeper"), KEY)
    keeper.create("pets", epsilon=3.0, delta=1e-5, manifest=keeper.manifest(images))
    run = keeper.reserve(plan.event(), keeper.manifest(images), name="theirs")

    reader = BudgetLedger(as_role("dptrain_reader"), KEY)
    before = reader.verify().head
    assert reader.show("pets")[0].open_runs == 1
    assert [movement.name for movement in reader.history("pets")] == ["theirs"]
    manifest = reader.manifest(images)
    for attempt in (
        lambda: reader.reserve(plan.event(), manifest, name="mine"),
        lambda: reader.settle(run.run, 0),
        lambda: reader.create("again", epsilon=100.0, delta=1e-5, manifest=reader.manifest(images)),
        lambda: reader.grant_roles(),
    ):
        with pytest.raises(BudgetError, match="user_of_dptrain_reader may not do that"):
            attempt()
    assert keeper.verify().sound and keeper.verify().head == before


def test_a_spender_spends_and_cannot_set_limits(
    as_role: Callable[[str], str], images: tuple[Path, ...], plan: dptrain.PrivacyPlan
) -> None:
    spender = BudgetLedger(as_role("dptrain_spender"), KEY)
    charge = spender.reserve(plan.event(), spender.manifest(images), name="first")  # registers the pictures too
    charge.settle(4)
    with pytest.raises(BudgetError, match="user_of_dptrain_spender may not do that"):
        spender.create(charge.dataset, epsilon=8.0, delta=1e-5, manifest=spender.manifest(images))

    keeper = BudgetLedger(as_role("dptrain_keeper"), KEY)
    keeper.create(charge.dataset, epsilon=8.0, delta=1e-5, manifest=keeper.manifest(images))
    second = spender.reserve(plan.event(), spender.manifest(images), name="second")
    second.settle(4)
    second.resume(spender.manifest(images), 4).settle(10)
    assert spender.verify().sound
    assert spender.show(charge.dataset)[0].limit == 8.0


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE datasets SET epsilon = 100",
        "UPDATE entries SET payload = '{}'",
        "DELETE FROM runs",
        "DELETE FROM entries",
        "UPDATE meta SET value = 'x'",
        "UPDATE units SET hash = '\\x00'",
        "UPDATE runs SET planned = 0",
        "CREATE TABLE mine (id int)",
        "TRUNCATE head",
    ],
)
def test_the_server_refuses_a_spender_what_no_run_needs(as_role: Callable[[str], str], forgery: str) -> None:
    import psycopg

    with (
        psycopg.connect(as_role("dptrain_spender")) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(forgery)


def test_roles_of_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="roles are for PostgreSQL"):
        BudgetLedger(f"sqlite:///{tmp_path / 'budget.db'}").grant_roles()
