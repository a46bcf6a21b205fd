"""What decides how faces are cut out: kept in preprocess.json, followed again by prediction."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from hai.errors import ConfigError, DataError
from hai.faces.detectors import DETECTORS, DetectorName, model_hash
from hai.faces.packages import MODEL_RECIPE

__all__ = ["PREPROCESS", "CropSettings", "as_record", "build_settings", "load_settings", "with_model"]

PREPROCESS: Final = "preprocess.json"
"""Name of the file beside the crops that tells how they were made."""

_MOST_BYTES: Final = 2 << 30
"""Of the crops of one person in a video, which are in memory until it ends."""


@dataclass(frozen=True)
class CropSettings:
    """How faces are found, chosen and cut out. Equal settings and equal files give equal crops."""

    detector: DetectorName = "mtcnn"
    fallback_detector: DetectorName | None = None
    """Asked where the detector finds no face in a frame."""
    detector_model: str | None = None
    """Model file of mediapipe."""
    frames: int = 16
    """Of each video, spread evenly."""
    faces: Literal["largest", "all"] = "largest"
    """Of a video: the person with most to see, or everybody."""
    margin: float = 0.2
    """On each side, as a share of the face's longer side."""
    image_size: int = 224
    """Height and width of a crop, pixels; 0 keeps the pixels as they are."""
    format: Literal["jpg", "png"] = "jpg"
    quality: int = 95
    """Of JPEG, without chroma subsampling."""
    detect_size: int = 640
    """Longer side of the copy that the detector looks at, pixels."""
    min_face: int = 32
    """Height of the smallest face in that copy, pixels."""
    min_score: float = DETECTORS["mtcnn"]
    """What counts as a face for the detector."""
    fallback_min_score: float | None = None
    """The same for the fallback."""
    min_sightings: int = 2
    """Frames of a video that a person must be seen in; one is enough where fewer than 4 frames could be read."""
    max_megapixels: float = 40.0
    """Larger images and frames are refused."""
    detector_sha256: str | None = None
    """Of the model file, where it is known; beside `detectors` in preprocess.json."""


def build_settings(**given: Any) -> CropSettings:
    """Check what the command line says and fill in the rest.

    Raises:
        ConfigError: all that is wrong, a line each.
    """
    detector, fallback = given.get("detector", "mtcnn"), given.get("fallback_detector")
    wrong = [
        f"--{option} = {value}; must be one of {', '.join(DETECTORS)}"
        for option, value in (("detector", detector), ("fallback-detector", fallback))
        if value is not None and value not in DETECTORS
    ]
    if fallback is not None and fallback == detector:
        wrong.append(f"--fallback-detector = {fallback}; must be another one than --detector, or be left out")
    limits: dict[str, tuple[str, float, float]] = {
        "frames": ("--frames", 1, 10_000),
        "margin": ("--face-margin", 0, 2),
        "quality": ("--quality", 1, 100),
    }
    for name, (option, low, high) in limits.items():
        if name in given and not low <= given[name] <= high:
            wrong.append(f"{option} = {given[name]}; must be between {low:g} and {high:g}")
    size = given.get("image_size", 224)
    if size != 0 and not 32 <= size <= 2048:
        wrong.append(f"--image-size = {size}; must be between 32 and 2048, or 0 to keep the pixels as they are")
    frames = given.get("frames", 16)
    if 3 * frames * size**2 > _MOST_BYTES:
        wrong.append(
            f"--frames = {frames} of --image-size = {size}; must fit into 2 GiB of memory; take fewer or smaller"
        )
    model = given.get("detector_model")
    if model is not None and "mediapipe" not in (detector, fallback):
        wrong.append(f"--detector-model = {model}; only mediapipe takes one; leave it out")
    if model is not None and not Path(model).is_file():
        wrong.append(f"--detector-model = {model}; there is no such file")
    if model is None and "mediapipe" in (detector, fallback):
        wrong.append(f"--detector-model is missing; {MODEL_RECIPE}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    if model is not None:
        given["detector_model"] = os.path.abspath(model)
    given["min_score"] = DETECTORS[detector]
    given["fallback_min_score"] = DETECTORS[fallback] if fallback else None
    return CropSettings(**given)


def _settings_from(record: dict[str, Any], where: str) -> CropSettings:
    """Read the settings out of the contents of a preprocess.json; raises DataError."""
    values = record.get("settings")
    names = {field.name for field in fields(CropSettings)}
    if not isinstance(values, dict) or set(values) != names - {"detector_sha256"}:
        raise DataError(f"{where}: settings are not those of this version; run hai preprocess again")
    try:
        (hashes,) = (part["sha256"] for part in record["detectors"] if part["name"] == "mediapipe")
        sha256 = hashes[Path(values["detector_model"]).name]
    except (LookupError, TypeError, ValueError):
        sha256 = None
    return CropSettings(**values, detector_sha256=sha256)


def load_settings(path: Path) -> CropSettings:
    """Read the settings that a preprocess.json records.

    Raises:
        DataError: it cannot be read or is of another kind.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run hai preprocess again") from None
    if not isinstance(record, dict):
        raise DataError(f"{path}: is not a preprocess.json; run hai preprocess again")
    return _settings_from(record, str(path))


def as_record(settings: CropSettings) -> dict[str, Any]:
    """Write settings as JSON."""
    record = asdict(settings)
    if settings.detector_sha256 is None:
        del record["detector_sha256"]
    return record


def with_model(settings: CropSettings, given: str | None) -> CropSettings:
    """Take the model file of the detector from where it lies here.

    Args:
        settings: whose detector may take one.
        given: where it lies; None: where it lay when the training images were cut out.

    Raises:
        ConfigError: it is not there, or is another one.
    """
    if settings.detector_model is None:
        return settings
    path = Path(given or settings.detector_model)
    if not path.is_file():
        hint = "" if given else ", which found the faces of the training images; give it with --detector-model FILE"
        raise ConfigError(f"--detector-model = {path}; mediapipe's model is not there{hint}")
    found, wanted = model_hash(path), settings.detector_sha256
    if wanted is not None and found != wanted:
        raise ConfigError(
            f"--detector-model = {path}; its sha256 begins with {found[:12]}, that of the model which found the faces "
            f"of the training images ({Path(settings.detector_model).name}) with {wanted[:12]}; give that one"
        )
    return replace(settings, detector_model=str(path))
