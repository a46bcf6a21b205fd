"""The packages that face detectors come with: which, how to install them, and which model files are the known ones."""

from __future__ import annotations

import importlib.metadata
from typing import Final, NamedTuple

from hai.errors import ConfigError

__all__ = ["MODEL_RECIPE", "MTCNN_SHA256", "PACKAGES", "Package"]


class Package(NamedTuple):
    """A package with a detector or its weights."""

    name: str
    install: str
    """What installs it."""

    def missing(self, detector: str) -> ConfigError:
        """Return the error that says that it is not installed."""
        return ConfigError(f"detector = {detector}; {self.name} is not installed; run: {self.install}")

    def installed(self, detector: str) -> str:
        """Return the version that is installed; raises ConfigError if none is."""
        try:
            return importlib.metadata.version(self.name)
        except importlib.metadata.PackageNotFoundError:
            raise self.missing(detector) from None


PACKAGES: Final = {
    "mtcnn": Package("facenet-pytorch", "pip install --no-deps facenet-pytorch==2.6.0"),
    "retinaface": Package("retina-face", "pip install 'hai[retinaface]' (not beside mediapipe, both bring an OpenCV)"),
    "mediapipe": Package("mediapipe", "pip install 'hai[mediapipe]' (not beside retina-face, both bring an OpenCV)"),
}
"""By name of the detector."""

MTCNN_SHA256: Final = {
    "pnet": "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    "rnet": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    "onet": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
}
"""The weight files of facenet-pytorch 2.6.0, which were converted from the authors'."""

MODEL_RECIPE: Final = (
    "mediapipe needs a model file; for one: pip download --no-deps mediapipe==0.10.21, and unzip "
    "face_detection_short_range.tflite out of that wheel"
)
"""How to come by a model that newer releases of mediapipe can use and do not bring."""
