"""Ultralytics' words: every setting of its training is taken, renamed, or answered in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ultralytics.cfg import DEFAULT_CFG_DICT

from dptrain.errors import ConfigError
from dptrain.settings import resolve as settings
from dptrain.settings.keys import keys
from dptrain.settings.ultralytics import (
    NEUTRAL,
    RENAMED,
    SAME,
    as_arguments,
    as_keywords,
    in_our_words,
)

# Of tasks, modes and exports that are none of ``yolo detect train``.
OF_OTHERS = {
    "overlap_mask", "mask_ratio", "dnn", "source", "vid_stride", "stream_buffer", "visualize", "augment",
    "agnostic_nms", "retina_masks", "embed", "save_frames", "save_txt", "save_conf", "save_crop", "show_labels",
    "show_conf", "show_boxes", "line_width", "format", "optimize", "dynamic", "simplify", "opset", "workspace",
    "dis", "pose", "kobj", "rle", "angle", "dlog", "dgrad", "dlam", "tracker",
}  # fmt: skip
SPECIAL = {"optimizer", "amp", "cos_lr", "freeze", "project", "name"}


def test_every_setting_of_their_training_is_known() -> None:
    known = {*SAME, *RENAMED, *NEUTRAL, *SPECIAL}
    assert set(DEFAULT_CFG_DICT) - known - OF_OTHERS == set()


def test_what_is_renamed_or_the_same_is_a_key_of_ours() -> None:
    ours = {name for name, _ in keys()}
    assert {*SAME, *RENAMED.values()} <= ours
    assert not ({*RENAMED, *NEUTRAL, "cos_lr", "freeze", "project", "name"} & {key.partition(".")[0] for key in ours})


@pytest.mark.parametrize("name", sorted(set(NEUTRAL) & set(DEFAULT_CFG_DICT)))
def test_their_default_is_refused_only_where_it_would_matter(name: str) -> None:
    default = DEFAULT_CFG_DICT[name]
    matters = {"patience", "warmup_epochs", "plots", "channels_last"}
    if name in matters:
        in_our_words({name: NEUTRAL[name][0][0]})
    else:
        assert in_our_words({name: default}) == {}


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"batch": 64}, {"privacy.expected_batch_size": 64}),
        (
            {"lr0": 1e-3, "lrf": 0.1, "cos_lr": True},
            {"optimizer.lr": 1e-3, "schedule.final": 0.1, "schedule": "cosine"},
        ),
        ({"cos_lr": False}, {}),
        ({"amp": False}, {"precision": "fp32"}),
        ({"amp": True}, {"precision": "auto"}),
        ({"optimizer": "SGD"}, {"optimizer": "sgd"}),
        ({"optimizer": "NAdam"}, {"optimizer.name": "nadam"}),
        ({"optimizer": "auto"}, {}),
        ({"freeze": 10}, {"trainable": "layers_from_10"}),
        ({"freeze": [0, 1, 2]}, {"trainable": "layers_from_3"}),
        ({"freeze": None}, {}),
        ({"project": "a", "name": "b"}, {"output_dir": "a/b"}),
        ({"name": "b"}, {"output_dir": "runs/b"}),
        ({"epochs": 5, "fliplr": 0.5, "mosaic": 0.0}, {"epochs": 5, "augment.fliplr": 0.5, "augment.mosaic": 0.0}),
        ({"privacy.epsilon": 8}, {"privacy.epsilon": 8}),
    ],
)
def test_words_become_keys(given: dict[str, Any], ours: dict[str, Any]) -> None:
    assert in_our_words(given) == ours


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch": -1}, "batch=-1 measures the batch size on private images"),
        ({"batch": 0.7}, "batch=0.7 measures"),
        ({"patience": 50}, "patience=50 .* fixed before the first"),
        ({"classes": [0]}, "classes=.* leave the labels"),
        ({"single_cls": True}, "single_cls=True"),
        ({"fraction": 0.5}, "fraction=0.5 .* privacy.dataset_size"),
        ({"amp": "half"}, "amp=half must be true or false"),
        ({"val": False}, "val=False .* evaluate_every"),
        ({"save_period": 5}, "save_period=5"),
        ({"cache": "ram"}, "cache=ram"),
        ({"optimizer": "MuSGD"}, "MuSGD is not offered"),
        ({"freeze": [22]}, r"freeze=\[22\] is not the first layers"),
        ({"batch": 64, "privacy.expected_batch_size": 32}, "batch is Ultralytics' word .* give it once"),
        ({"freeze": 3, "trainable": "head"}, "freeze is Ultralytics' word for trainable"),
        ({"name": "b", "output_dir": "c"}, "project and name are"),
    ],
)
def test_what_cannot_be_is_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        in_our_words(given)
    assert "\n" not in str(caught.value)


def test_arguments_of_the_command(tmp_path: Path) -> None:
    assert as_arguments(["model=a.pt", "-m", "seed=1"]) == ["model=a.pt", "-m", "seed=1"]
    found = as_arguments(["-m", "model=a.pt", "batch=64,128", "lr0=1e-3", "optimizer=SGD", "plots=True", "cache=False"])
    assert found == [
        "-m", "model=a.pt", "privacy.expected_batch_size=64,128", "optimizer.lr=1e-3", "optimizer=sgd",
    ]  # fmt: skip
    assert as_arguments(["classes=None", "freeze=10"]) == ["trainable=layers_from_10"]
    with pytest.raises(ConfigError, match="give it once"):
        as_arguments(["batch=8", "privacy.expected_batch_size=8"])


def test_keywords_land_in_their_sections() -> None:
    found = as_keywords({"batch": 64, "privacy": {"epsilon": 8}, "optimizer": "Adam", "lr0": 0.1, "device": "cpu"})
    assert found == {
        "privacy": {"epsilon": 8, "expected_batch_size": 64}, "optimizer": {"name": "adam", "lr": 0.1}, "device": "cpu",
    }  # fmt: skip
    config = settings.from_kwargs(model="a.pt", data="b.yaml", **as_keywords({"lr0": 0.1, "cos_lr": True, "epochs": 3}))
    assert config.optimizer.lr == 0.1 and config.schedule.name == "cosine" and config.epochs == 3
    with pytest.raises(ConfigError, match="expected_batch_size is given twice"):
        as_keywords({"batch": 64, "privacy": {"expected_batch_size": 8}})


def test_the_page_has_every_word() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ultralytics.md").read_text(encoding="utf-8")
    silent = {"verbose", "deterministic"}
    assert [word for word in {*SAME, *RENAMED, *NEUTRAL, *SPECIAL} - silent if f"`{word}" not in page] == []
