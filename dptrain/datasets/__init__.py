"""Datasets as they lie on the disk: data.yaml, images, labels. Needs neither torch nor Ultralytics."""

import os

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))  # images.MOST_PIXELS; OpenCV reads it when imported
