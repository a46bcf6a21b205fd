"""One video or image to the crops of the faces in it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from hai.data.images import decode_image
from hai.data.video import read_frames
from hai.errors import DataError
from hai.faces.boxes import cut_face
from hai.faces.detectors import FaceFinder
from hai.faces.settings import CropSettings
from hai.faces.tracks import Sighting, Track, appearance, link_faces

__all__ = ["Crop", "FaceCutter", "Harvest", "crop_file", "crop_pictures", "encode_crop", "find_tracks", "read_pictures"]

_FEW_FRAMES: Final = 4


@dataclass(frozen=True)
class Crop:
    """A face that was cut out."""

    frame: int
    """Position of the frame in its video."""
    face: int
    """Number of the person in it, 0 has most to see."""
    box: tuple[float, float, float, float]
    """Of the face in the frame, without margin: left, top, right, bottom, pixels."""
    score: float
    detector: str
    data: bytes
    """The picture, encoded."""


@dataclass(frozen=True)
class Harvest:
    """What became of one file."""

    num_frames: int = 0
    """Frames that were looked at."""
    num_found: int = 0
    """Frames with at least one accepted face."""
    crops: list[Crop] = field(default_factory=list)
    error: str = ""
    """Why the file cannot be used."""
    is_missing: bool = False
    """The file was not where it had been listed; on another machine perhaps."""


@dataclass(frozen=True)
class FaceCutter:
    """Detectors that are ready, with the settings they follow; one for each process."""

    settings: CropSettings
    finders: tuple[FaceFinder, ...]

    @staticmethod
    @lru_cache(maxsize=2)
    def of(settings: CropSettings) -> FaceCutter:
        """Load the detectors once in this process; raises ConfigError."""
        names = [(settings.detector, settings.min_score)]
        if settings.fallback_detector:
            names.append((settings.fallback_detector, settings.fallback_min_score or 0.0))
        return FaceCutter(
            settings,
            tuple(
                FaceFinder(
                    name,
                    detect_size=settings.detect_size,
                    min_face=settings.min_face,
                    min_score=score,
                    model=settings.detector_model,
                )
                for name, score in names
            ),
        )

    def sightings(self, position: int, image: NDArray[np.uint8]) -> list[Sighting]:
        """Find the faces of one frame [H, W, 3] and cut them out; the fallback is asked where there is none."""
        for finder in self.finders:
            faces = finder(image)
            if faces:
                settings = self.settings
                return [
                    Sighting(
                        position,
                        face,
                        appearance(image, face),
                        cut_face(image, face, settings.margin, settings.image_size),
                    )
                    for face in faces
                ]
        return []


def find_tracks(images: Iterable[NDArray[np.uint8]], cutter: FaceCutter) -> tuple[list[Track], int]:
    """Find the people in frames, in order of time.

    Args:
        images: RGB, [H, W, 3] each.
        cutter: detectors and settings.

    Returns:
        The people to be used, the one with most to see first; and the number of frames.
    """
    frames = [cutter.sightings(position, image) for position, image in enumerate(images)]
    settings = cutter.settings
    least = settings.min_sightings if len(frames) >= _FEW_FRAMES else 1
    tracks = [track for track in link_faces(frames) if len(track.sightings) >= least]
    return tracks if settings.faces == "all" else tracks[:1], len(frames)


def crop_file(path: Path, kind: str, settings: CropSettings) -> Harvest:
    """Cut the faces out of a video or an image; a file that cannot be used says why and raises nothing.

    Raises:
        ConfigError: a detector cannot be loaded.
    """
    FaceCutter.of(settings)
    if not path.exists():
        return Harvest(error="there is no such file", is_missing=True)
    if not path.is_file():
        return Harvest(error="is no regular file")
    try:
        return crop_pictures(read_pictures(path, kind, settings.frames, settings.max_megapixels), settings)
    except DataError as error:
        return Harvest(error=str(error))


def crop_pictures(pictures: Iterable[tuple[int, NDArray[np.uint8]]], settings: CropSettings) -> Harvest:
    """Cut the faces out of the pictures of one file.

    Args:
        pictures: position of each frame, and its pixels [H, W, 3], RGB.
        settings: how; `frames` and `max_megapixels` are left to whoever reads the pictures.

    Raises:
        ConfigError: a detector cannot be loaded.
        DataError: a picture cannot be had; the text is the reason alone.
    """
    frames: list[int] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        for index, image in pictures:
            frames.append(index)
            yield image

    tracks, num_frames = find_tracks(images(), FaceCutter.of(settings))
    crops = [
        Crop(
            frame=frames[sighting.position],
            face=number,
            box=sighting.face.box,
            score=sighting.face.score,
            detector=sighting.face.detector,
            data=encode_crop(sighting.crop, settings),
        )
        for number, track in enumerate(tracks)
        for sighting in track.sightings
    ]
    crops.sort(key=lambda crop: (crop.frame, crop.face))
    return Harvest(num_frames, len({crop.frame for crop in crops}), crops)


def read_pictures(
    path: Path, kind: str, num_frames: int, max_megapixels: float
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read what there is to see in a file: an image as frame 0, of a video frames that are evenly spread.

    Args:
        path: the file.
        kind: video or image.
        num_frames: of a video, at most.
        max_megapixels: larger ones are refused.

    Yields:
        The frame's position and its pixels [H, W, 3], RGB.

    Raises:
        DataError: the file cannot be used; the text is the reason alone.
    """
    if kind == "video":
        try:
            for frame in read_frames(path, num_frames, max_megapixels=max_megapixels):
                yield frame.index, frame.image
        except (DataError, GeneratorExit):
            raise
        except Exception as error:  # decoders raise anything on damaged files; one file must not end the work
            raise DataError(f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})") from None
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    yield 0, decode_image(data, max_megapixels)


def encode_crop(image: NDArray[np.uint8], settings: CropSettings) -> bytes:
    """Encode a crop as the settings say; JPEG without chroma subsampling, so that one generation of it costs little."""
    if settings.format == "jpg":
        return bytes(simplejpeg.encode_jpeg(image, quality=settings.quality, colorsubsampling="444"))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
