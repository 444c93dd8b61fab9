"""Imports Ultralytics with everything off that talks to the network or writes about the data."""

from __future__ import annotations

import os

os.environ.setdefault("YOLO_OFFLINE", "true")  # no connection attempt at import, no telemetry, no downloads
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

from ultralytics.utils import SETTINGS

# For this process only: a plain assignment would rewrite the user's settings file.
for _switch in ("sync", "mlflow", "wandb", "comet", "clearml", "dvc", "neptune", "raytune", "tensorboard", "hub"):
    if _switch in SETTINGS:
        dict.__setitem__(SETTINGS, _switch, False)
