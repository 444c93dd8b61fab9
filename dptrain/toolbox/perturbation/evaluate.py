"""How a detector does on pictures made worse step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...datasets.images import read_image
from ...detection.data import DetectionDataset, load_data
from ...detection.evaluate import evaluate
from ...detection.model import load_model
from ...errors import ConfigError
from ...run.tracking import NoTracker, Tracker, Wording
from ...support.files import refuse_unwritable, write_atomically, write_json
from ...support.released import found_start
from .epsilon import input_noise
from .export import picture_name
from .kinds import KINDS, Kind, kind_of, perturb
from .picture import draw
from .result import CLEAN, PerturbationResult, Row

if TYPE_CHECKING:
    import torch

_WORK = Wording(
    "--tracking-uri ",
    "give --no-tracking; nothing was measured",
    "measuring continues, and perturbation.json in the output folder will have everything",
)
RESULT, PICTURE = "perturbation.json", "perturbation.png"


class PerturbedDataset(DetectionDataset):
    """A split whose pictures are perturbed when they are read; labels stay as they are."""

    kind: Kind | None = None
    level = 0.0
    seed = 0

    def read(self, index: int) -> np.ndarray:
        image = super().read(index)
        if self.kind is None:
            return image
        return perturb(image, self.kind, self.level, self.seed, picture_name(self.data, self.image_files[index]))


def evaluate_perturbed(
    weights: str | Path,
    data: str | Path,
    *,
    levels: Mapping[str, Sequence[float]] | None = None,
    split: str = "val",
    imgsz: int = 640,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    workers: int = 0,
    seed: int = 0,
    delta: float = 1e-5,
    output: str | Path | None = None,
    tracking_uri: str | None = None,
    experiment: str = "dptrain-perturb",
    on_row: Callable[[Row], None] | None = None,
) -> PerturbationResult:
    """Measure mAP and the number of detections over levels of noise, blur, compression and darkness.

    Args:
        weights: A YOLO ``.pt`` file.
        data: A data.yaml. The metrics carry no noise, so the split is declared public by being measured.
        levels: By kind (``noise``, ``blur``, ``jpeg``, ``dark``); default
            :data:`dptrain.toolbox.perturbation.kinds.KINDS`'.
        split: train, val or test.
        imgsz: As in ``dptrain evaluate``, and so are the next three.
        batch_size: Images at once.
        device: Where the detector runs.
        workers: Processes that load images.
        seed: Decides the noise; the same for every model, so that they can be compared.
        delta: For the epsilon that the noise levels are worth.
        output: Folder for ``perturbation.json`` and ``perturbation.png``.
        tracking_uri: MLflow store for the curves: ``<kind>/mAP50``, ``<kind>/mAP50-95`` and ``<kind>/detections``
            beside ``<kind>/level`` at steps 0 (clean), 1, 2, ...
        experiment: MLflow experiment.
        on_row: Called after each level.

    Raises:
        ConfigError: A kind or level is not one, or ``output`` cannot be written or holds another result.
        DataError, ModelError: The data or the weights cannot be used.
        TrackingError: The MLflow store cannot be reached.
    """
    wanted = checked_levels(levels)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed={seed} is not a whole number of 0 or more")
    folder = None if output is None else Path(output)
    if folder is not None:
        refuse_unwritable(folder, "-o")
        if (folder / RESULT).exists():
            raise ConfigError(f"-o {folder} holds a {RESULT} already: choose another folder, so that it stays")
    config = load_data(data)
    dataset = PerturbedDataset(config, split, imgsz)
    dataset.seed = seed
    weights = found_start(weights, "--weights")
    model = load_model(weights).to(device)
    settings = {
        "weights": str(weights), "data": str(data), "split": split, "imgsz": imgsz, "seed": seed, "delta": delta
    }  # fmt: skip
    tracker: Tracker = NoTracker()
    if tracking_uri is not None:
        name = f"perturb {Path(weights).stem} {datetime.now():%Y-%m-%d %H:%M}"
        tracker = Tracker.start(tracking_uri, experiment, name, {"dptrain.command": "perturb evaluate"}, work=_WORK)
    with tracker:
        tracker.parameters(settings)
        rows: list[Row] = []

        def measure(kind: Kind | None, level: float) -> Row:
            dataset.kind, dataset.level = kind, level
            found = evaluate(model, dataset, batch_size=batch_size, device=device, workers=workers)
            row = Row(CLEAN if kind is None else kind.name, level, found.values, found.detections / len(dataset))
            rows.append(row)
            if on_row is not None:
                on_row(row)
            return row

        clean = measure(None, 0.0)
        for kind_name, tried in wanted.items():
            kind = KINDS[kind_name]
            for step, (level, row) in enumerate([(kind.clean, clean), *((level, None) for level in tried)]):
                shown = row or measure(kind, level)
                tracker.metrics(
                    {
                        f"{kind_name}/level": level,
                        f"{kind_name}/mAP50": shown.metrics["metrics/mAP50B"],
                        f"{kind_name}/mAP50-95": shown.metrics["metrics/mAP50-95B"],
                        f"{kind_name}/detections": shown.detections,
                    },
                    step,
                )
        height, width = read_image(dataset.image_files[0]).shape[:2]
        worth = [
            {"level": level, "delta": delta, **asdict(entry)}
            for level in wanted.get("noise", ())
            for entry in input_noise(level, height, width, delta)
        ]
        result = PerturbationResult(rows, len(dataset), worth, settings, folder)
        if folder is not None:
            write_json(folder / RESULT, result.as_dict())
            write_atomically(folder / PICTURE, lambda stream: draw(result, stream))
            tracker.file(folder / RESULT)
            tracker.file(folder / PICTURE)
    return result


def checked_levels(levels: Mapping[str, Sequence[float]] | None) -> dict[str, list[float]]:
    """Return the levels of each kind in order, from the mildest; the clean one is always measured and left out.

    Raises:
        ConfigError: A kind or level is not one, or there is none.
    """
    given = {name: kind.levels for name, kind in KINDS.items()} if levels is None else levels
    found = {}
    for name, values in given.items():
        kind = kind_of(name)
        tried = {kind.check(value) for value in values} - {kind.clean}
        if tried:
            found[name] = sorted(tried, reverse=kind.clean > kind.least)
    if not found:
        raise ConfigError("no level to try: give some, such as --noise 10,20")
    return found
