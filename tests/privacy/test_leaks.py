"""Everything that one run writes, prints, logs and tracks is on a list; whatever is new has to be put there by hand.

The run is an ordinary one whose surroundings listen: logging at DEBUG, every warning shown, MLflow's system metrics on,
training images with telling names, and one with more objects than a detector gives out.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
from torch import Tensor

import dptrain
from dptrain import PrivacyPlan
from dptrain.detection.data import DetectionDataset
from dptrain.detection.loss import PerImageLoss
from dptrain.privacy.clip_rules import FlatClip
from dptrain.privacy.sampling import PoissonSampler
from dptrain.settings.keys import keys
from dptrain.statement.facts import SPENT
from dptrain.statement.results import stock_name
from dptrain.training.checkpoint import CHECKPOINT_KEYS

from ..conftest import dataset_maker, run_options

PLAN = PrivacyPlan(0.9, 2, 1.0, 1.0, 1e-3, 5)
TELLING = "patient7431"
ELSEWHERE = "clinic-9052"  # a dataset of the ledger that shares an image with the run's
PUBLIC_METRICS = {f"metrics/{name}B" for name in ("precision", "recall", "mAP50", "mAP50-95")}
BUDGET = {"dp/epsilon", "dp/epsilon_pld", "dp/epsilon_claimed", "dp/delta"}
WRITTEN = {
    "README.txt", "checkpoint.pt", "config.yaml", "epsilon_vs_map.png", "mlflow_run", "owner/README.txt",
    "owner/budget.json", "owner/dataset_budget.json", "per_class.csv", "results.csv",
    "settings.json", "statement.html", "statement.json", "statement.md", "steps.journal", "weights/last.pt",
    "weights/last_raw.pt", "weights/statement.html", "weights/statement.json",
}  # fmt: skip
TRACKED = {name for name in WRITTEN if name.startswith("weights/")} | {
    "config.yaml", "epsilon_vs_map.png", "per_class.csv", "results.csv", "statement.html", "statement.json",
    "statement.md",
}  # fmt: skip
TAGS = {f"dptrain.{name}" for name in ("model", "dataset", "unit", "accountant", "sampler", "valid", "validation")}
MLFLOW_TABLES = {"alembic_version", "experiments", "latest_metrics", "metrics", "params", "runs", "tags", "workspaces"}
NUMBER = r"[\d.,e+-]+"
PRINTED = (
    r"dptrain: yolo26n\.yaml on data: 2 classes, [\d,]+ of [\d,]+ parameters train, cpu",
    rf"epsilon {NUMBER} \(RDP; PLD {NUMBER}\), delta 0\.001, unit image: 2 steps, noise multiplier 1, clip norm 1, "
    r"sample rate 0\.9, expected batch 5 \(2 at a time\)",
    r"optimizer\.lr is not set: [\d.e-]+, by the rule of docs/training\.md",
    r"validation=public: the metrics of the val split are released without noise",
    r"budget: recorded in budget\.db; what is spent, for the owner: \S+/owner/dataset_budget\.json",
    rf"step +[02]/2  epsilon {NUMBER} of {NUMBER}  mAP50 {NUMBER}  mAP50-95 {NUMBER}",
    rf"done: epsilon {NUMBER} at delta 0\.001; \S+/weights/last\.pt",
)
LOGGERS = ("alembic", "matplotlib", "PIL", "git", "mlflow", "urllib3", "asyncio")  # of libraries; none sees the images


@dataclass
class Overheard:
    """What an attacker must not learn, noted on the way, and what the run let out."""

    secrets: set[str] = field(default_factory=set)
    draws: list[int] = field(default_factory=list)
    records: list[logging.LogRecord] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    out: str = ""
    err: str = ""
    folder: Path = Path()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Overheard]:
    from _pytest.capture import FDCapture  # capfd is not there for a whole module

    heard = Overheard(folder=tmp_path_factory.mktemp("leaks"))
    data = dataset_maker(heard.folder / "data")(train=6)
    for number, file in enumerate(sorted((data.parent / "images/train").iterdir())):
        label = data.parent / "labels/train" / f"{file.stem}.txt"
        if number == 4:
            # Each once: a repeated line is one box.
            label.write_text("".join(f"1 .5 .5 .2 {0.1 + box / 1000:.3f}\n" for box in range(350)))
        file.rename(file.with_stem(f"{TELLING}-{file.stem}"))
        label.rename(label.with_stem(f"{TELLING}-{label.stem}"))
    ledger = dptrain.BudgetLedger(f"sqlite:///{heard.folder / 'budget.db'}")
    theirs = ledger.manifest([sorted((data.parent / "images/train").iterdir())[0]])  # another run drew from one of them
    ledger.create(ELSEWHERE, epsilon=77.5, delta=1e-4, manifest=theirs)
    ledger.reserve(PrivacyPlan(0.3, 9, 1.2, 1.0, 1e-4, 5).event(), theirs, name="theirs").settle(9)
    ledger._store.engine.dispose()
    public = dataset_maker(heard.folder / "public")(train=2, seed=9).parent / "images"
    (heard.folder / "here").mkdir()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.records.append(record)

    listener, root, level = Listener(), logging.getLogger(), logging.getLogger().level
    captured = FDCapture(1), FDCapture(2)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        patch.chdir(heard.folder / "here")
        patch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
        for file in heard.folder.glob("budget.db*"):
            file.rename(heard.folder / "here" / file.name)
        patch.setenv("DPTRAIN_BUDGET_URL", "sqlite:///budget.db")
        _listen_in(patch, heard)
        root.addHandler(listener)
        root.setLevel(logging.DEBUG)
        for capture in captured:
            capture.start()
        try:
            dptrain.train(
                data=data,
                **run_options(
                    heard.folder,
                    model="yolo26n.yaml",
                    plan=PLAN,
                    evaluate_every=2,
                    validation="public",
                    # in full: MLflow keeps the store of an address for as long as the process lives
                    tracking={"uri": f"sqlite:///{heard.folder / 'here' / 'mlflow.db'}", "experiment": "test"},
                    public_images=str(public),
                ),
            )
        finally:
            heard.out, heard.err = (capture.snap() for capture in captured)
            for capture in captured:
                capture.done()
            root.removeHandler(listener)
            root.setLevel(level)
    heard.warned = [str(item.message) for item in warned]
    assert len(heard.draws) == 2 and len(heard.secrets) > 10
    yield heard


def _digits(values: Tensor) -> set[str]:
    return {repr(value)[:10] for value in values.tolist() if len(repr(value)) > 10}


def _listen_in(patch: pytest.MonkeyPatch, heard: Overheard) -> None:
    weights, loss, draw, most = (
        FlatClip.weights,
        PerImageLoss.__call__,
        PoissonSampler.draw,
        DetectionDataset.most_boxes,
    )

    def noted_weights(self: FlatClip, squared_norms: Tensor) -> Tensor:
        heard.secrets |= _digits(squared_norms.sqrt())
        return weights(self, squared_norms)

    def noted_loss(self: PerImageLoss, model: Any, batch: Any) -> Tensor:
        losses = loss(self, model, batch)
        heard.secrets |= _digits(losses)
        return losses

    def noted_draw(self: PoissonSampler, step: int) -> Any:
        drawn = draw(self, step)
        heard.draws.append(len(drawn.indices))
        return drawn

    def of_public_images_only(self: DetectionDataset) -> int:
        assert self.split != "train", "the number of objects in the training images was asked for"
        return most.fget(self)  # type: ignore[attr-defined]

    patch.setattr(FlatClip, "weights", noted_weights)
    patch.setattr(PerImageLoss, "__call__", noted_loss)
    patch.setattr(PoissonSampler, "draw", noted_draw)
    patch.setattr(DetectionDataset, "most_boxes", property(of_public_images_only))


def test_a_run_prints_public_numbers_only(run: Overheard) -> None:
    lines = run.out.splitlines()
    for line in lines:
        assert any(re.fullmatch(pattern, line.rstrip()) for pattern in PRINTED), f"not on the list: {line!r}"
    assert len(lines) == 8
    assert run.err == ""


def test_at_debug_level_nothing_private_is_logged_or_warned_of(run: Overheard) -> None:
    assert not [r.getMessage() for r in run.records if r.name.startswith("dptrain")]
    assert not {r.name.partition(".")[0] for r in run.records} - set(LOGGERS)
    assert not [text for text in run.warned if "dptrain" in text]
    said = "\n".join([*(r.getMessage() for r in run.records), *run.warned])
    assert TELLING not in said
    for secret in run.secrets:
        assert secret not in said


def test_a_run_writes_what_is_announced_and_nothing_elsewhere(run: Overheard) -> None:
    out = run.folder / "out"
    assert {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()} == WRITTEN
    here = {str(f.relative_to(run.folder / "here")) for f in (run.folder / "here").rglob("*") if f.is_file()}
    artifacts = {name for name in here if name.startswith("mlruns/1/")}
    assert {name.partition("/artifacts/")[2] for name in artifacts} == TRACKED
    assert {name.removesuffix("-wal").removesuffix("-shm") for name in here - artifacts} == {
        "budget.db", "budget.db.key", "mlflow.db",
    }  # fmt: skip
    assert {f.name for f in run.folder.iterdir()} == {"data", "here", "out", "public"}
    assert {f.stat().st_mtime % 86_400 for f in (out, *out.rglob("*"))} == {0}
    assert {(run.folder / "here" / name).stat().st_mtime % 86_400 for name in artifacts} == {0}
    assert {f.suffix for f in (run.folder / "data").rglob("*") if f.is_file()} == {".png", ".txt", ".yaml"}


def test_mlflow_holds_listed_names_only(run: Overheard) -> None:
    with sqlite3.connect(run.folder / "here" / "mlflow.db") as store:

        def column(sql: str) -> set[Any]:
            return {row[0] for row in store.execute(sql)}

        tables = column("select name from sqlite_master where type = 'table'")
        filled = {table for table in tables if store.execute(f'select 1 from "{table}" limit 1').fetchone()}
        assert filled <= MLFLOW_TABLES
        assert column("select key from metrics") == PUBLIC_METRICS | BUDGET
        assert column("select key from tags") - {"mlflow.runName"} == TAGS
        known = {name for name, _ in keys()} | {"privacy.epsilon_pld"}
        assert {key.partition("[")[0] for key in column("select key from params")} <= known
        assert column("select step from metrics") == {0, 2}
        assert all(count == 1 for count in column("select count(*) from runs"))
        times = column("select timestamp from metrics") | column("select timestamp from latest_metrics")
        times |= column("select start_time from runs") | column("select end_time from runs")
        assert len(times) == 1 and times.pop() % 86_400_000 == 0


def test_tables_checkpoint_and_weights_hold_listed_names_only(run: Overheard) -> None:
    out = run.folder / "out"
    for name, columns in (
        ("results.csv", {"epoch", "step"} | {stock_name(key) for key in PUBLIC_METRICS} | BUDGET),
        ("per_class.csv", {"step", "class", "precision", "recall", "mAP50", "mAP50-95"}),
    ):
        with (out / name).open() as stream:
            rows = list(csv.DictReader(stream))
        assert rows and set(rows[0]) == columns
    assert set(torch.load(out / "checkpoint.pt", weights_only=True)) == set(CHECKPOINT_KEYS)
    for name in ("last.pt", "last_raw.pt"):
        payload = torch.load(out / "weights" / name, weights_only=False)
        assert set(payload) == {"model", "ema", "train_args", "license"}
        assert payload["train_args"] == {"task": "detect", "data": None, "imgsz": 64} and payload["ema"] is None
        assert ultralytics.YOLO(out / "weights" / name).model.model[-1].max_det == 300  # not the 350 of one image
    assert json.loads((out / "statement.json").read_text())["public_data"]["compared"] is True


def test_what_the_ledger_knows_of_the_images_is_in_the_owners_folder_alone(run: Overheard) -> None:
    told = json.loads((run.folder / "out/owner/dataset_budget.json").read_text())
    assert told["runs"] == 2 and told["spent"] > PLAN.epsilon()
    statement = json.loads((run.folder / "out/statement.json").read_text())
    assert statement["dataset_budget"] == {
        "name": "data", "unit": "image", "limit": None, "delta": None, "spent": SPENT,
    }  # fmt: skip
    numbers = {repr(told["spent"])[:7], repr(told["spent_pld"])[:7], told["head"], ELSEWHERE, "77.5"}
    said = "\n".join([run.out, run.err, *(r.getMessage() for r in run.records), *run.warned])
    for number in numbers:
        assert number not in said
        for file in (run.folder / "out").rglob("*"):
            if file.is_file() and file.parent.name != "owner":
                assert number.encode() not in file.read_bytes(), (number, file)
        for file in (run.folder / "here").rglob("*"):
            if file.is_file() and not file.name.startswith("budget.db"):
                assert number.encode() not in file.read_bytes(), (number, file)


def test_no_file_holds_a_name_a_loss_or_a_norm_of_the_training_images(run: Overheard) -> None:
    """The ledger stays with the data: it holds keyed hashes, and is looked through all the same."""
    for place in ("out", "here"):
        for file in (run.folder / place).rglob("*"):
            if not file.is_file():
                continue
            content = file.read_bytes()
            assert TELLING.encode() not in content, file
            assert not [secret for secret in run.secrets if secret.encode() in content], file
