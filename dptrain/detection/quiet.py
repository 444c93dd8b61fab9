"""Imports Ultralytics with everything off that talks to the network, writes about the data, or slows the machine."""

from __future__ import annotations

import os

import torch

from .. import datasets  # noqa: F401 - what OpenCV is told before Ultralytics imports it
from ..support.environment import keep_ultralytics_offline

keep_ultralytics_offline()  # no connection attempt at import, no telemetry, no downloads
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

# Ultralytics sets OMP_NUM_THREADS=1 for the process that imports it, and undoes it in its own trainer only.
_threads, _chosen = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")

from ultralytics.utils import SETTINGS  # noqa: E402

if _chosen is None:
    os.environ.pop("OMP_NUM_THREADS", None)
    torch.set_num_threads(_threads)

# For this process only: a plain assignment would rewrite the user's settings file.
for _switch in ("sync", "mlflow", "wandb", "comet", "clearml", "dvc", "neptune", "raytune", "tensorboard", "hub"):
    if _switch in SETTINGS:
        dict.__setitem__(SETTINGS, _switch, False)
