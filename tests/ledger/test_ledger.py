"""What a dataset may spend: admission, settlement, datasets that share pictures; on SQLite and PostgreSQL."""

from __future__ import annotations

import re

import pytest
from dp_accounting import dp_event

from dptrain import BudgetError, BudgetLedger, ConfigError
from dptrain.privacy.accounting import dp_sgd_epsilon, dp_sgd_event, epsilon
from dptrain.privacy.calibration import calibrate_noise

from .pictures import pictures

DELTA = 1e-5
RUN = dp_sgd_event(0.02, 1500, 1.1)  # epsilon 4.41


def spent(ledger: BudgetLedger, name: str) -> float:
    return ledger.show(name)[0].epsilon


def charged(ledger: BudgetLedger, name: str) -> float:
    return ledger.show(name)[0].epsilon_charged


def test_a_new_dataset_is_recorded_without_a_limit(any_ledger: BudgetLedger) -> None:
    charge = any_ledger.reserve(RUN, pictures(any_ledger, range(9)), data_name="pets", delta=DELTA)
    assert (charge.dataset, charge.planned, charge.notes) == ("pets", 1500, ())
    reading = any_ledger.show("pets")[0]
    assert (reading.limit, reading.runs, reading.open_runs) == (None, 1, 1)
    assert reading.epsilon == pytest.approx(epsilon(RUN, DELTA), rel=1e-9)
    assert any_ledger.verify().sound


def test_a_run_of_exactly_the_budgets_epsilon_fits_and_a_second_does_not(any_ledger: BudgetLedger) -> None:
    manifest = pictures(any_ledger, range(5))
    any_ledger.create("pets", epsilon=epsilon(RUN, DELTA), delta=DELTA, manifest=manifest)
    any_ledger.reserve(RUN, manifest)
    with pytest.raises(BudgetError, match=r"nothing fits any more|would fit"):
        any_ledger.reserve(RUN, manifest)


@pytest.mark.parametrize(("total", "one"), [(8.0, 1.0), (3.0, 0.9), (8.0, 8.0), (1.0, 0.2)])
def test_as_many_equal_runs_fit_as_composed_rdp_says(ledger: BudgetLedger, total: float, one: float) -> None:
    """The filter looks at one order only, chosen so that nothing is lost for runs that are all alike."""
    manifest = pictures(ledger, range(5))
    noise = calibrate_noise(one, DELTA, 0.02, 200)
    by_rdp = 0
    while dp_sgd_epsilon(0.02, 200 * (by_rdp + 1), noise, DELTA) <= total:
        by_rdp += 1
    ledger.create("pets", epsilon=total, delta=DELTA, manifest=manifest)
    for _ in range(by_rdp):
        ledger.reserve(dp_sgd_event(0.02, 200, noise), manifest).settle(200)
    with pytest.raises(BudgetError):
        ledger.reserve(dp_sgd_event(0.02, 200, noise), manifest)
    assert ledger.show("pets")[0].runs == by_rdp


def test_a_refusal_says_what_is_left_and_what_would_fit_and_writes_nothing(any_ledger: BudgetLedger) -> None:
    manifest = pictures(any_ledger, range(5))
    any_ledger.create("pets", epsilon=8.0, delta=DELTA, manifest=manifest)
    any_ledger.reserve(RUN, manifest).settle(1500)
    head = any_ledger.head
    big = dp_sgd_event(0.02, 5000, 1.1)
    with pytest.raises(BudgetError, match=r"epsilon 4\.413 of 8 is spent") as caught:
        any_ledger.reserve(big, manifest)
    assert any_ledger.head == head
    found = re.search(
        r"; (\d+) steps at this noise or noise multiplier ([\d.]+) for 5000 steps would fit", str(caught.value)
    )
    assert found is not None, str(caught.value)
    steps, noise = int(found[1]), float(found[2])
    with pytest.raises(BudgetError):
        any_ledger.reserve(dp_sgd_event(0.02, steps + 1, 1.1), manifest)
    with pytest.raises(BudgetError):
        any_ledger.reserve(dp_sgd_event(0.02, 5000, round(noise - 2e-3, 4)), manifest)
    charge = any_ledger.reserve(dp_sgd_event(0.02, steps, 1.1), manifest)
    charge.settle(0, "failed")
    any_ledger.reserve(dp_sgd_event(0.02, 5000, noise), manifest)


