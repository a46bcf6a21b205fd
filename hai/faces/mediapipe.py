"""MediaPipe's face detector: the one bundled with its older releases, or a model file with its newer ones."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.errors import ConfigError
from hai.faces.packages import PACKAGES

__all__ = ["MediaPipe"]

_FULL_RANGE: Final = 1
"""Of the bundled models the one for faces up to 5 m away."""


class MediaPipe:
    """The detector of the package mediapipe.

    Args:
        model: a `.tflite` face detector; None takes the bundled one, which releases up to 0.10.21 have.
        min_score: faces below are not returned.

    Raises:
        ConfigError: the package is missing, or there is no usable model.
    """

    def __init__(self, model: Path | None = None, min_score: float = 0.5) -> None:
        try:
            self._package: Any = importlib.import_module("mediapipe")
        except ImportError:
            raise PACKAGES["mediapipe"].missing("mediapipe") from None
        self._bundled: Any = None
        if model is None and hasattr(self._package, "solutions"):
            self._bundled = self._package.solutions.face_detection.FaceDetection(
                model_selection=_FULL_RANGE, min_detection_confidence=min_score
            )
            return
        if model is None:
            raise ConfigError(
                f"detector = mediapipe; release {self._package.__version__} brings no model; give the file of a face "
                "detector (blaze_face_short_range.tflite) with --detector-model"
            )
        tasks = importlib.import_module("mediapipe.tasks.python")
        try:
            options = tasks.vision.FaceDetectorOptions(
                base_options=tasks.BaseOptions(model_asset_buffer=model.read_bytes()),
                min_detection_confidence=min_score,
            )
            self._detector: Any = tasks.vision.FaceDetector.create_from_options(options)
            self(np.zeros((64, 64, 3), dtype=np.uint8))  # unfitting models are found out only by use
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"--detector-model = {model}; is no face detector of MediaPipe ({reason[:160]})"
            ) from None

    def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Find faces in an RGB image [H, W, 3]; boxes [N, 4] and scores [N], best first."""
        image = np.ascontiguousarray(image)
        found = sorted(self._from_bundled(image) if self._bundled else self._from_model(image), reverse=True)
        boxes = np.array([box for _, box in found], dtype=np.float32).reshape(-1, 4)
        return boxes, np.array([score for score, _ in found], dtype=np.float32)

    def _from_bundled(self, image: NDArray[np.uint8]) -> Iterator[tuple[float, list[float]]]:
        height, width = image.shape[:2]
        for face in self._bundled.process(image).detections or ():
            box = face.location_data.relative_bounding_box
            left, top = box.xmin * width, box.ymin * height
            yield float(face.score[0]), [left, top, left + box.width * width, top + box.height * height]

    def _from_model(self, image: NDArray[np.uint8]) -> Iterator[tuple[float, list[float]]]:
        picture = self._package.Image(image_format=self._package.ImageFormat.SRGB, data=image)
        for face in self._detector.detect(picture).detections:
            box = face.bounding_box
            edges = [box.origin_x, box.origin_y, box.origin_x + box.width, box.origin_y + box.height]
            yield float(face.categories[0].score), [float(edge) for edge in edges]
