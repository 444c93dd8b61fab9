"""What Ultralytics reads of a folder: the reference for what is read here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ultralytics.data import utils
from ultralytics.data.dataset import YOLODataset


def stock_boxes(file: Path, split: str = "train") -> dict[str, np.ndarray]:
    """Class and xywh box of every image that Ultralytics keeps, by the image's name, in the order of their values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "check_font", lambda *_: None)  # it would be downloaded
        data = utils.check_det_dataset(str(file), autodownload=False)
        rows = YOLODataset(img_path=data[split], imgsz=64, augment=False, data=data, task="detect").labels
    for cache in file.parent.rglob("*.cache"):
        cache.unlink()
    return {Path(row["im_file"]).name: ordered(np.concatenate([row["cls"], row["bboxes"]], 1)) for row in rows}


def ordered(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]