def test_the_first_run_that_is_too_large_is_told_what_would_fit(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    ledger.create("pets", epsilon=2.0, delta=DELTA, manifest=manifest)
    with pytest.raises(BudgetError, match=r"epsilon 0\.000 of 2 is spent .* 2 is left") as caught:
        ledger.reserve(RUN, manifest)
    found = re.search(r"noise multiplier ([\d.]+) for", str(caught.value))
    assert found is not None
    assert float(found[1]) == calibrate_noise(2.0, DELTA, 0.02, 1500)
    ledger.reserve(dp_sgd_event(0.02, 1500, float(found[1])), manifest)


def test_nothing_fits_a_spent_budget_and_the_message_says_so(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    ledger.create("pets", epsilon=1.0, delta=DELTA, manifest=manifest)
    ledger.reserve(dp_event.GaussianDpEvent(5.0), manifest)
    with pytest.raises(BudgetError, match="nothing fits any more"):
        ledger.reserve(dp_event.LaplaceDpEvent(0.1), manifest)


def test_settling_frees_the_steps_that_were_not_started_and_never_more(any_ledger: BudgetLedger) -> None:
    manifest = pictures(any_ledger, range(5))
    charge = any_ledger.reserve(RUN, manifest, data_name="pets", delta=DELTA)
    charge.settle(700, "stopped")
    assert charged(any_ledger, "pets") == pytest.approx(dp_sgd_epsilon(0.02, 700, 1.1, DELTA))
    charge.settle(700, "stopped")
    charge.settle(300, "stopped")  # again, by someone who knows less: nothing is taken back
    assert charged(any_ledger, "pets") == pytest.approx(dp_sgd_epsilon(0.02, 700, 1.1, DELTA))
    charge.settle(1500, "finished")  # and someone who knows more is believed
    assert charged(any_ledger, "pets") == pytest.approx(dp_sgd_epsilon(0.02, 1500, 1.1, DELTA))
    assert any_ledger.verify().sound


def test_a_run_that_never_began_costs_nothing(ledger: BudgetLedger) -> None:
    charge = ledger.reserve(RUN, pictures(ledger, range(5)), data_name="pets", delta=DELTA)
    charge.settle(0, "failed")
    assert spent(ledger, "pets") == 0.0


def test_a_resumed_run_continues_its_own_charge(any_ledger: BudgetLedger) -> None:
    manifest = pictures(any_ledger, range(5))
    charge = any_ledger.reserve(RUN, manifest, data_name="pets", delta=DELTA)
    charge.settle(700, "stopped")
    again = charge.resume(manifest, 700)
    assert again.run == charge.run
    assert spent(any_ledger, "pets") == pytest.approx(dp_sgd_epsilon(0.02, 1500, 1.1, DELTA))
    again.settle(1500)
    assert any_ledger.show("pets")[0].runs == 1


def test_a_run_cannot_go_on_when_its_budget_went_to_another_meanwhile(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    ledger.create("pets", epsilon=5.0, delta=DELTA, manifest=manifest)
    first = ledger.reserve(RUN, manifest)
    first.settle(100, "stopped")
    ledger.reserve(dp_sgd_event(0.02, 1300, 1.1), manifest)
    with pytest.raises(BudgetError, match=r"1400 steps .* do not fit the budget pets"):
        first.resume(manifest, 100)


def test_a_killed_run_keeps_its_reservation_and_resumes_without_a_new_one(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    ledger.create("pets", epsilon=5.0, delta=DELTA, manifest=manifest)
    charge = ledger.reserve(RUN, manifest)
    with pytest.raises(BudgetError):
        ledger.reserve(RUN, manifest)
    charge.resume(manifest, 400).settle(1500)
    assert spent(ledger, "pets") == pytest.approx(dp_sgd_epsilon(0.02, 1500, 1.1, DELTA))


def test_two_copies_of_a_runs_folder_cannot_both_go_on(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    charge = ledger.reserve(RUN, manifest, data_name="pets")
    charge.resume(manifest, 3)
    with pytest.raises(BudgetError, match="older copy"):
        charge.resume(manifest, 3)


def test_a_folder_that_was_set_back_cannot_take_the_same_steps_twice(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    charge = ledger.reserve(RUN, manifest, data_name="pets")
    charge.settle(5, "stopped")
    with pytest.raises(BudgetError, match="older copy"):
        charge.resume(manifest, 2)


def test_a_resume_with_other_images_or_labels_is_refused_with_what_changed(ledger: BudgetLedger) -> None:
    charge = ledger.reserve(RUN, pictures(ledger, range(5)), data_name="pets")
    with pytest.raises(BudgetError, match=r"\(2 images added, 1 image removed\)"):
        charge.resume(pictures(ledger, range(1, 7)))
    with pytest.raises(BudgetError, match=r"\(the labels of 5 images changed\)"):
        charge.resume(pictures(ledger, range(5), labels="other"))


def test_a_changed_folder_is_the_same_dataset_and_the_change_is_said(any_ledger: BudgetLedger) -> None:
    any_ledger.create("pets", epsilon=8.0, delta=DELTA, manifest=pictures(any_ledger, range(9)))
    added = any_ledger.reserve(RUN, pictures(any_ledger, range(10)), data_name="elsewhere")
    assert (added.dataset, added.notes) == ("pets", ("pets is not what it was: 1 image added",))
    added.settle(1500)
    relabelled = any_ledger.reserve(dp_sgd_event(0.02, 100, 1.1), pictures(any_ledger, range(10), "x"))
    assert relabelled.notes == ("pets is not what it was: the labels of 10 images changed",)
    assert spent(any_ledger, "pets") == pytest.approx(dp_sgd_epsilon(0.02, 1600, 1.1, DELTA))


def test_datasets_that_share_pictures_share_their_spending(any_ledger: BudgetLedger) -> None:
    any_ledger.create("left", epsilon=5.0, delta=DELTA, manifest=pictures(any_ledger, range(10)))
    any_ledger.create("right", epsilon=9.0, delta=DELTA, manifest=pictures(any_ledger, range(9, 20)))
    any_ledger.reserve(RUN, pictures(any_ledger, range(10)))
    assert spent(any_ledger, "right") == pytest.approx(epsilon(RUN, DELTA))  # through picture 9
    with pytest.raises(BudgetError, match="budget left"):
        any_ledger.reserve(RUN, pictures(any_ledger, range(9, 20)))
    disjoint = any_ledger.reserve(RUN, pictures(any_ledger, range(10, 20)))
    assert disjoint.dataset == "right"
    # Nobody is in both runs, so the dataset has spent one of them: parallel composition.
    assert spent(any_ledger, "right") == pytest.approx(epsilon(RUN, DELTA))
    assert spent(any_ledger, "left") == pytest.approx(epsilon(RUN, DELTA))
    assert any_ledger.verify().sound


def test_a_budget_counts_what_was_spent_before_it_was_set(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    ledger.reserve(RUN, manifest, data_name="pets", delta=DELTA).settle(1500)
    reading = ledger.create("pets", epsilon=5.0, delta=DELTA, manifest=manifest)
    assert reading.epsilon == pytest.approx(epsilon(RUN, DELTA))
    assert reading.filter_order is not None
    with pytest.raises(BudgetError):
        ledger.reserve(RUN, manifest)


def test_a_copy_under_another_name_has_no_fresh_budget(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    ledger.create("pets", epsilon=5.0, delta=DELTA, manifest=manifest)
    ledger.reserve(RUN, manifest)
    ledger.create("animals", epsilon=50.0, delta=DELTA, manifest=manifest)
    with pytest.raises(BudgetError, match="budget pets"):
        ledger.reserve(RUN, manifest, dataset="animals")


def test_a_limit_is_set_once(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    ledger.create("pets", epsilon=5.0, delta=DELTA, manifest=manifest)
    with pytest.raises(BudgetError, match="has a budget already, epsilon 5"):
        ledger.create("pets", epsilon=50.0, delta=DELTA, manifest=manifest)


def test_a_required_budget_must_cover_every_picture(ledger: BudgetLedger) -> None:
    with pytest.raises(BudgetError, match="required"):
        ledger.reserve(RUN, pictures(ledger, range(9)), required=True)
    assert ledger.show() == []
    ledger.create("some", epsilon=8.0, delta=DELTA, manifest=pictures(ledger, range(4)))
    with pytest.raises(BudgetError, match="required"):
        ledger.reserve(RUN, pictures(ledger, range(9)), data_name="all", required=True)
    ledger.reserve(RUN, pictures(ledger, range(4)), required=True)


def test_names_are_found_and_misspelt_ones_are_not_made(ledger: BudgetLedger) -> None:
    ledger.create("pets", epsilon=8.0, delta=DELTA, manifest=pictures(ledger, range(4)))
    with pytest.raises(BudgetError, match="did you mean pets"):
        ledger.reserve(RUN, pictures(ledger, range(4)), dataset="pest")
    with pytest.raises(BudgetError, match="holds none of these pictures"):
        ledger.reserve(RUN, pictures(ledger, range(50, 60)), dataset="pets")
    other = ledger.reserve(RUN, pictures(ledger, range(50, 60)), data_name="pets")
    assert other.dataset == "pets-2"
    assert "compressed anew" in other.notes[0]


@pytest.mark.parametrize(
    "event",
    [
        dp_event.GaussianDpEvent(2.0),
        dp_event.RepeatAndSelectDpEvent(dp_sgd_event(0.02, 100, 2.0), 10, 0),
        dp_event.ComposedDpEvent([dp_sgd_event(0.02, 100, 2.0), dp_event.LaplaceDpEvent(3.0)]),
        dp_event.ZCDpEvent(0.1),
    ],
)
def test_any_event_that_rdp_knows_can_be_charged(ledger: BudgetLedger, event: dp_event.DpEvent) -> None:
    charge = ledger.reserve(event, pictures(ledger, range(5)), data_name="pets", delta=DELTA)
    assert charge.planned == 1
    charge.settle(1)
    assert spent(ledger, "pets") == pytest.approx(epsilon(event, DELTA), rel=1e-9)
    assert ledger.verify().sound


def test_an_event_without_an_rdp_bound_is_refused(ledger: BudgetLedger) -> None:
    with pytest.raises(BudgetError, match="no RDP bound"):
        ledger.reserve(dp_event.RandomizedResponseDpEvent(0.5, 2), pictures(ledger, range(5)))
    assert ledger.show() == []


def test_values_out_of_range_are_refused(ledger: BudgetLedger) -> None:
    manifest = pictures(ledger, range(5))
    for wrong in ({"epsilon": 0.0}, {"delta": 0.0}):
        with pytest.raises(ConfigError):
            ledger.create("pets", **{"epsilon": 8.0, "delta": DELTA, "manifest": manifest, **wrong})  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="unit"):
        ledger.create("pets", epsilon=8.0, delta=DELTA, unit="person", manifest=manifest)
    with pytest.raises(BudgetError, match="not a name"):
        ledger.create("a\nb", epsilon=8.0, delta=DELTA, manifest=manifest)


def test_the_history_shows_every_run_and_how_the_spending_grew(any_ledger: BudgetLedger) -> None:
    manifest = pictures(any_ledger, range(5))
    for steps in (100, 200, 300):
        any_ledger.reserve(
            dp_sgd_event(0.02, 300, 1.1), manifest, data_name="pets", delta=DELTA, name=f"run{steps}"
        ).settle(steps)
    rows = any_ledger.history("pets")
    assert [(row.name, row.charged, row.planned, row.status) for row in rows] == [
        ("run100", 100, 300, "finished"), ("run200", 200, 300, "finished"), ("run300", 300, 300, "finished"),
    ]  # fmt: skip
    assert [row.epsilon for row in rows] == pytest.approx(
        [dp_sgd_epsilon(0.02, n, 1.1, DELTA) for n in (300, 600, 900)]  # two ended early, when, by what they showed
    )
    assert any_ledger.history("pets", last=1) == rows[-1:]


def test_pld_is_the_tighter_reading_of_the_same_events(ledger: BudgetLedger) -> None:
    ledger.reserve(dp_sgd_event(0.1, 50, 2.0), pictures(ledger, range(5)), data_name="pets", delta=DELTA)
    assert ledger.show("pets")[0].epsilon_pld is None
    ledger.refresh_pld("pets")
    reading = ledger.show("pets")[0]
    assert reading.epsilon_pld is not None
    assert reading.epsilon_pld == pytest.approx(epsilon(dp_sgd_event(0.1, 50, 2.0), DELTA, "pld"))
    assert reading.epsilon_pld < reading.epsilon
