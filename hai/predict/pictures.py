"""One file to the pictures that a model looks at: the one path of the command, the API and the packages.

Faces are cut out as `hai preprocess` does it, through the same codec. Where a file has no face, the middle square of
each frame is looked at instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.cpus import num_cpus
from hai.data.images import decode_image, fit_image
from hai.errors import DataError, HaiError
from hai.faces.boxes import Face, square_around
from hai.faces.crops import crop_pictures, encode_crop, read_pictures
from hai.faces.settings import CropSettings
from hai.predict.files import Source, is_video

if TYPE_CHECKING:
    from hai.trained import Layout

__all__ = ["Job", "Pictures", "View", "load_picture", "load_pictures", "num_threads", "pictures_of"]

_MOST_THREADS: Final = 16
_NEARLY_SQUARE: Final = 1.05
_FILLED: Final = 0.8
"""Share of a square image's side that the square around its face has at least if the image is a crop already."""

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """How files become pictures for a model.

    Args:
        size: height and width of a picture, pixels.
        geometry: how images are fitted to it.
        max_megapixels: larger images and frames are refused.
        cut: how faces are cut out first; None: they are not.
    """

    size: int
    geometry: Literal["resize", "pad", "crop"]
    max_megapixels: float
    cut: CropSettings | None = None


class Job(NamedTuple):
    """A file to look at.

    Args:
        key: of whoever asks.
        source: what to look at.
        frames: of a video, at most.
        is_ready: it is a face crop, from which nothing is cut.
    """

    key: int
    source: Source
    frames: int = 16
    is_ready: bool = False


class Pictures(NamedTuple):
    """What there is to see in a file.

    Args:
        pixels: uint8 [N, S, S, 3].
        num_faces: how many of them are cut out around a face.
        error: why the file cannot be used; "" if it can.
        reading: seconds that reading took, which few frames hardly shorten.
        looking: seconds of everything else, in proportion to the frames.
        num_read: frames that were read.
    """

    pixels: Image
    num_faces: int = 0
    error: str = ""
    reading: float = 0.0
    looking: float = 0.0
    num_read: int = 0


def load_pictures(view: View, job: Job) -> Pictures:
    """Read a file and make its pictures; a file that cannot be used says why and raises nothing.

    Raises:
        ConfigError: a face detector cannot be loaded.
    """
    began = time.perf_counter()
    nothing = np.zeros((0, view.size, view.size, 3), np.uint8)
    try:
        pixels, num_faces, reading, num_read = pictures_of(view, job)
    except DataError as error:
        return Pictures(nothing, error=str(error))
    except HaiError:
        raise
    except MemoryError:
        return Pictures(nothing, error="needs more memory than there is")
    except Exception as error:  # detectors meet images that nobody thought of; one file must not end the work
        reason = " ".join(str(error).split())
        return Pictures(nothing, error=f"cannot be looked at ({type(error).__name__}: {reason})")
    return Pictures(pixels, num_faces, "", reading, time.perf_counter() - began - reading, num_read)


def pictures_of(view: View, job: Job) -> tuple[Image, int, float, int]:
    """Do as `load_pictures`, but raise DataError; returns pixels, faces, seconds of reading, frames read."""
    video = is_video(job.source)
    whole: list[Image] = []
    if view.cut is None or job.is_ready:
        frames = _Watched(_read(view, job, video), lambda image: whole.append(_fitted(image, view)))
        for _ in frames:
            pass
        return _stacked(whole), 0, frames.seconds, frames.count
    settings = view.cut
    frames = _Watched(_read(view, job, video), lambda image: whole.append(_middle(image, settings) if video else image))
    harvest = crop_pictures(iter(frames), settings)
    if not video and harvest.crops and _is_filled(whole[0], harvest.crops[0].box, settings):
        return _stacked([_fitted(whole[0], view)]), 1, frames.seconds, frames.count
    if not video:
        whole = [_middle(image, settings) for image in whole]
    encoded = [crop.data for crop in harvest.crops] or [encode_crop(image, settings) for image in whole]
    pictures = [_fitted(decode_image(data), view) for data in encoded]
    return _stacked(pictures), len(harvest.crops), frames.seconds, frames.count


class _Watched:
    """The frames of a file on their way: timed, counted and shown to `see`."""

    def __init__(self, frames: Iterator[tuple[int, Image]], see: Callable[[Image], None]) -> None:
        self._frames, self._see = frames, see
        self.seconds, self.count = 0.0, 0

    def __iter__(self) -> Iterator[tuple[int, Image]]:
        while True:
            began = time.perf_counter()
            found = next(self._frames, None)
            self.seconds += time.perf_counter() - began
            if found is None:
                return
            self.count += 1
            self._see(found[1])
            yield found


def _fitted(image: Image, view: View) -> Image:
    return np.ascontiguousarray(fit_image(image, view.size, view.geometry))


def _read(view: View, job: Job, video: bool) -> Iterator[tuple[int, Image]]:
    if isinstance(job.source, Path):
        return read_pictures(job.source, "video" if video else "image", job.frames, view.max_megapixels)
    if isinstance(job.source, bytes):
        return iter([(0, decode_image(job.source, view.max_megapixels))])
    return iter([(0, job.source)])


def _middle(image: Image, settings: CropSettings) -> Image:
    """Cut out the largest square in the middle, scaled as a face would be."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side].copy()
    return fit_image(square, settings.image_size, "resize") if settings.image_size else square


def _is_filled(image: Image, box: tuple[float, float, float, float], settings: CropSettings) -> bool:
    """Tell whether an image is a face crop already: square, and filled by its face with the margin around it."""
    height, width = image.shape[:2]
    _, _, side = square_around(Face(box, 1.0, ""), width, height, settings.margin)
    shorter, longer = sorted((height, width))
    return bool(longer <= _NEARLY_SQUARE * shorter and side >= _FILLED * shorter)


def _stacked(pictures: list[Image]) -> Image:
    if not pictures:
        raise DataError("nothing to look at in it")
    return np.stack(pictures)


def load_picture(path: Path, layout: Layout) -> Image:
    """Load an image file as a model wants it, [S, S, 3]; raises DataError with the reason alone."""
    if is_video(path):
        raise DataError("is a video; only images can be compared")
    view = View(layout.size, layout.geometry, layout.max_megapixels)
    return pictures_of(view, Job(0, path))[0][0]  # type: ignore[no-any-return]


def num_threads() -> int:
    """Return how many threads decode images."""
    return min(_MOST_THREADS, num_cpus())
