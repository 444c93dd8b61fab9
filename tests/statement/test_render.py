"""What people read: nothing in it is below what was spent, and nothing a user typed becomes markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.privacy import accounting
from dptrain.statement import to_html, to_markdown
from dptrain.statement.charts import charts
from dptrain.statement.render import sections
from dptrain.support.words import round_up

from .runs import PLAN, facts

NASTY = '<script>alert("x")</script> | `a` [b](http://c) *d*'


@given(st.floats(1e-12, 1e12), st.integers(2, 8))
def test_a_rounded_number_is_never_below_what_it_is(value: float, digits: int) -> None:
    shown = float(round_up(value, digits))
    assert value <= shown <= value * (1 + 2 * 10.0 ** (1 - digits))


def test_every_item_a_report_must_have_is_on_the_page() -> None:
    """Ponomareva et al. (2023), section 5.3.3, and NIST SP 800-226."""
    text = to_markdown(facts())
    for item in (
        "trust model", "Privacy unit", "Neighbouring relation", "What is released", "Data accesses covered",
        "DP-SGD", "Poisson, rate 0.05", "Noise multiplier | 1 ", "norm 1.5", "Expected batch size | 50", "20 of 20",
        "RDP", "PLD", "holds: each unit", "Epsilon of the tuning", "Budget of the dataset", "start.pt",
        "Validation split", "Versions", "AES-256", "Audit", "Assumptions", "What is not covered",
    ):  # fmt: skip
        assert item in text, item


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_alone_and_escapes_everything(tmp_path: Path) -> None:
    statement = facts(
        dataset={"name": NASTY, "declared_size": 1000},
        model={"start": NASTY, "trainable": [NASTY]},
        validation=NASTY,
        deviations=(NASTY,),
        public_data={"start_weights": NASTY, "sha256": NASTY, "declared": NASTY},
        training={NASTY: NASTY},
        dataset_budget={"name": NASTY, "unit": NASTY, "delta": 1e-5, "limit": 3.0},
        tuning={"method": NASTY, "runs": 3, "note": NASTY},
    )
    statement["weights"] = {NASTY: NASTY}
    statement["audit"] = {"method": NASTY, "epsilon_lower_bound": 0.1, "confidence": 0.95}
    results = tmp_path / "results.csv"
    results.write_text(
        "step,dp/epsilon,dp/epsilon_claimed,dp/delta,metrics/mAP50B,metrics/mAP50-95B\n0,0,2,1e-4,0.1,0.05\n20,2,2,1e-4,0.4,0.2\n"
    )
    page = to_html(statement, results)
    reader = _Tags()
    reader.feed(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "iframe", "object", "link", "a", "form"})
    pictures = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(pictures) == 3 and all(str(source).startswith("data:image/svg+xml;base64,") for source in pictures)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*http", page)
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert "<script" not in to_markdown(statement).replace("\\<script", "")
    cells = [line for line in to_markdown(statement).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in cells} == {3}, "a pipe of the user made a column"


def test_a_void_run_says_so_first_and_promises_nothing() -> None:
    statement = facts(secure=False)
    for page in (to_html(statement), to_markdown(statement)):
        assert "VOID" in page
        assert "must not be quoted" in page
        assert "With even odds" not in page


def test_a_run_without_a_step_has_its_page() -> None:
    assert "No training step was taken" in to_html(facts(steps=0, status="running"))


def test_numbers_on_the_page_are_not_below_dp_accounting() -> None:
    rows = dict(sections(facts())[0].facts)
    assert float(rows["Epsilon (RDP, the headline)"]) >= PLAN.epsilon()
    assert float(rows["Epsilon (PLD, a tighter reading of the same run)"]) >= PLAN.epsilon("pld")
    rates = accounting.true_positive_rates(PLAN.sample_rate, PLAN.steps, PLAN.noise_multiplier, PLAN.delta)
    for name, rate in rates.items():
        shown = rows[f"Best true-positive rate at {name} false positives"]
        assert 100 * rate <= float(shown.removeprefix("at most ").removesuffix(" %")) <= 100 * rate + 0.1
        assert f"that wrongly names {name} of the others finds {shown}" in to_markdown(facts())


def test_the_page_of_a_run_that_ended_early_says_when_the_smaller_figure_holds() -> None:
    statement = facts(steps=10, status="stopped")
    claimed, taken = round_up(PLAN.epsilon()), round_up(PLAN.epsilon(steps=10))
    for page in (to_html(statement), to_markdown(statement)):
        assert f"({claimed}, 0.0001)-differential privacy" in page
        assert re.search(rf"{taken} \(RDP\) of the steps taken, holds only if", page)
        assert "No figure by PLD" in page and "tighter reading</" not in page
    rows = dict(sections(statement)[0].facts)
    assert rows["Epsilon of the steps taken (RDP, no headline)"].endswith("without regard to anything it showed")


def test_no_picture_shows_a_winner_at_less_than_the_tuning_that_chose_it() -> None:
    tuning = {"method": "random stopping", "runs": "secret", "distribution": "geometric", "mean_runs": 5.0}
    captions = [caption for caption, _ in charts(facts(tuning=tuning), None)]
    assert len(captions) == 1 and captions[0].startswith("The RDP curve")


def test_a_weak_delta_is_told() -> None:
    assert any("not below 1 over" in line for line in facts(dataset={"declared_size": 10**5})["deviations"])


@pytest.mark.parametrize(("rate", "steps", "noise"), [(0.05, 20, 1.0), (1.0, 1, 2.0), (0.1, 30, 0.9)])
def test_the_bound_on_attacks_is_above_the_best_attack_on_a_plain_gaussian(
    rate: float, steps: int, noise: float
) -> None:
    """For one unsampled step the best test is known: right with probability Phi(1 / (2 sigma))."""
    from scipy.stats import norm

    bound = accounting.attack_accuracy(rate, steps, noise, 1e-5)
    assert 0.5 < bound < 1
    if rate == 1.0:
        best = norm.cdf(1 / (2 * noise))
        assert best <= bound < best + 1e-3
    assert accounting.attack_accuracy(rate, 0, noise, 1e-5) == 0.5
    assert bound <= accounting.attack_accuracy(rate, steps + 5, noise, 1e-5)


def test_the_page_says_what_planted_images_can_do() -> None:
    text = to_markdown(facts())
    (said,) = re.findall(r"planted images, such as poisoned ones.*", text)
    epsilon = PLAN.epsilon()
    first = min(math.exp(epsilon) * 1e-3 + PLAN.delta, 1 - math.exp(-epsilon) * (1 - 1e-3 - PLAN.delta))
    assert re.search(r"at most ([\d.]+) % with 1,", said) is not None if first <= 0.9 else "no defence" in said
    strong = {**facts(), "guarantee": {**facts()["guarantee"], "epsilon": 0.1, "delta": 1e-6}}
    assert "at most 0.2 % with 1, 0.3 % with 10, anything with 100 planted images" in to_markdown(strong)
    weak = {**facts(), "guarantee": {**facts()["guarantee"], "epsilon": 800.0, "delta": 1e-6}}
    assert "it may be certain with one planted image" in to_markdown(weak)
