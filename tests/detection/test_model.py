"""Models that are safe for DP-SGD: what is kept, what is replaced, what is refused, what stock Ultralytics opens."""

from __future__ import annotations

import copy
import json
import os
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel, SegmentationModel
from ultralytics.utils.nms import non_max_suppression

import dptrain
from dptrain.detection import load_model, per_image_losses, save_weights, set_names, set_trainable
from dptrain.detection.model import stock_copy
from dptrain.gradients.checks import refuse_coupling, refuse_unsupported
from dptrain.gradients.modules import FrozenBatchNorm2d, group_count, group_norm_from_batch_norm

from ..conftest import SMALL, MakeDataset
from ..detectors import FAMILIES, random_batch, stock_detector, write_checkpoint

NAMES = ["cat", "Dog", "owl"]
SIZES = [f"{family}{size}" for family in ("yolov8", "yolo11", "yolo26") for size in "nsmlx"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(stock_detector(family, NAMES), tmp_path_factory.mktemp("weights") / f"{family}.pt")


def stock(checkpoint: Path) -> Any:
    """What Ultralytics itself makes of the file."""
    return torch.load(checkpoint, weights_only=False)["ema"].float()


def head_scores(model: Any) -> list[nn.Conv2d]:
    head = model.model[-1]
    return [level[-1] for branch in (head.cv3, getattr(head, "one2one_cv3", None)) for level in branch or ()]


# --- from a description ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_every_size_from_its_description(name: str) -> None:
    model = load_model(f"{name}.yaml", 3)
    refuse_coupling(model)
    refuse_unsupported(model)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == sum(isinstance(m, Conv) for m in model.modules()) > 50
    for norm in norms:
        assert norm.num_channels // norm.num_groups >= 4, "never near one channel a group"
        assert norm.num_groups > 1 and norm.eps == 1e-3
    assert model.training and model.model[-1].nc == 3 and model.names == {0: "0", 1: "1", 2: "2"}
    dfl = f"model.{len(model.model) - 1}.dfl.conv.weight"
    assert {n for n, p in model.named_parameters() if not p.requires_grad} <= {dfl}


def test_tensors_of_yolo26n() -> None:
    model = load_model("yolo26n.yaml", 3)
    assert sum(p.requires_grad for p in model.parameters()) == 366


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 100, 144, 640, 1024])
def test_group_sizes(channels: int) -> None:
    groups = group_count(channels)
    assert channels % groups == 0 and groups <= 32
    assert groups == 1 or channels // groups >= 4
    if channels >= 8 and channels % 4 == 0:
        assert groups > 1


def test_group_norm_keeps_eps_scale_and_shift() -> None:
    norm = nn.BatchNorm2d(16, eps=0.02)
    with torch.no_grad():
        norm.weight.uniform_()
        norm.bias.uniform_()
    for source in (norm, FrozenBatchNorm2d.from_batch_norm(norm)):
        group = group_norm_from_batch_norm(source)
        assert group.eps == 0.02 and torch.equal(group.weight, norm.weight) and torch.equal(group.bias, norm.bias)
    plain = group_norm_from_batch_norm(nn.BatchNorm2d(16, affine=False))
    assert torch.equal(plain.weight, torch.ones(16)) and not plain.bias.any()


# --- from a checkpoint -----------------------------------------------------------------------------------------------


def test_frozen_norms_compute_what_the_checkpoint_did(checkpoint: Path) -> None:
    ours, theirs, batch = load_model(checkpoint), stock(checkpoint).eval(), random_batch([0, 0])
    assert ours.training
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(batch["img"])[0], theirs(batch["img"])[0], rtol=1e-4, atol=1e-3)
    frozen = [m for m in ours.modules() if isinstance(m, FrozenBatchNorm2d)]
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(frozen) == len(norms) > 50
    for new, old in zip(frozen, norms, strict=True):
        assert new.eps == old.eps
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(new, key), getattr(old, key)), key


def test_train_never_turns_a_frozen_norm_back_on(checkpoint: Path) -> None:
    model, batch = load_model(checkpoint), random_batch([2, 1])
    before = {k: v.clone() for k, v in model.named_buffers()}
    for mode in (True, False, True):
        model.train(mode)
        refuse_coupling(model)
    together = per_image_losses(model, batch)
    other = {**batch, "img": torch.stack([batch["img"][0], 1 - batch["img"][1]])}
    torch.testing.assert_close(per_image_losses(model, other)[0], together[0], rtol=1e-5, atol=1e-5)
    together.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())


