"""checkpoint.pt and the .pt a run starts from: sound tensors, or a refusal; what a pickle asks for is never run."""

from __future__ import annotations

import copy
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dptrain import ModelError, PrivacyError, PrivacyPlan
from dptrain.detection.model import load_model, save_weights
from dptrain.training.checkpoint import CHECKPOINT_FORMAT, load_checkpoint, save_checkpoint

from .harness import answer, cases, contents, damaged

SHARE = 0.1
PLAN = PrivacyPlan(0.1, 10, 1.0, 1.0, 1e-5, 8)


def _state() -> dict[str, Any]:
    torch.manual_seed(0)
    parameters = {"w": torch.nn.Parameter(torch.randn(4, 3)), "b": torch.nn.Parameter(torch.randn(4))}
    optimizer = torch.optim.Adam(parameters.values())
    sum((p**2).sum() for p in parameters.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    plain = {name: p.detach().clone() for name, p in parameters.items()}
    average = {name: p / 2 for name, p in plain.items()}
    frozen = {"mean": torch.zeros(2), "count": torch.tensor(3)}
    return {
        "step": 3, "phases": [[10, ["w", "b"], None]], "parameters": plain, "frozen": frozen, "average": average,
        "optimizer": optimizer.state_dict(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder / "whole.pt", _state(), PLAN, None)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = load_model("yolov8n.yaml", num_classes=2, names={0: "cat", 1: "dog"})
    return save_weights(detector, tmp_path_factory.mktemp("start") / "whole.pt", half=True)


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, wanted)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return type(found) is type(wanted) and found == wanted


@cases(SHARE * 0.4, 150)
@given(data=st.data())
def test_a_damaged_checkpoint_is_what_was_written_or_refused(folder: Path, data: st.DataObject) -> None:
    file = folder / "damaged.pt"
    file.write_bytes(data.draw(damaged((folder / "whole.pt").read_bytes())))
    found, _ = answer(lambda: load_checkpoint(file, PLAN, None), file)
    assert found is None or same(found, _state())


_ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 12), st.sampled_from([10**400, 1.5, float("nan"), "x", [], {}, (), [1]]),
    st.just(torch.zeros(2)), st.just(torch.full((4, 3), float("nan"))), st.just(torch.zeros(4, 3, dtype=torch.long)),
    st.just({"w": torch.zeros(4, 3)}), st.just({0: torch.zeros(1)}), st.just(torch.zeros(1).expand(10**9)),
    st.just(torch.sparse_coo_tensor([[0], [0]], [1.0], (4, 3))),
)  # fmt: skip


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    payload = torch.load(io.BytesIO(_whole()), weights_only=True)
    for _ in range(draw(st.integers(1, 2))):
        inside: Any = payload
        while True:
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inside[key], dict | list) and inside[key] and draw(st.integers(0, 2)):
                inside = inside[key]
                continue
            if draw(st.booleans()) or isinstance(inside, list):
                inside[key] = copy.deepcopy(draw(_ODD))
            else:
                del inside[key]
            break
    return payload


def _whole() -> bytes:
    stream = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, "plan": PLAN.to_dict(), "seed": None, **_state()}, stream)
    return stream.getvalue()


@cases(SHARE * 0.3, 120)
@given(payload=changed())
def test_a_checkpoint_of_other_parts_fits_a_run_or_is_refused(folder: Path, payload: dict[str, Any]) -> None:
    file = folder / "changed.pt"
    torch.save(payload, file)
    found, _ = answer(lambda: load_checkpoint(file, PLAN, None), file)
    if found is None:
        return
    assert payload["format"] == CHECKPOINT_FORMAT and payload["seed"] is None
    assert type(found["step"]) is int and 0 <= found["step"] <= PLAN.steps
    assert found["average"].keys() == found["parameters"].keys()
    for name in ("parameters", "average"):
        for key, value in found[name].items():
            assert isinstance(value, torch.Tensor) and value.shape == found["parameters"][key].shape
            assert value.is_floating_point() and bool(torch.isfinite(value).all())


class _Runs:
    """Asks whoever unpickles it to make a file."""

    def __init__(self, file: Path, call: Callable[..., object]) -> None:
        self.file, self.call = file, call

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        arguments = (f"touch {self.file}",) if self.call is os.system else (f"open({str(self.file)!r}, 'w')",)
        return self.call, arguments


