"""The face detectors by name, and how each is asked: on a copy of the image that is not larger than it needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hai.data.images import resize_image
from hai.errors import ConfigError
from hai.faces.boxes import Face
from hai.faces.packages import MTCNN_SHA256, PACKAGES

__all__ = [
    "DETECTORS",
    "Detector",
    "DetectorName",
    "FaceFinder",
    "build_detector",
    "describe_detector",
    "model_hash",
]

DetectorName = Literal["mtcnn", "retinaface", "mediapipe"]
DETECTORS: Final[dict[str, float]] = {"mtcnn": 0.9, "retinaface": 0.9, "mediapipe": 0.6}
"""Names, and the score from which each one's finding counts as a face."""

Detector = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Takes an RGB image [H, W, 3]; returns boxes (left, top, right, bottom) [N, 4] and scores [N], best first."""


def build_detector(name: str, *, min_face: int, min_score: float, model: str | None = None) -> Detector:
    """Load a detector.

    Args:
        name: one of DETECTORS.
        min_face: height of the smallest face it has to find, pixels; where it can be told.
        min_score: least score that it has to return.
        model: its model file, where there is a choice.

    Raises:
        ConfigError: it is unknown, not installed, or has no model.
    """
    if name == "mtcnn":
        from hai.faces.mtcnn import Mtcnn, load_weights

        return Mtcnn(load_weights(), min_face, thresholds=(0.6, 0.7, min(0.7, min_score)))
    if name == "retinaface":
        from hai.faces.retinaface import RetinaFace

        return RetinaFace(min_score)
    if name == "mediapipe":
        from hai.faces.mediapipe import MediaPipe

        return MediaPipe(Path(model) if model else None, min_score)
    raise ConfigError(f"detector = {name}; must be one of {', '.join(DETECTORS)}")


def describe_detector(name: str, model: str | None = None) -> dict[str, Any]:
    """Say what a detector is made of, so that the same one can be had again: package, version, hashes of its model.

    Raises:
        ConfigError: its package is not installed.
    """
    package = PACKAGES[name]
    description: dict[str, Any] = {"name": name, "package": package.name, "version": package.installed(name)}
    if name == "mtcnn":
        description["sha256"] = dict(MTCNN_SHA256)
    elif name == "mediapipe" and model:
        description["sha256"] = {Path(model).name: model_hash(Path(model))}
    return description


def model_hash(model: Path) -> str:
    """Return the sha256 of a model file."""
    return hashlib.sha256(model.read_bytes()).hexdigest()


class FaceFinder:
    """A detector that looks at large images in a smaller copy.

    Args:
        name: of the detector.
        detect_size: longer side of that copy, pixels; smaller images are looked at as they are.
        min_face: height of the smallest face in that copy, pixels.
        min_score: what counts as a face.
        model: model file of the detector.
    """

    def __init__(self, name: str, *, detect_size: int, min_face: int, min_score: float, model: str | None) -> None:
        self.name, self._detect_size, self._min_score = name, detect_size, min_score
        self._detect = build_detector(name, min_face=min_face, min_score=min_score, model=model)

    def __call__(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces of an RGB image [H, W, 3], best first; boxes are in its own pixels."""
        height, width = image.shape[:2]
        scale = min(1.0, self._detect_size / max(height, width))
        low = resize_image(image, max(1, round(height * scale)), max(1, round(width * scale)))
        boxes, scores = self._detect(low)
        across, down = width / low.shape[1], height / low.shape[0]
        faces = []
        for (left, top, right, bottom), score in zip(boxes.tolist(), scores.tolist(), strict=True):
            face = Face((left * across, top * down, right * across, bottom * down), score, self.name)
            x, y = face.centre
            if score >= self._min_score and 0 <= x < width and 0 <= y < height:
                faces.append(face)
        return faces
