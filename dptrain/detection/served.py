"""A released detector as an MLflow model: stock Ultralytics behind MLflow's ``predict``.

This file travels with the model ("models from code"), so it imports nothing of dptrain: whoever serves the model needs
MLflow and Ultralytics only.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import cv2
import numpy
import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

COLUMNS = {"image": "int64", "class": "str", "confidence": "float64"} | dict.fromkeys(
    ("x1", "y1", "x2", "y2"), "float64"
)


class Detector(PythonModel):
    """Finds objects in images; the same boxes as ``yolo predict`` of the same weights and image file."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the weights."""
        from ultralytics import YOLO

        self._detector = YOLO(context.artifacts["weights"])

    # No type hint for model_input: MLflow would make a signature from it that leaves out the parameters.
    def predict(self, context: PythonModelContext, model_input, params: Mapping[str, Any] | None = None):  # type: ignore[no-untyped-def]
        """Return a row for every object: number of the image, class, confidence, and its box in pixels.

        Args:
            context: MLflow's.
            model_input: A column ``image``: files (JPEG, PNG, ...) in base64.
            params: ``confidence`` that an object needs, ``iou`` above which the lesser of two boxes of a class goes.

        Raises:
            MlflowException: An image cannot be read; a server answers with status 400.
        """
        given = params or {}
        images = [_decoded(text, number) for number, text in enumerate(model_input["image"])]
        rows: list[tuple[Any, ...]] = []
        for number, image in enumerate(images):
            found = self._detector.predict(
                image, conf=float(given.get("confidence", 0.25)), iou=float(given.get("iou", 0.7)), verbose=False
            )[0]
            for corners, kind, confidence in zip(found.boxes.xyxy, found.boxes.cls, found.boxes.conf, strict=True):
                rows.append((number, found.names[int(kind)], float(confidence), *map(float, corners)))
        return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _decoded(text: Any, number: int) -> numpy.ndarray:
    try:
        content = base64.b64decode(text, validate=True)
        image = cv2.imdecode(numpy.frombuffer(content, numpy.uint8), cv2.IMREAD_COLOR) if content else None
    except (binascii.Error, TypeError, ValueError, cv2.error):
        image = None
    if image is None:
        raise MlflowException.invalid_parameter_value(
            f"image {number} cannot be read: send the bytes of a JPEG or PNG file in base64"
        )
    return image


set_model(Detector())
