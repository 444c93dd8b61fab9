"""What a model description may say. It comes with other people's models, and Ultralytics runs parts of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv
from ultralytics.utils import ROOT

import dptrain
from dptrain import ModelError
from dptrain.detection.description import is_activation
from dptrain.detection.model import load_model

from ..conftest import SMALL

PLAIN = yaml.safe_load(Path(SMALL).read_text())


def _written(folder: Path, **changes: Any) -> Path:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, **changes}, sort_keys=False))
    return file


class _Flag:
    """Leaves a file where it is called or unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


ACTIVATIONS = [
    "__import__('pathlib').Path('{}').touch()",
    "nn.SiLU(__import__('pathlib').Path('{}').touch())",
    "nn.SiLU(inplace=__import__('pathlib').Path('{}').touch())",
    "nn.SiLU(*[__import__('pathlib').Path('{}').touch()])",
    "nn.SiLU(**dict(x=__import__('pathlib').Path('{}').touch()))",
    "(lambda: __import__('pathlib').Path('{}').touch())()",
    "[nn.SiLU() for _ in [__import__('pathlib').Path('{}').touch()]][0]",
    "nn.SiLU() if __import__('pathlib').Path('{}').touch() else nn.SiLU()",
    "nn.SiLU(f\"{{__import__('pathlib').Path('{}').touch()}}\")",
    "torch.hub.load('{}', 'x')",
    "torch.load('{}')",
    "nn.modules.activation.torch.load('{}')",
]


@pytest.mark.parametrize("text", ACTIVATIONS)
def test_no_activation_is_run_as_code(text: str, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    file = _written(tmp_path, activation=text.format(flag))
    with pytest.raises(
        ModelError, match=r"own\.yaml', line \d+: activation: .* is not an activation of torch\.nn"
    ) as caught:
        load_model(file, 2)
    assert not flag.exists() and "\n" not in str(caught.value)
    line = int(str(caught.value).partition("line ")[2].partition(":")[0])
    assert file.read_text().splitlines()[line - 1].startswith("activation:")


@pytest.mark.parametrize("text", ["nn.SiLU()", "torch.nn.LeakyReLU(0.1)", " nn.ELU(alpha=-0.5, inplace=True)"])
def test_an_activation_of_torch_is_taken(text: str, tmp_path: Path) -> None:
    before = Conv.default_act
    model = load_model(_written(tmp_path, activation=text), 2)
    assert type(model.model[0].act) is getattr(nn, text.split("nn.")[1].split("(")[0])
    assert Conv.default_act is before


@pytest.mark.parametrize("text", [3, ["nn.SiLU()"], "SiLU()", "nn.SiLU", "nn.Linear(2, 2)", "nn.SiLU().train()", "("])
def test_what_is_no_activation(text: Any) -> None:
    assert not is_activation(text)


LAYERS: dict[str, Any] = {
    "torch_safe_load": ["{}"],  # unpickles
    "yaml_model_load": ["{}"],
    "load_checkpoint": ["{}"],
    "DetectionModel": ["{}"],  # another description, which nobody has looked through
    "torchvision.ops.Permute": [[0]],
    "Path": ["{}"],
    "nn.init.ones_": [1],
    "nn.Parameter": [1],
    "nn.__dict__": [],
    "__builtins__": [],
}


@pytest.mark.parametrize("name", LAYERS)
def test_no_function_or_loader_is_called_as_a_layer(name: str, tmp_path: Path) -> None:
    flag, pickled = tmp_path / "flag", tmp_path / "x.pt"
    torch.save(_Flag(flag), pickled)
    torch.load(pickled, weights_only=False)
    assert flag.exists()
    flag.unlink()
    values = [value.format(pickled) if isinstance(value, str) else value for value in LAYERS[name]]
    file = _written(tmp_path, backbone=[[-1, 1, name, values], *PLAIN["backbone"]])
    with pytest.raises(ModelError, match=r"own\.yaml', line \d+: .* is not a layer of") as caught:
        load_model(file, 2)
    assert not flag.exists() and name in str(caught.value)


def test_a_layer_that_downloads_is_refused(tmp_path: Path) -> None:
    layer = [-1, 1, "TorchVision", [8, "resnet18", "DEFAULT"]]
    with pytest.raises(ModelError, match=r"line \d+: 'TorchVision' is not a layer of"):
        load_model(_written(tmp_path, backbone=[layer, *PLAIN["backbone"]]), 2)


@pytest.mark.parametrize("values", [["ast"], ["d"], ["save"], [[["a", ["b", ["c"]]]]], ["x y"], [{"a": 1}], [1e300]])
def test_the_values_of_a_layer_are_literal(values: list[Any], tmp_path: Path) -> None:
    """``ast`` and the like are variables of Ultralytics' parser."""
    with pytest.raises(ModelError, match=r"line \d+: .* are not literal values of a layer"):
        load_model(_written(tmp_path, backbone=[[-1, 1, "Conv", values], *PLAIN["backbone"]]), 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"scales": {"n": [1, "__import__('os')", 3]}}, {"scales": [1]}, {"nc": "2"}, {"nc": 10**9}, {"reg_max": -1},
        {"end2end": "yes"}, {"backbone": [[-1, 10**6, "Conv", [8, 3, 2]]]}, {"backbone": [["-1", 1, "Conv", [8]]]},
        {"loader": "x"}, {"backbone": {}},
    ],
)  # fmt: skip
def test_other_values_are_of_their_kind(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"own\.yaml', line \d+: "):
        load_model(_written(tmp_path, **changes), 2)


def test_a_description_is_looked_for_here_and_never_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ultralytics takes an address that ends in .yaml for a file to fetch."""
    from ultralytics.utils import downloads

    asked: list[Any] = []
    monkeypatch.setattr(downloads, "safe_download", lambda *args, **options: asked.append((args, options)))
    monkeypatch.chdir(tmp_path)
    for name in ("https://example.org/x.yaml", "ul://user/project/x.yaml", "http:/example.org/yolo26n.yaml"):
        with pytest.raises(ModelError, match="no such model description"):
            load_model(name, 2)
    assert not asked and not list(tmp_path.iterdir())


def test_every_detector_of_ultralytics_passes() -> None:
    from dptrain.detection.description import read_description, refuse_code

    files = [*(ROOT / "cfg" / "models").glob("*/yolo*.yaml")]
    plain = [file for file in files if file.parent.name in ("v8", "11", "26") and file.stem.rpartition("-")[2] in (
        "yolov8", "p2", "p6", "ghost", "yolo11", "yolo26")]  # fmt: skip
    assert len(plain) > 7
    for file in plain:
        for name in (str(file), file.name):
            description = read_description(name)
            if tasks.guess_model_task(description) == "detect":
                refuse_code(name, description)


def test_a_checkpoints_own_description_is_never_built(tmp_path: Path) -> None:
    """The network is unpickled by Ultralytics' list of classes; its ``yaml`` is carried along as data."""
    flag = tmp_path / "flag"
    model = tasks.DetectionModel(SMALL, nc=2, verbose=False)
    model.yaml["activation"] = f"__import__('pathlib').Path({str(flag)!r}).touch()"
    torch.save({"model": model}, tmp_path / "start.pt")
    dptrain.detection.model.save_weights(load_model(tmp_path / "start.pt", 3), tmp_path / "last.pt")
    assert not flag.exists()
    torch.save({"model": _Flag(flag)}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match="is not a checkpoint that can be opened"):
        load_model(tmp_path / "bad.pt", 3)
    assert not flag.exists()
