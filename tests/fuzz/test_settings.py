"""Configurations and command lines: a plan that keeps its promise, or one line that names the key."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import example, given
from hypothesis import strategies as st

from dptrain import PrivacyPlan
from dptrain.settings.keys import keys
from dptrain.settings.resolve import from_kwargs, make_plan, resolve

from .harness import answer, cases, check_message, contents
from .test_folders import command

SHARE = 0.1
KEYS = sorted(name for name, _ in keys())

_NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 10**9, 2**31, 10**18, 10**30, 10**400, 0.5, 1e-320, 1e-300, 1e-10, 1e10, 1e308, 1.0,
                     float("nan"), float("inf"), -float("inf"), -0.0]),
    st.integers(-2, 3000), st.floats(0, 2),
)  # fmt: skip
_TEXTS = st.one_of(
    st.sampled_from(["", "auto", "none", "null", "1", "1e3", "nan", "head", "image", "adam", "sgd",
    "cuda:99999999999999999",
                     "cuda:٣", "${steps}", "${gone}", "${oc.env:HOME}", "${", "???", "a\nb", "\x1b[31m",
                     "x" * 3000, "a,b",
                     "[a", "{b:1}", "random_stopping", "geometric", "~/x", "-1", "true", "cosine", "opacus"]),
    st.text(max_size=6),
)  # fmt: skip
_OBJECTS = st.sampled_from(
    [object(), object, len, Path("x"), np.float64(1.5), np.int64(3), np.zeros(2), b"x", {1, 2}, 1j]
)
_VALUES = st.one_of(
    _NUMBERS, _NUMBERS, _TEXTS, st.none(), st.booleans(), _OBJECTS, st.lists(st.one_of(_NUMBERS, _TEXTS), max_size=3),
    st.dictionaries(st.one_of(_TEXTS, st.integers(), st.booleans(), st.none()), _NUMBERS, max_size=2),
)  # fmt: skip


def bound(plan: PrivacyPlan) -> float:
    """Epsilon of a plan, by dp-accounting alone."""
    step = PoissonSampledDpEvent(plan.sample_rate, GaussianDpEvent(plan.noise_multiplier))
    account = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    return float(account.compose(SelfComposedDpEvent(step, plan.steps)).get_epsilon(plan.delta))


def kept(plan: PrivacyPlan, epsilon: object) -> None:
    """The plan is within bounds and, where an epsilon was asked for, meets it."""
    assert 0 < plan.sample_rate <= 1 and plan.steps >= 1 and 0 < plan.delta < 1
    assert math.isfinite(plan.noise_multiplier) and plan.noise_multiplier > 0
    assert math.isfinite(plan.clip_norm) and plan.clip_norm > 0 and plan.expected_batch_size >= 1
    if isinstance(epsilon, int | float) and not isinstance(epsilon, bool):
        assert bound(plan) <= epsilon * (1 + 1e-9)


@st.composite
def keywords(draw: st.DrawFn) -> dict[str, Any]:
    """Keywords of ``dptrain.train`` that are mostly as they should be."""
    given: dict[str, Any] = {"model": "yolo26n.yaml", "data": "pets.yaml", "steps": 20}
    privacy: dict[str, Any] = {"noise_multiplier": 1.5, "dataset_size": 1000}
    if draw(st.booleans()):
        privacy = {"epsilon": draw(st.floats(0.1, 20)), "dataset_size": draw(st.sampled_from([100, 1000, 10**6]))}
    given["privacy"] = privacy
    for _ in range(draw(st.integers(0, 3))):
        section, _, name = draw(st.sampled_from(KEYS)).rpartition(".")
        value = draw(_VALUES)
        if not section:
            given[name] = value
        elif isinstance(given.setdefault(section, {}), dict):
            given[section] = {**given[section], name: value}
    if not draw(st.integers(0, 9)):
        given[draw(st.sampled_from(["privacy", "optimizer", "stepz", "tuning", "augment"]))] = draw(_VALUES)
    return given


@cases(SHARE * 0.5, 60)
@example(given_={"model": "m.pt", "data": "d.yaml", "steps": 10**400, "privacy": {"noise_multiplier": 1.0}})
@example(given_={"model": "m.pt", "data": "d.yaml", "privacy": {"epsilon": 1.0, "dataset_size": 10**400}})
@given(given_=keywords())
def test_keywords_make_a_plan_that_keeps_its_promise_or_are_refused(given_: dict[str, Any]) -> None:
    asked = given_.get("privacy")
    asked = asked.get("epsilon") if isinstance(asked, dict) else None
    plan, _ = answer(lambda: make_plan(resolve(from_kwargs(**given_))))
    if plan is not None:
        kept(plan, asked)


_OVERRIDES = st.one_of(
    st.tuples(st.sampled_from([*KEYS, "optimizer", "model", "privacy", "experiment", "stepz", "~optimizer", "+x",
    "++steps",
                               "hydra.verbose"]), st.sampled_from(["=", "", ":", "=="]),
              st.one_of(_TEXTS, _NUMBERS.map(lambda n: str(n)[:400]))).map("".join),
    st.sampled_from(["--cfg", "job", "--config-dir", "nowhere", "--config-name", "none", "--nonsense", "-x", "--info",
                     "--config-path=x", "--cfg=x", "--resolve", "--package", "x", "=", "", "~", "a b", "steps=1,2",
                     "'", "[", "steps=${x"]),
    st.text(max_size=10),
).filter(lambda text: "\0" not in text and text not in ("-m", "-h"))  # fmt: skip


@cases(SHARE * 0.2, 16)
@example(overrides=["--cfg", "none"])
@example(overrides=["steps=1e400"])
@given(overrides=st.lists(_OVERRIDES, max_size=3))
def test_overrides_on_the_command_line_are_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, overrides: list[str]
) -> None:
    """The data.yaml is not there, so that what is taken ends with that."""
    folder = tmp_path_factory.mktemp("overrides")
    arguments = ["data=none.yaml", "model=yolo26n.yaml", "privacy.noise_multiplier=1.5", "privacy.dataset_size=100"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status, message = command(["train", *arguments, *overrides])
    shows = any(word.startswith(("--cfg", "--info", "-c", "--h", "-h", "--version")) for word in overrides)
    assert status == 2 or (status == 0 and shows), message
    if status == 2:
        check_message(message)
    assert contents(folder) == {}


_COMMANDS: dict[str, list[str]] = {
    "epsilon": ["--noise-multiplier", "1.1", "--sample-rate", "0.01", "--steps", "100", "--delta", "1e-5"],
    "calibrate": ["--epsilon", "8", "--sample-rate", "0.01", "--steps", "100", "--delta", "1e-5"],
    "plan": ["--dataset-size", "1000", "--epsilon", "8", "--batch-sizes", "64", "--steps", "100"],
    "evaluate": ["--weights", "none.pt", "--data", "none.yaml", "--imgsz", "64", "--batch-size", "2"],
    "budget show": ["--url", "sqlite:///none.db"],
    "budget create": ["pets", "--data", "none.yaml", "--epsilon", "8", "--delta", "1e-5", "--url", "sqlite:///none.db"],
    "budget history": ["--last", "3", "--url", "sqlite:///none.db"],
    "budget settle": ["nowhere", "--url", "sqlite:///none.db"],
    "statement": ["nowhere"],
}


@cases(SHARE * 0.3, 60)
@example(name="epsilon", changes=[(5, "9" * 30)])
@example(name="calibrate", changes=[(5, "2147483648")])
@example(name="plan", changes=[(1, "9" * 400)])
@example(name="epsilon", changes=[(3, "1"), (1, "0.001"), (5, "2147483647")])
@given(
    name=st.sampled_from(sorted(_COMMANDS)),
    changes=st.lists(st.tuples(st.integers(0, 9), st.one_of(
        _NUMBERS.map(lambda number: str(number)[:400]), _NUMBERS.map(lambda number: str(number)[:400]),
        _TEXTS.filter(lambda text: "\0" not in text),
    )), max_size=2),
)  # fmt: skip
def test_a_command_answers_or_refuses(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, str]]
) -> None:
    arguments = list(_COMMANDS[name])
    for place, text in changes:
        arguments[place % len(arguments)] = text
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DPTRAIN_BUDGET_URL", raising=False)
        try:
            status, message = command([*name.split(), *arguments])
        except SystemExit as stop:  # --help
            status, message = int(str(stop.code or 0)), ""
    assert status in (0, 2), message
    if status == 2:
        check_message(message)
    assert contents(folder) == {}


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_no_option_unpickles_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's --experimental-rerun does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(_Runs()))
    for arguments in (["--experimental-rerun", "config.pickle"], ["--experimental-rerun=config.pickle"]):
        status, message = command(["train", *arguments])
        assert status == 2 and "--experimental-rerun" in message
        assert not (tmp_path / "ran").exists()