@pytest.mark.parametrize("norm", ["frozen_bn", "group"])
def test_another_number_of_classes_keeps_every_other_layer(checkpoint: Path, norm: str) -> None:
    theirs = stock(checkpoint)
    model = load_model(checkpoint, 5, norm=norm, names=dict(enumerate(["emu", " OWL", "fox", "cat", "yak"])))
    assert model.model[-1].nc == model.nc == model.yaml["nc"] == 5
    assert model.model[-1].no == 5 + 4 * model.model[-1].reg_max
    assert model.names == {0: "emu", 1: " OWL", 2: "fox", 3: "cat", 4: "yak"}
    heads = {id(p) for layer in head_scores(model) for p in layer.parameters()}
    kept = [p for p in model.parameters() if id(p) not in heads]
    old_heads = {id(p) for layer in head_scores(theirs) for p in layer.parameters()}
    old = [p for p in theirs.parameters() if id(p) not in old_heads]
    assert len(kept) == len(old) and all(torch.equal(a, b) for a, b in zip(kept, old, strict=True))
    assert head_scores(model) and len(head_scores(model)) == len(head_scores(theirs))
    for new, source in zip(head_scores(model), head_scores(theirs), strict=True):
        assert new.weight.shape[0] == 5 and new.bias is not None and source.bias is not None
        for row, origin in {1: 2, 3: 0}.items():  # owl and cat
            assert torch.equal(new.weight[row], source.weight[origin]) and new.bias[row] == source.bias[origin]
        assert (new.bias[[0, 2, 4]] < -4).all() and new.bias[[0, 2, 4]].unique().numel() == 1, "a rare class at first"
        assert not torch.equal(new.weight[0], source.weight[0])
    losses = per_image_losses(model, random_batch([3, 0], classes=5))
    assert torch.isfinite(losses).all()


def test_the_same_classes_keep_everything(checkpoint: Path) -> None:
    theirs = stock(checkpoint)
    for options in ({}, {"num_classes": 3}, {"names": dict(enumerate(NAMES))}):
        model = load_model(checkpoint, **options)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.parameters(), strict=True))
        assert model.names == dict(enumerate(NAMES))
    turned = load_model(checkpoint, names={0: "owl", 1: "cat", 2: "dog"})
    for new, old in zip(head_scores(turned), head_scores(theirs), strict=True):
        assert torch.equal(new.weight, old.weight[[2, 0, 1]])


def test_numbers_as_names_match_nothing(tmp_path: Path) -> None:
    file = write_checkpoint(stock_detector("yolov8n", ["0", "1", "2"]), tmp_path / "numbers.pt")
    model = load_model(file, 4, names={0: "2", 1: "a", 2: "b", 3: "c"})
    assert not torch.equal(head_scores(model)[0].weight[0], head_scores(stock(file))[0].weight[2])


def test_auto_norm(checkpoint: Path, family: str, tmp_path: Path) -> None:
    assert any(isinstance(m, FrozenBatchNorm2d) for m in load_model(checkpoint).modules())
    group = load_model(f"{family}.yaml", 3)
    assert any(isinstance(m, nn.GroupNorm) for m in group.modules())
    again = load_model(save_weights(group, tmp_path / "group.pt"))
    assert any(isinstance(m, nn.GroupNorm) for m in again.modules())
    with pytest.raises(dptrain.ModelError, match="norm=group"):
        load_model(tmp_path / "group.pt", norm="frozen_bn")