def hostile_files(marker: Path) -> dict[str, bytes]:
    """Checkpoints with code in them, in each form that torch reads."""
    files = {}
    for name, call in (("system", os.system), ("eval", eval), ("exec", exec)):
        for place in ("alone", "model", "plan", "parameters"):
            runs = _Runs(marker, call)
            value: Any = (
                runs if place == "alone" else {"model": None, "ema": None, "plan": None, "seed": None, place: runs}
            )
            for legacy in (False, True):
                stream = io.BytesIO()
                torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
                files[f"{name} {place} {'legacy' if legacy else 'zip'}"] = stream.getvalue()
            files[f"{name} {place} pickle"] = pickle.dumps(value)
    return files


def test_code_in_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "ran"
    files = hostile_files(marker)
    plain = torch.load(io.BytesIO(files["system alone zip"]), weights_only=False)
    assert plain == 0 and marker.exists(), "the files would run their code, were it let"
    marker.unlink()
    for name, data in files.items():
        (tmp_path / "x.pt").write_bytes(data)
        with pytest.raises(PrivacyError, match=r"x\.pt"):
            load_checkpoint(tmp_path / "x.pt", PLAN, None)
        with pytest.raises(ModelError, match=r"x\.pt"):
            load_model(tmp_path / "x.pt")
        assert not marker.exists(), name


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02N."])
def test_a_damaged_start_with_the_name_of_an_official_model_stays_where_it_is(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics deletes such a file and downloads another in its place."""
    monkeypatch.chdir(tmp_path)
    Path("yolo26n.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"yolo26n\.pt"):
        load_model("yolo26n.pt")
    assert contents(tmp_path) == {"yolo26n.pt": content}


@cases(SHARE * 0.2, 12)
@given(data=st.data())
def test_a_damaged_start_is_the_model_that_was_written_or_refused(start: Path, data: st.DataObject) -> None:
    file = start.with_name("damaged.pt")
    content = bytearray(start.read_bytes())
    if data.draw(st.booleans()):  # most of the file are weights: aim at the rest as well
        with zipfile.ZipFile(start) as archive:
            place = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        at = place.header_offset + data.draw(st.integers(0, place.file_size))
        content[at : at + 200] = data.draw(damaged(bytes(content[at : at + 200])))
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(content))
    found, _ = answer(lambda: load_model(file), file)
    if found is not None:
        assert same(dict(found.state_dict()), dict(load_model(start).state_dict()))


@cases(SHARE * 0.1, 8)
@given(data=st.data())
def test_a_start_with_parts_missing_or_strange_works_or_is_refused(start: Path, data: st.DataObject) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    payload, _ = torch_safe_load(start, safe_only=True)
    model = payload["model"]
    match data.draw(st.integers(0, 6)):
        case 0:
            name = data.draw(st.sampled_from(["names", "yaml", "stride", "save", "nc", "task"]))
            model.__dict__.pop(name, None)
        case 1:
            name = data.draw(st.sampled_from(["names", "yaml", "stride", "save", "nc", "task"]))
            model.__dict__[name] = data.draw(_ODD)
        case 2:
            layers = [m for m in model.modules() if m._modules]
            chosen = layers[data.draw(st.integers(0, len(layers) - 1))]
            chosen._modules.pop(data.draw(st.sampled_from(sorted(chosen._modules))))
        case 3:
            layers = [m for m in model.modules() if m._parameters.get("weight") is not None]
            chosen = layers[data.draw(st.integers(0, len(layers) - 1))]
            chosen.weight = torch.nn.Parameter(data.draw(st.sampled_from([torch.zeros(2), torch.zeros(1, 1, 1, 1)])))
        case 4:
            next(model.parameters()).data.fill_(data.draw(st.sampled_from([float("nan"), float("inf")])))
        case 5:
            payload["model"] = data.draw(_ODD)
        case 6:
            payload = data.draw(_ODD)
    file = start.with_name("odd.pt")
    torch.save(payload, file)
    found, _ = answer(lambda: load_model(file, 3, names={0: "cat", 1: "bird", 2: "dog"}), file)
    if found is not None:
        found.train()
        assert all(bool(torch.isfinite(p).all()) for p in found.parameters())
        found(torch.zeros(1, 3, 64, 64))
