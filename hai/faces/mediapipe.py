"""MediaPipe's face detector with a model file, since its releases that fit numpy 2 bring none."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hai.errors import ConfigError
from hai.faces.packages import MODEL_RECIPE, PACKAGES

__all__ = ["MediaPipe"]


class MediaPipe:
    """The detector of the package mediapipe.

    Args:
        model: a `.tflite` face detector.
        min_score: faces below are not returned.

    Raises:
        ConfigError: the package is missing or the model is not usable.
    """

    def __init__(self, model: Path | None = None, min_score: float = 0.5) -> None:
        try:
            self._package: Any = importlib.import_module("mediapipe")
        except ImportError:
            raise PACKAGES["mediapipe"].missing("mediapipe") from None
        if model is None:
            raise ConfigError(f"--detector-model is missing; {MODEL_RECIPE}")
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
        found = sorted(self._faces(image), reverse=True)
        boxes = np.array([box for _, box in found], dtype=np.float32).reshape(-1, 4)
        return boxes, np.array([score for score, _ in found], dtype=np.float32)

    def _faces(self, image: NDArray[np.uint8]) -> Iterator[tuple[float, list[float]]]:
        picture = self._package.Image(image_format=self._package.ImageFormat.SRGB, data=image)
        for face in self._detector.detect(picture).detections:
            box = face.bounding_box
            edges = [box.origin_x, box.origin_y, box.origin_x + box.width, box.origin_y + box.height]
            yield float(face.categories[0].score), [float(edge) for edge in edges]