# --- what trains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["frozen_bn", "group"])
def test_trainable_groups(checkpoint: Path, norm: str) -> None:
    model = load_model(checkpoint, norm=norm)
    last = len(model.model) - 1
    names = [n for n, _ in model.named_parameters() if ".dfl." not in n]
    index = {n: int(n.split(".")[1]) for n in names}
    first_neck = next(i for i, layer in enumerate(model.model) if isinstance(layer, nn.Upsample))
    assert set_trainable(model, "all") == names
    assert set_trainable(model, "head") == [n for n in names if index[n] == last]
    assert set_trainable(model, "neck_and_head") == [n for n in names if index[n] >= first_neck]
    few = set_trainable(model, "norm_and_bias")
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.GroupNorm | FrozenBatchNorm2d)}
    assert few == [n for n in names if n.endswith(".bias") or n.rpartition(".")[0] in norms]
    assert set_trainable(model, ["model.0.*", f"model.{last}.cv3.*"]) == [
        n for n in names if index[n] == 0 or n.startswith(f"model.{last}.cv3.")
    ]
    for group in ("all", "head", "neck_and_head", "norm_and_bias", "model.1.*"):
        chosen = set_trainable(model, group)
        assert [n for n, p in model.named_parameters() if p.requires_grad] == chosen
        assert chosen and not any(".dfl." in n for n in chosen)
    loaded = load_model(checkpoint, norm=norm, trainable="norm_and_bias")
    assert [n for n, p in loaded.named_parameters() if p.requires_grad] == few
    with pytest.raises(dptrain.ConfigError, match="heads"):
        set_trainable(model, ["model.0.*", "heads"])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("yolov8n-seg.yaml", "segment"), ("yolo11n-pose.yaml", "pose"), ("yolo26n-obb.yaml", "obb"),
        ("yolov8n-cls.yaml", "classify"), ("rtdetr-l.yaml", "rtdetr"), ("yolov8s-world.yaml", "world"),
        ("yoloe-11s.yaml", "yoloe"), ("yolov10n.yaml", "v10Detect"), ("yolo99n.yaml", "yolo99n"),
        ("yolo26n", "yolo26n.yaml"), ("weights.onnx", ".pt"), ("yolo26n.pt", "no such file"), ("", ".pt"),
    ],
)  # fmt: skip
def test_models_that_are_no_detectors(
    name: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dptrain.ModelError, match=word) as caught:
        load_model(name, 3)
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir()), "nothing is downloaded or written"


def test_descriptions_that_are_something_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = {
        "data": "train: images/train\nval: images/val\nnames: [a, b]\n", "broken": "a: [b\n", "list": "- a\n",
        "empty": "", "misspelt": "nc: 3\nbackbone:\n - [-1, 1, Cnov, [16, 3, 2]]\nhead:\n - [[0], 1, Detect, [nc]]\n",
    }  # fmt: skip
    for name, text in texts.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        with pytest.raises(dptrain.ModelError) as caught:
            load_model(file, 3)
        assert f"{name}.yaml" in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_checkpoints_that_cannot_be_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = write_checkpoint(stock_detector("yolov8n", NAMES), tmp_path / "good.pt")
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:100_000])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "folder.pt").mkdir()
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pt")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "linear.pt")
    torch.save({"model": SegmentationModel("yolov8n-seg.yaml", verbose=False)}, tmp_path / "segment.pt")
    fused = DetectionModel("yolov8n.yaml", verbose=False).eval().fuse(verbose=False)
    torch.save({"model": fused}, tmp_path / "fused.pt")
    capfd.readouterr()
    for file in sorted(tmp_path.iterdir()):
        if file != good:
            with pytest.raises(dptrain.ModelError) as caught:
                load_model(file, 3)
            assert file.name in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


