"""Datasets as they lie on the disk: data.yaml, images, labels. Needs neither torch nor Ultralytics."""

import os

#: Most pixels that are decoded, 0.8 GB as colours: a file of a hundred bytes can claim any size.
MOST_PIXELS = 1 << 28

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))  # OpenCV reads it when it is imported
