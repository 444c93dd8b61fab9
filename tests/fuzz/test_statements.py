"""``dptrain statement``: a statement in any state claims no less than its mechanism costs, or is refused in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dptrain import ConfigError, PrivacyPlan
from dptrain.statement import check_statement, make_statement, to_html, to_json, to_markdown, write_statement
from dptrain.statement.facts import sealed

from .harness import answer, cases, check_message, contents, damaged, edited, hostile_json
from .test_folders import command

SHARE = 0.1
PLAN = PrivacyPlan(0.05, 20, 1.0, 1.5, 1e-4, 50)
SETTINGS = {
    "steps": PLAN.steps, "seed": None, "trainable": "all", "start_sha256": "ab" * 32,
    "privacy": {"sample_rate": 0.05, "noise_multiplier": 1.0, "clip_norm": 1.5, "expected_batch_size": 50,
                "delta": 1e-4, "unit": "image", "dataset_size": 1000, "clipping": "flat", "clip_groups": [],
                "bands": 1},
}  # fmt: skip
ROWS = (
    "step,dp/epsilon,dp/epsilon_pld,dp/epsilon_claimed,dp/delta,metrics/mAP50B,metrics/mAP50-95B\n"
    "0,0.0,0.0,2.5,0.0001,0.1,0.05\n20,2.5,2.1,2.5,0.0001,0.3,0.2\n"
)
AUDIT = {"format": 1, "method": "one run", "epsilon_lower_bound": 0.1, "confidence": 0.95}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("statements") / "run"
    (folder / "weights").mkdir(parents=True)
    for name in ("last.pt", "last_raw.pt"):
        (folder / "weights" / name).write_bytes(name.encode())
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "steps.journal").write_text("." * PLAN.steps)
    (folder / "results.csv").write_text(ROWS)
    budget = {"name": "pets", "unit": "image", "delta": 1e-5, "limit": 8.0}
    statement = make_statement(
        PLAN, steps=20, status="finished", secure=True, dataset={"name": "pets", "declared_size": 1000},
        model={"start": "start.pt", "start_sha256": "ab" * 32, "trainable": "all", "trainable_parameters": 7},
        validation="public", public_data={"start_weights": "start.pt", "sha256": "ab" * 32, "declared": None},
        training={"optimizer": "adam"}, dataset_budget=budget,
    )  # fmt: skip
    write_statement(folder, statement)
    return folder


@pytest.fixture(scope="module")
def whole(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(run).items() if data is not None}


def restored(run: Path, whole: dict[str, bytes]) -> None:
    for name in set(contents(run)) - set(whole) - {"weights"}:
        (run / name).unlink()
    for name, data in whole.items():
        (run / name).write_bytes(data)


def check(run: Path, asked: Path, pages: bool = False) -> None:
    """A report is no lower than what the mechanism costs, and every page of it can be made."""
    before = contents(run)
    found, _ = answer(lambda: check_statement(asked), run, "epsilon", "statement")
    assert contents(run) == before
    if found is None:
        return
    guarantee, mechanism = found.statement["guarantee"], found.statement["mechanism"]
    cost = PrivacyPlan(
        mechanism["sample_rate"], mechanism["planned_steps"] or 1, mechanism["noise_multiplier"],
        mechanism["clip_norm"],
        guarantee["delta"], mechanism["expected_batch_size"], bands=mechanism["bands"],
    ).epsilon()  # fmt: skip
    assert guarantee["epsilon"] >= cost * (1 - 1e-9)
    if asked.name != "weights":
        assert cost >= PLAN.epsilon() * (1 - 1e-9)
    json.loads(to_json(found.statement), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert to_markdown(found.statement).encode()
    if pages:
        page, _ = answer(lambda: to_html(found.statement, found.results), run)
        assert page is None or page.encode()


@cases(SHARE * 0.58, 90)
@given(data=st.data(), alone=st.booleans())
def test_an_edited_statement_that_was_sealed_again(
    run: Path, whole: dict[str, bytes], data: st.DataObject, alone: bool
) -> None:
    restored(run, whole)
    statement = data.draw(edited(json.loads(whole["statement.json"])))
    try:
        text = json.dumps(sealed(statement))
    except (TypeError, AttributeError):  # no table any more
        text = json.dumps(statement)
    for name in ("statement.json", "weights/statement.json"):
        (run / name).write_text(text)
    asked = run
    if alone:  # weights that travelled without their run
        shutil.rmtree(run.with_name("away"), ignore_errors=True)
        asked = run.with_name("away") / "weights"
        shutil.copytree(run / "weights", asked)
    check(asked if alone else run, asked, pages=data.draw(st.integers(0, 29)) == 0)


@pytest.mark.parametrize("extra", ["NaN", "-Infinity", '"\\ud800"'])
def test_an_audit_that_no_json_can_hold_is_refused(run: Path, whole: dict[str, bytes], extra: str) -> None:
    restored(run, whole)
    (run / "audit.json").write_text(json.dumps(AUDIT)[:-1] + f', "note": {extra}}}')
    with pytest.raises(ConfigError, match=r"audit\.json holds a"):
        check_statement(run)


@cases(SHARE * 0.3, 100)
@given(data=st.data())
def test_another_record_of_the_run_is_changed(run: Path, whole: dict[str, bytes], data: st.DataObject) -> None:
    restored(run, whole)
    (run / "audit.json").write_text(json.dumps(AUDIT))
    name = data.draw(st.sampled_from(["settings.json", "audit.json", "statement.json", "weights/statement.json"]))
    value = AUDIT if name == "audit.json" else json.loads(whole[name])
    texts = st.one_of(edited(value), edited(value), hostile_json()).map(lambda found: json.dumps(found).encode())
    (run / name).write_bytes(data.draw(st.one_of(texts, damaged(json.dumps(value).encode()))))
    check(run, run)


@cases(SHARE * 0.02, 2)
@example(content=ROWS.replace("2.5", "").encode())
@example(content=ROWS.replace("2.5", "inf").encode())
@example(content=b"step\n0\n")
@given(content=st.one_of(damaged(ROWS.encode()), st.binary(max_size=40)))
def test_the_page_with_a_damaged_table(run: Path, whole: dict[str, bytes], content: bytes) -> None:
    restored(run, whole)
    (run / "results.csv").write_bytes(content)
    found = check_statement(run)
    page, _ = answer(lambda: to_html(found.statement, found.results), run / "results.csv")
    assert page is None or "Privacy statement" in page


@cases(SHARE * 0.1, 40)
@given(
    asked=st.one_of(st.sampled_from(["", "weights", "weights/last.pt", "none", "x" * 300, "steps.journal", "."]),
                    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)),
    options=st.lists(st.sampled_from(["--format", "json", "html", "all", "-o", "report.md", "out/x.html",
    "y" * 300, "-",
                                      "run/statement.md", "run/weights", "--tracking-uri", "nowhere:/x"]), max_size=4),
)  # fmt: skip
def test_the_command_reports_or_refuses(run: Path, whole: dict[str, bytes], asked: str, options: list[str]) -> None:
    restored(run, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parent)
        before = {name: data for name, data in contents(run).items() if data is not None}
        try:
            status, message = command(["statement", *options, "--", f"run/{asked}"])
        except SystemExit as stop:
            status, message = int(str(stop.code or 0)), ""
        assert status in (0, 2), message
        if status:
            check_message(message)
        assert before.items() <= contents(run).items()