class Runs:
    """What a malicious file would hold."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    torch.save({"model": Runs(f"touch {tmp_path}/ran")}, tmp_path / "evil.pt")
    with pytest.raises(dptrain.ModelError, match=r"evil\.pt"):
        load_model(tmp_path / "evil.pt", 3)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"norm": "batch"}, "norm"), ({"num_classes": 0}, "num_classes"), ({"trainable": "heads"}, "heads"),
        ({"num_classes": 2, "names": {0: "a", 1: "b", 2: "cat"}}, "3 class names"),
        ({"names": {1: "cat", 2: "owl"}}, "numbered"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(checkpoint: Path, options: dict[str, Any], word: str) -> None:
    for source in (checkpoint, "yolov8n.yaml"):
        with pytest.raises(dptrain.ConfigError, match=word):
            load_model(source, **{"num_classes": None, **options})


def test_names_must_fit(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    for names in ({0: "a"}, {1: "a", 2: "b", 3: "c"}):
        with pytest.raises(dptrain.ConfigError):
            set_names(model, names)
    set_names(model, {2: "c", 0: "a", 1: "b"})
    assert model.names == {0: "a", 1: "b", 2: "c"}


def test_frozen_norms_need_statistics() -> None:
    with pytest.raises(dptrain.ModelError, match="statistics"):
        load_model("yolo26n.yaml", 3, norm="frozen_bn")


# --- weights that stock Ultralytics opens ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "safe_load"),
    [
        ("yolov3-tiny", True), ("yolov5n", True), ("yolov6n", True), ("yolov8n-ghost", True), ("yolov8n-p2", True),
        ("yolov8n-p6", True), ("yolov9t", True), ("yolov9t", False), ("yolo12n", True), ("yolo26n-p2", True),
    ],
)  # fmt: skip
def test_stock_ultralytics_opens_and_fuses_other_families(
    family: str, safe_load: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ultralytics' restricted loader, too, which is also ours."""
    torch.manual_seed(0)
    model, x = load_model(f"{family}.yaml", 2), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = copy.deepcopy(model).eval()(x)[0]
    file = save_weights(model, tmp_path / "w.pt")
    monkeypatch.setattr("ultralytics.nn.tasks.SAFE_LOAD", safe_load)
    stock = YOLO(file)
    stock.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False, device="cpu")
    with torch.no_grad():
        found = YOLO(file).model.float().eval().fuse(verbose=False)(x)[0]
        again = load_model(file, 2).eval()(x)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(again, wanted, rtol=1e-4, atol=2e-3)
    save_weights(load_model(file, 2), tmp_path / "again.pt")
    assert len(YOLO(tmp_path / "again.pt").predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)) == 1


def test_branches_that_only_batch_norms_allow_to_merge_are_refused_at_load(tmp_path: Path) -> None:
    file = tmp_path / "large_kernels.yaml"
    layers = ["[-1, 1, Conv, [16, 3, 2]]", "[-1, 1, Conv, [16, 3, 2]]", "[-1, 1, C2fCIB, [16, True, True]]"]
    file.write_text(f"nc: 2\nbackbone: [{', '.join(layers)}]\nhead: [[[2], 1, Detect, [nc]]]\n")
    with pytest.raises(dptrain.ModelError, match=r"norm=group: model\.2\.\S+ \(RepVGGDW\)"):
        load_model(file)


ELSEWHERE = """
import json, sys
sys.modules["dptrain"] = None  # any import of it fails
import numpy as np, torch
from ultralytics import YOLO
answers = {}
image = np.load(sys.argv[1])  # BGR, as Ultralytics takes arrays
for file in sys.argv[3:]:
    head = {"nms": False} if "both" in file else {}  # the one-to-one branch, and the exported graph the same
    model = YOLO(file)
    names, tensor = model.names, torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        raw = model.model.float().eval()(tensor)[0]
    options = dict(imgsz=64, conf=0.001, verbose=False, device="cpu")
    plain = YOLO(file).predict(image, **options)[0].boxes.data
    boxes = YOLO(file).predict(image, **options, **head)[0].boxes.data
    metrics = YOLO(file).val(data=sys.argv[2], imgsz=64, batch=2, workers=0, plots=False, verbose=False, device="cpu",
                             project="runs", name="val", exist_ok=True)
    onnx = YOLO(file).export(format="onnx", imgsz=64, verbose=False, device="cpu", **head)
    exported = YOLO(onnx, task="detect").predict(image, **options, **head)[0].boxes.data
    answers[file] = {"names": names, "raw": raw.tolist(), "plain": plain.tolist(), "boxes": boxes.tolist(),
                     "exported": exported.tolist(), "metrics": metrics.results_dict}
assert not any(name.startswith("dptrain.") for name in sys.modules)
json.dump(answers, open("answers.json", "w"))
"""


