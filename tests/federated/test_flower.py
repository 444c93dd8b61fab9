"""Flower's apps: what their messages hold, what the server makes of them, and a whole federation in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from ultralytics import YOLO

from dptrain.federated.client import DECLINED, app
from dptrain.federated.exchange import DeclinedError
from dptrain.federated.messages import ARRAYS, CONFIG, NUMBERS, SIZE, WORDS, config_of
from dptrain.federated.server import Server, SitesAverage, serve
from dptrain.federated.settings import read_server, read_settings
from dptrain.federated.site import FAILED

from ..conftest import dataset_maker
from .sites import ROUNDS, STEPS, first_offer, spent, write_site, write_start


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dptrain.statement.files.to_html", lambda *_, **__: "")


@pytest.fixture(autouse=True, scope="module")
def _a_task_of_flowers() -> None:
    """Messages are made inside a task of Flower's only."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def write_server(folder: Path, start: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "data").mkdir()
    data = dataset_maker(folder / "data")(seed=77)
    data.write_text("val: images/val\nnames: [green, blue]\n")
    values = {
        "rounds": ROUNDS, "steps_per_round": STEPS // ROUNDS, "model": str(start), "data": "data/data.yaml",
        "imgsz": 64, "trainable": "head", "output_dir": "out", "device": "cpu",
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "experiment": "hospitals"}, **changes,
    }  # fmt: skip
    file = folder / "server.yaml"
    file.write_text(json.dumps(values))
    return file


def context_of(site: Path | None = None) -> Context:
    config: dict[str, Any] = {} if site is None else {"site": str(site)}
    return Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={"site": "/of/the/server"})


def message_of(site: Path, number: int) -> Message:
    offer = first_offer(site)
    config = config_of(offer.terms)
    config["server-round"] = number
    return Message(RecordDict({ARRAYS: ArrayRecord(dict(offer.parameters)), CONFIG: config}), 7, MessageType.TRAIN)


class OneProcess:
    """A grid of Flower whose nodes are called one after another; ``before`` may change the site of a round."""

    def __init__(self, sites: dict[int, Path], before: Callable[[int, int], bool] = lambda *_: True) -> None:
        self.sites, self.before, self.replies = sites, before, []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites)

    def send_and_receive(self, messages: Iterable[Message], **_: Any) -> list[Message]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            if self.before(node, message.content.config_records[CONFIG]["server-round"]):
                replies.append(app(message, context_of(self.sites[node])))
        self.replies.append(replies)
        return replies


def test_a_reply_holds_these_records_and_nothing_else(tmp_path: Path, start: Path) -> None:
    site = write_site(tmp_path / "a", start)
    reply = app(message_of(site, 1), context_of(site))
    content, plan = reply.content, read_settings(site).plan
    assert set(content) == {ARRAYS, NUMBERS, WORDS}
    assert dict(content.config_records[WORDS]) == {"name": "a", "unit": "image"}
    assert dict(content.metric_records[NUMBERS]) == {
        SIZE: 6, "round": 1, "steps": 2, "planned-steps": 6, "valid": 1, "epsilon": plan.epsilon(),
        "epsilon-so-far": plan.epsilon(steps=2), "delta": plan.delta,
    }  # fmt: skip
    assert list(content.array_records[ARRAYS]) == list(first_offer(site).parameters)


def test_an_error_reaches_the_server_as_a_line_of_public_words(tmp_path: Path, start: Path) -> None:
    site = write_site(tmp_path / "a", start)
    for context in (context_of(), context_of(tmp_path / "no" / "site.yaml")):
        assert app(message_of(site, 1), context).error.reason == FAILED
    (site.parent / "data" / "images" / "train" / "001.png").unlink()
    reply = app(message_of(site, 1), context_of(site))
    assert not reply.has_error(), "a label without its image is not there"
    reply = app(message_of(site, 0), context_of(site))
    assert reply.error.code == DECLINED and reply.error.reason == "round 0 goes backwards: the site was in round 1"
    message = message_of(site, 2)
    del message.content.config_records[CONFIG]["rounds"]
    assert "same version everywhere" in str(app(message, context_of(site)).error.reason)


