"""A site takes its rounds as one run with one plan, whatever the server sends and whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from dptrain.errors import PrivacyError
from dptrain.federated.exchange import DeclinedError, Release
from dptrain.federated.settings import read_settings
from dptrain.federated.site import FAILED, NO_LEAVE, take_round, told
from dptrain.ledger import BudgetLedger
from dptrain.statement import check_statement
from dptrain.training.journal import steps_started

from .sites import ROUNDS, STEPS, equal, first_offer, play, spent, write_site, write_start

PER_ROUND = STEPS // ROUNDS


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round writes the statement, whose figures take most of its time here."""
    monkeypatch.setattr("dptrain.statement.files.to_html", lambda *_, **__: "")


def test_all_rounds_are_one_run_of_one_plan_in_every_sites_own_ledger_and_statement(
    tmp_path: Path, start: Path
) -> None:
    sites = [
        write_site(tmp_path / "a", start),
        write_site(tmp_path / "b", start, images=4, pictures=1, privacy={
            "noise_multiplier": 2.0, "dataset_size": 4, "expected_batch_size": 2, "delta": 1e-3,
        }),
    ]  # fmt: skip
    played = play(sites)
    for site, number in zip(sites, range(2), strict=True):
        plan = read_settings(site).plan
        releases = [releases[number] for releases in played]
        assert [r.steps for r in releases] == [2, 4, 6] and {r.epsilon for r in releases} == {plan.epsilon()}
        assert [r.epsilon_so_far for r in releases] == [plan.epsilon(steps=k) for k in (2, 4, 6)]
        assert spent(site) == [STEPS] and steps_started(site.parent / "out") == STEPS
        statement = json.loads((site.parent / "out" / "statement.json").read_text())
        assert statement["status"] == "finished" and statement["guarantee"]["epsilon"] == plan.epsilon()
        assert check_statement(site.parent / "out").statement["guarantee"]["epsilon"] == plan.epsilon()
    assert not equal(played[0][0].parameters, played[0][1].parameters)


def test_rounds_whose_server_changes_nothing_take_the_very_steps_of_one_run(tmp_path: Path, start: Path) -> None:
    """Sampling, noise, optimizer state and learning rate go on from round to round, as if nobody had stopped."""
    site, whole = (write_site(tmp_path / str(rounds), start, seed=3, rounds=rounds) for rounds in (ROUNDS, 1))
    assert equal(play([site])[-1][0].parameters, play([whole], 1)[-1][0].parameters)


def test_a_round_that_is_repeated_is_answered_again_and_spends_nothing(tmp_path: Path, start: Path) -> None:
    site = write_site(tmp_path / "a", start)
    offer = first_offer(site)
    once = take_round(site, offer)
    again = take_round(site, replace(offer, parameters={n: p + 1 for n, p in offer.parameters.items()}))
    assert equal(once.parameters, again.parameters) and replace(again, parameters=once.parameters) == once
    assert steps_started(site.parent / "out") == PER_ROUND and spent(site) == [PER_ROUND]
    for number in range(2, ROUNDS + 1):
        last = take_round(site, replace(offer, number=number))
    assert equal(take_round(site, replace(offer, number=ROUNDS)).parameters, last.parameters)
    assert spent(site) == [STEPS]


def test_a_round_that_goes_backwards_or_is_none_is_declined(tmp_path: Path, start: Path) -> None:
    site = write_site(tmp_path / "a", start)
    offer = first_offer(site)
    take_round(site, offer)
    take_round(site, replace(offer, number=2))
    for number in (1, 0, -1, True, 2.0, "2"):
        with pytest.raises(DeclinedError, match="goes backwards"):
            take_round(site, replace(offer, number=number))  # type: ignore[arg-type]
    assert spent(site) == [2 * PER_ROUND]


def test_a_site_that_missed_rounds_takes_its_own_next_steps_and_never_more_than_its_plan(
    tmp_path: Path, start: Path
) -> None:
    site = write_site(tmp_path / "a", start)
    offer = first_offer(site)
    assert [take_round(site, replace(offer, number=number)).steps for number in (2, 7, 30)] == [2, 4, 6]
    for number in (31, 32):
        with pytest.raises(DeclinedError, match="plan of the site is finished, all 6 steps"):
            take_round(site, replace(offer, number=number))
    assert spent(site) == [STEPS]


