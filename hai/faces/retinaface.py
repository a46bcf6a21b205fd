"""RetinaFace through the package retina-face, on its ONNX backend unless DEEPFACE_BACKEND_ENGINE names another."""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.errors import ConfigError
from hai.faces.packages import PACKAGES
from hai.paths import locked

__all__ = ["RetinaFace"]

_NOTHING: Final = 0.02
"""Scores below are never returned; what counts as a face is decided outside."""


class RetinaFace:
    """The package's model; its weights (some 110 MB) are downloaded by it once, to `~/.deepface/weights`.

    Raises:
        ConfigError: the package or its weights are missing and cannot be had.
    """

    def __init__(self, min_score: float = _NOTHING) -> None:
        os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "onnx")
        os.environ.setdefault("DEEPFACE_LOG_LEVEL", "50")
        try:
            self._package = importlib.import_module("retinaface.RetinaFace")
        except ImportError:
            raise PACKAGES["retinaface"].missing("retinaface") from None
        try:
            with locked("weights of retinaface"):  # one process of this machine downloads, the others find them
                self._model: Any = self._package.build_model()
        except Exception as error:  # the package raises what its downloader, the network and its backend raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"detector = retinaface; its model cannot be had: {reason}") from None
        self._min_score = min_score

    def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Find faces in an RGB image [H, W, 3]; boxes [N, 4] and scores [N], best first."""
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        found = self._package.detect_faces(bgr, threshold=self._min_score, model=self._model, allow_upscaling=False)
        faces = sorted(found.values() if isinstance(found, dict) else (), key=lambda face: -float(face["score"]))
        boxes = np.array([face["facial_area"] for face in faces], dtype=np.float32).reshape(-1, 4)
        return boxes, np.array([face["score"] for face in faces], dtype=np.float32)
