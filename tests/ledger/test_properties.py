"""What holds for any history of charges."""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant, compute_epsilon, rdp_privacy_accountant
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from dptrain import BudgetError, BudgetLedger
from dptrain.ledger import curves, events
from dptrain.privacy import accounting, conversion
from dptrain.privacy.rdp import ORDERS
from dptrain.support.words import shown

from .conftest import KEY
from .pictures import pictures

_NUMBERS = itertools.count()
# A few mechanisms, since a new one takes a tenth of a second: what is random is their order, number and overlap.
STEPS = [
    dp_event.PoissonSampledDpEvent(0.02, dp_event.GaussianDpEvent(1.1)),
    dp_event.PoissonSampledDpEvent(0.5, dp_event.GaussianDpEvent(0.7)),
    dp_event.PoissonSampledDpEvent(1e-3, dp_event.GaussianDpEvent(5.0)),
    dp_event.GaussianDpEvent(30.0),
    dp_event.LaplaceDpEvent(20.0),
]
PLANNED = st.one_of(st.integers(1, 50), st.integers(1, 10**6))
CHARGES = st.lists(
    st.tuples(st.sampled_from(STEPS), PLANNED, st.floats(0, 1), st.integers(0, 6), st.integers(1, 6)),
    min_size=1, max_size=8,
)  # fmt: skip
DELTAS = st.sampled_from([1e-10, 1e-6, 1e-5, 1e-3, 0.3])
# The same histories every time, unless DPTRAIN_HISTORIES asks for that many new ones.
_HISTORIES = int(os.environ.get("DPTRAIN_HISTORIES", "0"))
FAST = settings(
    max_examples=_HISTORIES or 25,
    derandomize=not _HISTORIES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(autouse=True, scope="module")
def _each_mechanism_once() -> Iterator[None]:
    """dp-accounting takes a tenth of a second for the curve of a step; the same one is asked for thousands of times."""
    plain = rdp_privacy_accountant._compute_rdp_poisson_subsampled_gaussian
    kept: dict[tuple[float, float, bytes], np.ndarray] = {}

    def cached(q: float, noise_multiplier: float, orders: np.ndarray) -> np.ndarray:
        key = (q, noise_multiplier, np.asarray(orders).tobytes())
        if key not in kept:
            kept[key] = plain(q=q, noise_multiplier=noise_multiplier, orders=orders)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rdp_privacy_accountant, "_compute_rdp_poisson_subsampled_gaussian", cached)
        yield


def by_dp_accounting(events: list[dp_event.DpEvent], delta: float) -> float:
    """One accountant, told of every run in turn: nothing of ours is between."""
    account = RdpAccountant(neighboring_relation=accounting.RELATION)
    for event in events:
        account.compose(event)
    return float(account.get_epsilon(delta))


def fresh(tmp_path_factory: pytest.TempPathFactory) -> BudgetLedger:
    """An empty ledger, copied from one that is made once."""
    folder: Path = tmp_path_factory.getbasetemp()
    template, file = folder / "template.db", folder / f"property{next(_NUMBERS)}.db"
    if not template.exists():
        BudgetLedger(f"sqlite:///{template}", KEY)._store.engine.dispose()
    shutil.copy(template, file)
    return BudgetLedger(f"sqlite:///{file}", KEY)


@FAST
@given(charges=CHARGES, delta=DELTAS)
def test_the_epsilon_shown_is_never_below_dp_accountings_for_anyone_in_the_data(
    tmp_path_factory: pytest.TempPathFactory, charges: list, delta: float
) -> None:
    """Runs on windows of a line of pictures: for every picture, the runs that could draw it are composed."""
    ledger = fresh(tmp_path_factory)
    everything = pictures(ledger, range(12))
    ledger.create("line", epsilon=1e9, delta=delta, manifest=everything)
    of_picture: dict[int, list[dp_event.DpEvent]] = {number: [] for number in range(12)}
    planned_for: dict[int, list[dp_event.DpEvent]] = {number: [] for number in range(12)}
    for step, planned, part, start, length in charges:
        taken = math.ceil(planned * part)
        window = range(start, start + length)
        ledger.reserve(dp_event.SelfComposedDpEvent(step, planned), pictures(ledger, window)).settle(taken)
        for number in window:
            if taken:
                of_picture[number].append(dp_event.SelfComposedDpEvent(step, taken))
                planned_for[number].append(dp_event.SelfComposedDpEvent(step, planned))
    reading = ledger.show("line")[0]
    planned = ledger.history("line")[-1].epsilon
    assert reading.epsilon_charged <= reading.epsilon <= planned
    for of, epsilon in ((of_picture, reading.epsilon_charged), (planned_for, planned)):
        truth = max(by_dp_accounting(events, delta) for events in of.values())
        assert truth <= epsilon <= truth * (1 + 1e-9) + 1e-12
        assert float(shown(epsilon)) >= truth
    assert ledger.verify().findings == ()