def test_the_server_decides_where_steps_begin_and_nothing_else(tmp_path: Path, start: Path) -> None:
    """Two servers that send other parameters meet the same plan, draws and noise; terms of their own are declined."""
    site = write_site(tmp_path / "a", start)
    offer = first_offer(site)
    name = next(iter(offer.parameters))
    values = offer.parameters[name]
    bad = {
        "is not made of finite": {name: torch.full_like(values, float("nan"))},
        "as sent, and torch.float32": {name: values.double()},
        r"is torch.float32 \(1,": {name: values[None]},
        "is in the message only": {"model.0.conv.weight": torch.zeros(1)},
    }
    for words, changed in bad.items():
        with pytest.raises(DeclinedError, match=words):
            take_round(site, replace(offer, parameters={**offer.parameters, **changed}))
    with pytest.raises(DeclinedError, match="is here only"):
        take_round(site, replace(offer, parameters={n: p for n, p in offer.parameters.items() if n != name}))
    others = {
        "rounds": 6, "steps_per_round": 1, "start_sha256": "0" * 64, "frozen_sha256": "", "classes": ("blue", "green"),
    }  # fmt: skip
    for term, value in others.items():
        with pytest.raises(DeclinedError, match=f"{term} is .* at the server and .* at the site"):
            take_round(site, replace(offer, terms=replace(offer.terms, **{term: value})))
    assert not (site.parent / "out").exists(), "nothing is left of a round that was declined"
    assert sum(spent(site)) == 0


def test_no_budget_no_step_and_the_site_stays_out(tmp_path: Path, start: Path) -> None:
    """Another run of the hospital, on the same images, spends between two rounds what the site needs for the rest."""
    site = write_site(tmp_path / "a", start, budget={"url": "sqlite:///budget.db", "name": "ward"})
    plan = read_settings(site).plan
    ledger = BudgetLedger(f"sqlite:///{site.parent / 'budget.db'}")
    pictures = sorted((site.parent / "data" / "images" / "train").iterdir())
    ledger.create("ward", manifest=ledger.manifest(pictures), epsilon=plan.epsilon() * 1.01, delta=plan.delta)
    offer = first_offer(site)
    take_round(site, offer)
    other = site.parent / "other.yaml"
    other.write_text(json.dumps({**json.loads(site.read_text()), "rounds": 1, "steps": 3, "output_dir": "other"}))
    take_round(other, first_offer(other))
    for number in (2, 3):
        with pytest.raises(DeclinedError) as caught, told():
            take_round(site, replace(offer, number=number))
        assert str(caught.value) == NO_LEAVE
    assert sorted(spent(site)) == [PER_ROUND, 3] and steps_started(site.parent / "out") == PER_ROUND


def test_what_is_wrong_with_the_files_of_a_site_stays_there(tmp_path: Path, start: Path) -> None:
    site = write_site(tmp_path / "a", start)
    offer = first_offer(site)
    (site.parent / "data" / "images" / "train" / "000.png").write_bytes(b"x")
    with pytest.raises(DeclinedError) as caught, told():
        take_round(site, offer)
    assert str(caught.value) == FAILED


def test_a_site_killed_inside_a_round_ends_it_with_every_step_spent_once(tmp_path: Path, start: Path) -> None:
    """SIGKILL in the middle of round 2, a restart, the same round again: steps, ledger and statement add up."""
    site = write_site(tmp_path / "a", start)
    offer = first_offer(site)
    take_round(site, offer)
    torch.save((offer, str(site)), tmp_path / "offer.pt")
    script = (
        "import os, signal, torch, dataclasses\n"
        "from dptrain.federated.site import take_round\n"
        "from dptrain.training.journal import StepJournal\n"
        "record = StepJournal.record\n"
        "def die(self, steps):\n"
        "    record(self, steps)\n"
        "    if steps == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "StepJournal.record = die\n"
        f"offer, site = torch.load({str(tmp_path / 'offer.pt')!r}, weights_only=False)\n"
        "take_round(site, dataclasses.replace(offer, number=2))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert steps_started(site.parent / "out") == 4, "both steps of the round were begun"
    second = take_round(site, replace(offer, number=2))
    assert second.steps == 4 and steps_started(site.parent / "out") == 4
    assert take_round(site, replace(offer, number=3)).steps == STEPS
    assert spent(site) == [STEPS] and steps_started(site.parent / "out") == STEPS


def test_a_release_is_noised_or_declared_and_two_neighbours_differ_in_its_parameters_alone(
    tmp_path: Path, start: Path
) -> None:
    assert [field.name for field in fields(Release)] == [
        "name", "number", "parameters", "dataset_size", "epsilon", "delta", "epsilon_so_far", "steps", "planned_steps",
        "valid", "unit",
    ]  # fmt: skip
    first, second = (
        write_site(tmp_path / name, start, images=n, pictures=9, seed=1, rounds=1) for name, n in (("a", 7), ("b", 6))
    )
    offer = first_offer(first)
    one, other = take_round(first, offer), take_round(second, offer)
    assert one.dataset_size == other.dataset_size == 6 and not one.valid
    assert not equal(one.parameters, other.parameters)
    assert replace(one, parameters={}, name="b") == replace(other, parameters={})


def test_a_folder_of_another_number_of_rounds_is_refused(tmp_path: Path, start: Path) -> None:
    site = write_site(tmp_path / "a", start)
    offer = first_offer(site)
    take_round(site, offer)
    site.write_text(json.dumps({**json.loads(site.read_text()), "rounds": 2}))
    with pytest.raises(PrivacyError, match=r"another number of rounds than 2"):
        take_round(site, replace(offer, number=2, terms=replace(offer.terms, rounds=2, steps_per_round=3)))
