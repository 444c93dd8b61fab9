"""``dptrain check``: look at every image and label of a dataset once, and say what should be fixed before training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.stats import binom

from ...datasets.images import read_image
from ...datasets.listing import IMAGE_SUFFIXES, folder_images
from ...datasets.near import equal, groups, pairs
from ...datasets.series import Series, find_series
from ...datasets.sources import SPLITS, DataConfig, load_data
from ...errors import ConfigError, DataError
from ...sealing.archive import is_sealed_dataset
from ...support.released import found_start
from ...support.words import counted
from .findings import FOLDER, KINDS, CheckReport, Finding
from .labels import doubtful, orphans, other_sizes, read_all, unsaid_keypoints
from .planted import Planted, find_planted
from .summaries import ImageSummary, summarize

logger = logging.getLogger(__name__)

_RARE = 0.01  # of the boxes of the most common class
_FEW = 10  # boxes
_THE = {FOLDER: "the folder"}
_NO_LABELS = "labels, classes and splits: give a data.yaml"


def check(
    data: str | Path,
    *,
    weights: str | Path | None = None,
    forbid: Sequence[str] = ("person", "face"),
    conf: float = 0.25,
    imgsz: int = 640,
    device: str = "auto",
) -> CheckReport:
    """Look for what makes training on a dataset fail, flatter itself, or promise too little.

    Broken images, label errors, near-duplicates across splits and within one, metadata, patterns that few images share,
    class balance and, with a detector, objects that should not be there. Nothing is written.

    Args:
        data: An Ultralytics data.yaml, a sealed dataset, or a folder of images, of which labels and splits are not
            looked at.
        weights: A detector (``.pt``) that finds what must not be there; without one it is not looked for.
        forbid: Its class names.
        conf: Confidence from which an object counts; low, since a missed face costs more than a second look.
        imgsz: Image size for the detector in pixels.
        device: Where the detector runs.

    Returns:
        The findings. **They are private**: they count and name private images, without noise.

    Raises:
        DataError: The data.yaml itself cannot be used.
        ConfigError: The weights have none of the forbidden classes.
    """
    weights = None if weights is None else found_start(weights, "--weights")
    splits, listed = _listed(data)
    names = {} if listed is None else listed.names
    images = [image for split in splits.values() for image in split]
    of_split = [split for split, files in splits.items() for _ in files]
    labels, found = ([None] * len(images), []) if listed is None else read_all(splits, listed)
    wrong = {image for finding in found for image in finding.images}
    bare = Counter(s for s, i, rows in zip(of_split, images, labels, strict=True) if rows is None and i not in wrong)
    summaries = list(summarize(images))
    found += [Finding("broken image", item.error, (item.image,)) for item in summaries if item.error is not None]
    for summary, rows in zip(summaries, labels, strict=True):
        if summary.error is None and rows is not None and len(rows):
            found += doubtful(summary.image, rows, summary.size, names)
    if listed is not None:
        found += unsaid_keypoints(splits, listed)
        found += other_sizes(splits, listed, {item.image: item.size for item in summaries if item.error is None})
    if listed is not None and not is_sealed_dataset(data):
        found += orphans(splits, listed)
    alike = _duplicates(summaries)
    series = _series(splits, alike, summaries)
    found += _duplicate_findings(alike, summaries, of_split, series)
    if series is not None:
        found.append(_series_finding(series, images))
    found += _metadata(summaries)
    found += _planted(summaries, labels, alike, names)
    boxes = _boxes(splits, labels, names) if names else {}
    skipped = {} if names else dict.fromkeys(("train and val", "label error", "class balance"), _NO_LABELS)
    if names:
        found += _balance(boxes, "val" in splits)
    if weights is None:
        skipped["forbidden object"] = "people and faces: give a detector, --weights"
    else:
        readable = [item.image for item in summaries if item.error is None]
        found += _forbidden(readable, weights, forbid, conf, imgsz, device)
    found.sort(key=lambda finding: list(KINDS).index(finding.kind))
    sizes = {split: len(files) for split, files in splits.items()}
    return CheckReport(Path(data), sizes, dict(bare) if names else {}, boxes, tuple(found), skipped)


def _listed(data: str | Path) -> tuple[dict[str, tuple[Path, ...]], DataConfig | None]:
    """The images of each split, and the data.yaml; a folder has none, and is one split, :data:`FOLDER`."""
    place = Path(data).expanduser()
    if not place.is_dir():
        if place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES:
            raise DataError(f"{data} is an image: give the folder that it is in, or a data.yaml")
        listed = load_data(data)
        return {split: getattr(listed, split) for split in SPLITS if getattr(listed, split)}, listed
    for name in ("data.yaml", "dataset.yaml"):
        if (place / name).is_file():
            raise ConfigError(f"{data} is the folder of a dataset: check {place / name}, which names its splits")
    return {FOLDER: tuple(folder_images(place))}, None


def _duplicates(summaries: Sequence[ImageSummary]) -> list[list[int]]:
    seen = [number for number, item in enumerate(summaries) if item.small is not None]
    small = np.stack([item.small for item in summaries if item.small is not None]) if seen else np.zeros((0, 32, 32))
    linked = chain(equal([summaries[number].picture for number in seen]), pairs(small))
    return [[seen[item] for item in group] for group in groups(len(seen), linked)]


def _duplicate_findings(
    alike: Sequence[Sequence[int]], summaries: Sequence[ImageSummary], split: Sequence[str], series: Series | None
) -> list[Finding]:
    """Each group of near-duplicates, but for those within one split that a group key already makes one unit."""
    found = []
    for group in alike:
        if series is not None and len({(split[item], series.group(summaries[item].image)) for item in group}) == 1:
            continue
        images = tuple(summaries[item].image for item in group)
        there = sorted({split[item] for item in group}, key=(*SPLITS, FOLDER).index)
        names = ", ".join(map(str, images[:4])) + (f" and {len(images) - 4} more" if len(images) > 4 else "")
        alike_as = _how_alike([summaries[item].picture for item in group])
        if len(there) > 1:
            found.append(Finding("train and val", f"in {' and '.join(there)}, and {alike_as}: {names}", images))
        else:
            found.append(
                Finding(
                    "duplicates",
                    f"{len(images)} images of {_THE.get(there[0], there[0])} are {alike_as}: {names}",
                    images,
                )
            )
    return found


def _series(
    splits: dict[str, tuple[Path, ...]], alike: Sequence[Sequence[int]], summaries: Sequence[ImageSummary]
) -> Series | None:
    """Of the images that are trained on: whether several are of one thing."""
    images = splits["train" if "train" in splits else FOLDER]
    numbers = {image: number for number, image in enumerate(images)}
    inside = [[numbers[summaries[item].image] for item in group if summaries[item].image in numbers] for group in alike]
    return find_series(images, [(group[0], other) for group in inside for other in group[1:]])


def _series_finding(series: Series, images: Sequence[Path]) -> Finding:
    """Say it of all images, since a split that is not trained on has copies too; the pictures are of a few groups."""
    members: dict[str | Path, list[Path]] = {}
    for image in images:
        members.setdefault(series.group(image) or image, []).append(image)
    extra = len(images) - len(members)
    several = [files for files in members.values() if len(files) > 1]
    shown = tuple(image for files in several[:3] for image in files[:2])
    text = f"{len(images)} images are {counted(len(members), 'original')} and {counted(extra, 'extra picture')} of them"
    return Finding("same source", f"{text}. In train: {series}", shown)


def _how_alike(pictures: Sequence[bytes | None]) -> str:
    """Say how many of some near-duplicates are equal; training refuses those within train, or in train and val."""
    copies = len(pictures) - len(set(pictures))
    if copies == len(pictures) - 1:
        return "the same picture, perhaps turned"
    return "nearly the same" + (f" ({counted(copies, 'exact copy')}, perhaps turned)" if copies else "")


def _metadata(summaries: Iterable[ImageSummary]) -> list[Finding]:
    told: dict[str, list[Path]] = {}
    for summary in summaries:
        for word in summary.told:
            told.setdefault(word, []).append(summary.image)
    return [
        Finding("metadata", f"{word}: {counted(len(files), 'image')}", tuple(files))
        for word, files in sorted(told.items(), key=lambda item: -len(item[1]))
    ]


def _planted(
    summaries: Sequence[ImageSummary],
    labels: Sequence[np.ndarray | None],
    alike: Sequence[Sequence[int]],
    names: dict[int, str],
) -> list[Finding]:
    seen = [number for number, item in enumerate(summaries) if item.error is None]
    single = list(range(len(summaries)))
    for group in alike:
        for item in group:
            single[item] = group[0]
    images = [summaries[number].image for number in seen]
    classes = [set() if labels[number] is None else set(labels[number][:, 0].astype(int).tolist()) for number in seen]  # type: ignore[index]
    found = find_planted(images, [single[number] for number in seen])
    return [_planted_finding(one, images, classes, names) for one in found]


def _planted_finding(
    found: Planted, files: Sequence[Path], classes: Sequence[set[int]], names: dict[int, str]
) -> Finding:
    """Say which class the images share, and how much more often than images do at large."""
    images = tuple(files[number] for number in found.images)
    marks = tuple((place,) for place in found.places)
    count = len(images)
    text = f"the same {'mark is in' if marks else 'pattern is over the whole of'} {count} images"
    shares = {
        number: (
            sum(number in classes[image] for image in found.images) / count,
            sum(number in of_image for of_image in classes) / len(classes),
        )
        for number in names
    }
    if not shares:
        return Finding("planted pattern", f"{text}: a trigger, a watermark, or a part of the apparatus?", images, marks)
    number, (here, everywhere) = max(shares.items(), key=lambda item: item[1][0] - item[1][1])
    # Not by chance: of images drawn at random, fewer than 5 % of draws would have as many of this class.
    if here > everywhere and float(binom.sf(round(here * count) - 1, count, everywhere)) < 0.05:
        text += f"; {here:.0%} of them show {names[number]}, as {everywhere:.0%} of all images do: a planted trigger?"
    else:
        text += ", of no class in particular: a trigger, a watermark, or a part of the apparatus?"
    return Finding("planted pattern", text, images, marks)


def _boxes(
    splits: dict[str, tuple[Path, ...]], labels: Sequence[np.ndarray | None], names: dict[int, str]
) -> dict[str, dict[str, int]]:
    boxes, start = {}, 0
    for split, files in splits.items():
        rows = [found for found in labels[start : start + len(files)] if found is not None]
        numbers = np.concatenate(rows)[:, 0].astype(int) if rows else np.zeros(0, int)
        totals = np.bincount(numbers, minlength=len(names))
        boxes[split] = {name: int(totals[number]) for number, name in names.items()}
        start += len(files)
    return boxes


def _balance(boxes: dict[str, dict[str, int]], has_val: bool) -> list[Finding]:
    train = boxes["train"]
    most = max(train.values())
    found = []
    for name, count in train.items():
        if count == 0:
            found.append(Finding("class balance", f"{name}: not one box in train"))
        elif count < max(_FEW, _RARE * most) and count < most:
            found.append(
                Finding(
                    "class balance",
                    f"{name}: {counted(count, 'box')} in train, where the commonest has {most}",
                )
            )
        if count and has_val and boxes["val"][name] == 0:
            found.append(Finding("class balance", f"{name}: not one box in val, so its metrics say nothing"))
    return found


def _forbidden(
    images: Sequence[Path], weights: str | Path, forbid: Sequence[str], conf: float, imgsz: int, device: str
) -> list[Finding]:
    from ...detection import load_model
    from ...detection.evaluate import predict
    from ...support.devices import usable_device

    model = load_model(weights)
    wanted = {number for number, name in model.names.items() if name in forbid}
    if not wanted:
        known = ", ".join(list(model.names.values())[:20])
        raise ConfigError(f"{weights} finds none of {', '.join(forbid)}: give --forbid some of {known}")
    model.to(usable_device(device, "--device"))
    found = []
    for image, rows in zip(images, predict(model, images, imgsz, conf), strict=True):
        rows = rows[np.isin(rows[:, 5].astype(int), list(wanted))]
        if len(rows):
            what = ", ".join(f"{model.names[int(row[5])]} {row[4]:.2f}" for row in rows[:4])
            found.append(Finding("forbidden object", f"{image}: {what}", (image,), (_parts(image, rows),)))
    return found


def _parts(image: Path, rows: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    height, width = read_image(image).shape[:2]
    parts = rows[:, :4] / (width, height, width, height)
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in parts)