@FAST
@example(  # dp-accounting has no bound for the second mechanism at the order that the first one chose
    charges=[(STEPS[3], 3, 1.0, 0, 1), (STEPS[4], 10**6, 0.73, 0, 1), (STEPS[1], 105439, 0.4, 0, 1),
             (STEPS[4], 38, 0.72, 0, 1), (STEPS[3], 100291, 0.75, 0, 1)],
    total=17.685325898267443, delta=0.3,
)  # fmt: skip
@given(charges=CHARGES, total=st.floats(0.1, 20), delta=DELTAS)
def test_no_history_of_admitted_runs_passes_the_budget(
    tmp_path_factory: pytest.TempPathFactory, charges: list, total: float, delta: float
) -> None:
    """Also where the next run is made from the refusal: what is offered fits."""
    ledger = fresh(tmp_path_factory)
    manifest = pictures(ledger, range(3))
    ledger.create("pets", epsilon=total, delta=delta, manifest=manifest)
    events: list[dp_event.DpEvent] = []
    for step, planned, part, _, _ in charges:
        event = dp_event.SelfComposedDpEvent(step, planned)
        try:
            charge = ledger.reserve(event, manifest)
        except BudgetError as error:
            head = ledger.head
            words = str(error).partition("; ")[2].split()
            if " at this noise" not in str(error):
                assert ledger.head == head
                continue
            planned = int(words[0])
            charge = ledger.reserve(dp_event.SelfComposedDpEvent(step, planned), manifest)
        taken = math.ceil(planned * part)
        charge.settle(taken)
        if taken:
            events.append(dp_event.SelfComposedDpEvent(step, taken))
        assert by_dp_accounting(events, delta) <= total * (1 + 1e-9)
        assert ledger.show("pets")[0].epsilon <= total * (1 + 1e-9)
    assert (ledger.show("pets")[0].used or 0) <= 1


@FAST
@given(
    charges=st.lists(st.tuples(st.integers(1, 2**40), st.floats(0, 1e6)), max_size=30),
    seed=st.randoms(use_true_random=False),
)
def test_sums_of_curves_do_not_depend_on_their_order_and_are_never_rounded_down(
    charges: list[tuple[int, float]], seed: random.Random
) -> None:
    parts = [(steps, curves.to_curve([value, math.inf])) for steps, value in charges]  # the second has no bound
    found = curves.total(parts, (2.0, 3.0))
    exact = sum((steps * Fraction(value) for steps, value in charges), Fraction())
    assert exact <= Fraction(found[0]) * (1 + Fraction(curves.ROUNDING)) <= exact * (1 + 2 * Fraction(curves.ROUNDING))
    assert Fraction(curves.divergence(parts, 0)) == Fraction(found[0])
    assert found[1] == (math.inf if charges else 0.0)
    seed.shuffle(parts)
    assert curves.total(parts, (2.0, 3.0)) == found


def test_an_order_without_a_bound_takes_the_next_ones_in_a_filter_and_none_in_a_reading() -> None:
    curve = curves.to_curve([math.inf, 1.5, math.inf])
    assert curve == (math.inf, 1.5, math.inf)
    assert [curves.divergence([(1, curve)], index) for index in range(3)] == [1.5, 1.5, math.inf]
    both = [(1, curve), (2, curves.to_curve([2.0, 1.0, 1.0]))]
    assert [curves.divergence(both, index) for index in range(3)] == [5.5, 3.5, math.inf]
    assert curves.largest([curve, curves.to_curve([2.0, 1.0, 1.0])]) == (math.inf, 1.5, math.inf)


@given(
    delta=st.floats(1e-12, 0.5),
    curve=st.lists(st.one_of(st.floats(0, 1e4), st.just(math.inf)), min_size=len(ORDERS), max_size=len(ORDERS)),
)
def test_the_conversion_is_dp_accountings(delta: float, curve: list[float]) -> None:
    assert conversion.best_order(ORDERS, curve, delta) == compute_epsilon(ORDERS, curve, delta)


_LEAVES = st.one_of(
    st.builds(dp_event.GaussianDpEvent, st.floats(1e-3, 1e6)),
    st.builds(dp_event.LaplaceDpEvent, st.floats(1e-3, 1e6)),
    st.builds(dp_event.ZCDpEvent, st.floats(0, 10), st.floats(0, 10)),
    st.just(dp_event.NoOpDpEvent()),
    st.builds(dp_event.MixtureOfGaussiansDpEvent, st.just(1.0), st.just([0.0, 1.0]), st.just([0.5, 0.5])),
)
_EVENTS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.builds(dp_event.SelfComposedDpEvent, inner, st.integers(1, 10**9)),
        st.builds(dp_event.PoissonSampledDpEvent, st.floats(0, 1), inner),
        st.builds(dp_event.ComposedDpEvent, st.lists(inner, max_size=3)),
        st.builds(dp_event.RepeatAndSelectDpEvent, inner, st.floats(1, 100), st.floats(0, 10)),
    ),
    max_leaves=4,
)


@given(event=_EVENTS)
def test_an_event_comes_back_from_its_json_as_it_was(event: dp_event.DpEvent) -> None:
    text = events.event_to_json(event)
    assert events.event_from_json(text) == event
    assert events.event_to_json(events.event_from_json(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version":1}',
        '{"version":1,"event":{"class":"NoSuchEvent"}}',
        '{"version":1,"event":{"class":"attr"}}',
    ],
)
def test_a_text_that_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="not an event"):
        events.event_from_json(text)


def test_an_event_of_a_later_format_asks_for_an_upgrade() -> None:
    with pytest.raises(BudgetError, match="newer than this dptrain"):
        events.event_from_json('{"version":2,"event":{}}')


def test_what_is_written_with_decimals_is_rounded_up() -> None:
    assert [shown(value) for value in (0.0, 1.2341, 1.2349, 2.0, math.inf)] == [
        "0.000", "1.235", "1.235", "2.000", "infinity",
    ]  # fmt: skip