def lively(model: Any) -> Any:
    """Give a fresh model confident and varied answers."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in head_scores(model):
            layer.bias.fill_(-1.0)
            layer.weight.add_(torch.randn(layer.weight.shape, generator=g) * 0.5)
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=g))
    return model


def nearest(boxes: Tensor, wanted: Tensor) -> None:
    """Every one of the best boxes wanted is there, at the same place with the same score and class."""
    assert len(wanted) >= 5 and len(boxes) >= 5
    inside = torch.cat([wanted[:, :4].clamp(0, 64), wanted[:, 4:]], 1)  # as Ultralytics cuts them
    for box in inside[:10]:
        assert float((boxes - box).abs().max(1).values.min()) < 0.02, box


def test_stock_ultralytics_predicts_validates_and_exports(tmp_path: Path, make_dataset: MakeDataset) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    image[10:40, 20:50] = cv2.GaussianBlur(image[10:40, 20:50], (0, 0), 3)
    np.save(tmp_path / "image.npy", image)
    data, x = make_dataset(), torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    names, models = {0: "green", 1: "blue"}, {}
    small = tmp_path / "small.yaml"  # wider: Ultralytics takes an export below 0.1 MB for a failed one
    small.write_text(Path(SMALL).read_text().replace("[8, ", "[32, ").replace("[16, ", "[64, "))
    starts = {
        Path(family).name: write_checkpoint(stock_detector(family, NAMES), tmp_path / f"start-{Path(family).name}.pt")
        for family in ("yolov8n", "yolo26n", str(small.with_suffix("")))
    }
    for file, options in {
        "yolov8n-group.pt": {"norm": "group"},
        "yolov8n-frozen_bn.pt": {"norm": "frozen_bn"},
        "yolo26n-both-group.pt": {"norm": "group"},
        "yolo26n-both-frozen_bn.pt": {"norm": "frozen_bn"},
        "small-both-lora.pt": {"trainable": ["lora", "norm_and_bias"]},
        "small-one_to_many.pt": {"head": "one_to_many"},
        "small-one_to_one-group.pt": {"head": "one_to_one", "norm": "group"},
    }.items():
        models[file] = lively(load_model(starts[file.partition("-")[0]], 2, names=names, **options))
    models["yolo26n-both-half.pt"] = models["yolo26n-both-group.pt"]
    for file, model in models.items():
        save_weights(model, tmp_path / file, half="half" in file)

    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, "image.npy", str(data), *models],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    answers = json.loads((tmp_path / "answers.json").read_text())
    for file, model in models.items():
        answer = answers[file]
        assert answer["names"] == {"0": "green", "1": "blue"}
        with torch.no_grad():
            raw = model.eval()(x)[0]
        loose = 30.0 if "half" in file else 1.0
        if "one_to_one" in file:  # boxes by falling score already, and the others' order may turn
            nearest(torch.tensor(answer["plain"]), raw[0][raw[0][:, 4] > 0.001])
            nearest(torch.tensor(answer["exported"]), torch.tensor(answer["boxes"]))
            continue
        torch.testing.assert_close(torch.tensor(answer["raw"]), raw, rtol=1e-3 * loose, atol=2e-3 * loose)
        assert set(answer["metrics"]) >= {"metrics/mAP50(B)", "metrics/mAP50-95(B)"}
        if "half" in file:
            assert answer["boxes"] and answer["exported"]
            continue
        nearest(torch.tensor(answer["plain"]), non_max_suppression(raw, 0.001, 0.7, max_det=300)[0])
        if "both" in file:
            model.end2end = True
            with torch.no_grad():
                one2one = model(x)[0][0]
            model.end2end = False
            nearest(torch.tensor(answer["boxes"]), one2one[one2one[:, 4] > 0.001])
        nearest(torch.tensor(answer["exported"]), torch.tensor(answer["boxes"]))


@pytest.mark.parametrize("norm", ["group", "frozen_bn"])
@pytest.mark.parametrize("half", [False, True])
def test_weights_can_be_a_start_again(checkpoint: Path, norm: str, half: bool, tmp_path: Path) -> None:
    model = load_model(checkpoint, norm=norm, trainable="head")
    kind = nn.GroupNorm if norm == "group" else FrozenBatchNorm2d
    file = save_weights(model, tmp_path / "ours.pt", half=half)
    again = load_model(file, 4, names=dict(enumerate(["dog", "ant", "bee", "cow"])))
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    assert sum(isinstance(m, kind) for m in again.modules()) > 50
    assert all(p.requires_grad for n, p in again.named_parameters() if ".dfl." not in n)
    refuse_coupling(again)
    for new, old in zip(head_scores(again), head_scores(model), strict=True):
        torch.testing.assert_close(new.weight[0], old.weight[1], rtol=1e-3, atol=1e-4)
    same = load_model(file)
    batch = random_batch([2, 0])
    with torch.no_grad():
        got, wanted = per_image_losses(same, batch), per_image_losses(model, batch)
    torch.testing.assert_close(got, wanted, rtol=0.05 if half else 1e-5, atol=1e-5)
    gradients = dptrain.per_sample_gradients(again, per_image_losses, random_batch([2], classes=4))
    assert set(gradients) == {n for n, p in again.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("norm", ["group", "frozen_bn"])
def test_saving_leaves_the_model_alone(checkpoint: Path, norm: str, tmp_path: Path) -> None:
    model = load_model(checkpoint, norm=norm, trainable="head")
    kinds = [type(m) for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    save_weights(model, tmp_path / "new" / "a.pt", half=True)
    assert [type(m) for m in model.modules()] == kinds and model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.pt"], "no half-written file beside it"


@pytest.mark.parametrize("norm", ["group", "frozen_bn"])
def test_the_file_holds_the_model_and_nothing_about_the_run(checkpoint: Path, norm: str, tmp_path: Path) -> None:
    model = load_model(checkpoint, norm=norm)
    batch = random_batch([2, 1])
    per_image_losses(model, batch).sum().backward()  # gradients of private images
    model.criterion, model.pt_path, model.class_weights = object, "/home/someone/private.pt", torch.ones(3)
    model.args = {"data": "/home/someone/private.yaml"}
    file = save_weights(model, tmp_path / "a.pt")

    content = torch.load(file, weights_only=False)
    assert set(content) == {"model", "ema", "train_args", "license"}
    assert content["ema"] is None and content["train_args"] == {"task": "detect", "data": None}
    saved = content["model"]
    assert all(p.grad is None for p in saved.parameters())
    assert {n for n, _ in saved.named_parameters()} == {n for n, _ in stock_copy(model).named_parameters()}
    public = {"training", "yaml", "save", "names", "inplace", "stride", "nc", "args", "task", "model"}
    assert {k for k in vars(saved) if not k.startswith("_")} <= public
    with zipfile.ZipFile(file) as archive:
        raw = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    strings = {str(a) for _, a, _ in pickletools.genops(raw) if isinstance(a, str)}
    assert not any("dptrain" in s or "private" in s for s in strings)
    # As many numbers as the model has, so nothing rides along.
    numbers = sum(v.numel() for v in saved.state_dict().values())
    assert file.stat().st_size < 4 * numbers + 400_000
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in saved.modules())


def test_importing_ultralytics_leaves_the_threads_alone() -> None:
    """Ultralytics sets one thread for whoever imports it: half of a machine of two cores, and less of a larger one."""
    code = "import torch, dptrain.detection, os; print(torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS'))"
    plain = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    ask = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    asked = subprocess.run(ask, env=plain, capture_output=True, text=True, check=True)
    for environment, expected in ((plain, f"{asked.stdout.strip()} None"), ({**plain, "OMP_NUM_THREADS": "1"}, "1 1")):
        for prefix in ("", "import dptrain.run.job; "):
            done = subprocess.run(
                [sys.executable, "-c", prefix + code], env=environment, capture_output=True, text=True, check=True
            )
            assert done.stdout.strip().endswith(expected)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip"])
def test_a_damaged_file_with_an_official_name_is_refused_and_stays(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics would delete it and download another."""
    monkeypatch.chdir(tmp_path)
    Path("yolo26n.pt").write_bytes(content)
    with pytest.raises(dptrain.ModelError, match=r"yolo26n\.pt"):
        load_model("yolo26n.pt")
    assert Path("yolo26n.pt").read_bytes() == content


def test_a_start_with_a_flipped_bit_or_without_a_part_is_refused(tmp_path: Path) -> None:
    file = write_checkpoint(stock_detector("yolov8n", NAMES), tmp_path / "x.pt")
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(dptrain.ModelError, match="checksum"):
        load_model(file)
    for change in ("names", "yaml", "nan"):
        model = stock_detector("yolov8n", NAMES)
        if change == "nan":
            next(model.parameters()).data.fill_(torch.nan)
        else:
            model.__dict__.pop(change)
        write_checkpoint(model, file)
        with pytest.raises(dptrain.ModelError, match=r"x\.pt") as caught:
            load_model(file, 2, names={0: "cat", 1: "dog"})
        assert "\n" not in str(caught.value)