def test_a_whole_federation_averages_by_declared_sizes_and_leaves_weights_and_a_record(
    tmp_path: Path, start: Path
) -> None:
    """Site b is away in round 2, as a node that was killed is, and takes part again in round 3."""
    small = {"noise_multiplier": 2.0, "dataset_size": 3, "expected_batch_size": 2, "delta": 1e-3}
    sites = {1: write_site(tmp_path / "a", start), 2: write_site(tmp_path / "b", start, pictures=1, privacy=small)}
    grid = OneProcess(sites, lambda node, number: (node, number) != (2, 2))
    server = write_server(tmp_path / "server", start)
    with chdir(server.parent):
        kept = serve(grid, read_server(server))  # type: ignore[arg-type]
    out = server.parent / "out"
    record = json.loads((out / "federation.json").read_text())
    plans = {name: read_settings(tmp_path / name / "site.yaml").plan for name in "ab"}
    assert {name: (site["rounds"], site["steps"]) for name, site in record["sites"].items()} == {
        "a": ([1, 2, 3], 6), "b": ([1, 3], 4),
    }  # fmt: skip
    epsilons = [plans[name].epsilon() for name in "ab"]
    assert record["composed"] == {
        "unit_of_one_site": {"epsilon": max(epsilons), "delta": 1e-3},
        "unit_of_every_site": {"epsilon": sum(epsilons), "delta": 2e-3},
        "valid": True,
    }
    assert spent(sites[1]) == [6] and spent(sites[2]) == [4]
    last = {r.content.config_records[WORDS]["name"]: r.content.array_records[ARRAYS] for r in grid.replies[-2]}
    one, other = (last[name].to_torch_state_dict() for name in "ab")
    for name, parameter in kept.public.trained.items():
        wanted = one[name] * (6 / 9) + other[name] * (3 / 9)
        torch.testing.assert_close(parameter.detach(), wanted)
    assert YOLO(out / "weights" / "last.pt").names == {0: "green", 1: "blue"}
    rows = (out / "results.csv").read_text().splitlines()
    assert len(rows) == ROUNDS + 2 and "metrics/mAP50(B)" in rows[0]
    assert f"epsilon {sum(epsilons):.4g}" in (out / "federation.md").read_text()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{server.parent / 'mlflow.db'}")
    run = (out / "mlflow_run").read_text()
    assert [m.step for m in client.get_metric_history(run, "metrics/mAP50B")] == [0, 1, 2, 3]
    assert [m.value for m in client.get_metric_history(run, "site/b/epsilon")][-1] == plans["b"].epsilon(steps=4)


def test_a_server_that_stopped_goes_on_with_the_rounds_that_are_left(tmp_path: Path, start: Path) -> None:
    site = write_site(tmp_path / "a", start)
    server = write_server(tmp_path / "server", start, sites=1, tracking={"enabled": False})

    def crash(node: int, number: int) -> bool:
        if number == 3:
            raise KeyboardInterrupt
        return True

    with chdir(server.parent):
        with pytest.raises(KeyboardInterrupt):
            serve(OneProcess({1: site}, crash), read_server(server))  # type: ignore[arg-type]
        server.write_text(json.dumps({**json.loads(server.read_text()), "resume": True}))
        kept = serve(OneProcess({1: site}), read_server(server))  # type: ignore[arg-type]
    assert kept.sites["a"].rounds == (1, 2, 3) and spent(site) == [STEPS]


def test_the_server_leaves_out_what_no_site_of_its_terms_sends(tmp_path: Path, start: Path) -> None:
    site = write_site(tmp_path / "a", start)
    server = write_server(tmp_path / "server", start, tracking={"enabled": False})
    with chdir(server.parent):
        strategy = SitesAverage(Server(read_server(server)))
    reply = app(message_of(site, 1), context_of(site))
    name = next(iter(reply.content.array_records[ARRAYS]))

    def changed(key: str, value: Any) -> Message:
        other = app(message_of(site, 1), context_of(site))
        other.content.metric_records[NUMBERS][key] = value
        return other

    bad = [changed(SIZE, 0), changed("epsilon", float("nan")), changed("round", 2), changed("steps", 99)]
    cut = app(message_of(site, 1), context_of(site))
    del cut.content.array_records[ARRAYS][name]
    arrays, _ = strategy.aggregate_train(1, [*bad, cut, reply, changed("round", 1)])
    assert arrays is not None and list(strategy.server.sites) == ["a"]
    for name, values in arrays.to_torch_state_dict().items():
        assert torch.equal(values, reply.content.array_records[ARRAYS].to_torch_state_dict()[name])
    with pytest.raises(DeclinedError, match="declares another dataset_size than before: 7"):
        strategy.server.note(changed_round(changed(SIZE, 7), 2).content, 2)


def changed_round(message: Message, number: int) -> Message:
    message.content.metric_records[NUMBERS]["round"] = number
    return message
