"""Videos to RGB frames: evenly spread over the whole, decoded in order, upright, as far as a damaged file goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hai.errors import DataError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["Frame", "read_frames", "uniform_positions"]


_FORMATS: Final = "mov,matroska,avi,mpeg,mpegvideo,mpegts,asf,flv,h264,hevc,m4v,mjpeg,ogg"
"""What the files that are listed as videos may hold; playlists, which lead FFmpeg to other files, are none of it."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video."""

    index: int
    """Position among the decoded frames, from 0."""
    time: float
    """Seconds from the start of the video; 0 if the file has no times."""
    image: NDArray[np.uint8]
    """RGB, [H, W, 3]."""


def uniform_positions(total: int, wanted: int) -> list[int]:
    """Return the middles of `wanted` equal parts of `total` frames; every frame if there are fewer."""
    parts = min(total, wanted)
    return [(2 * part + 1) * total // (2 * parts) for part in range(parts)]


def read_frames(path: Path, num_frames: int, *, max_megapixels: float = 40.0, num_threads: int = 1) -> Iterator[Frame]:
    """Decode frames that are spread evenly over a video, in order, one in memory at a time.

    A first pass over the packets counts the frames, since what containers state is often wrong or missing; the second
    decodes up to the last one wanted. Seeking would decode again from the key frame before each. Where a frame is
    damaged the next whole one stands in; a video that breaks off gives what comes before.

    Args:
        path: the video file.
        num_frames: how many at most.
        max_megapixels: larger frames are refused, from the header where it says so.
        num_threads: of the decoder.

    Raises:
        DataError: no frame can be decoded; the text is the reason alone.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        _check_size(stream.codec_context, max_megapixels)
        total = sum(packet.size > 0 for packet in _packets(container))
    wanted = uniform_positions(total, num_frames) if total else []
    found = False
    with _opened(path) as container:
        container.streams.video[0].codec_context.thread_count = num_threads
        for index, frame in enumerate(_decoded(container)):
            if not wanted:
                return
            if index >= wanted[0] and not frame.is_corrupt:
                _check_size(frame, max_megapixels)
                found = True
                wanted = [position for position in wanted if position > index]
                image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                turns = round(frame.rotation / 90) % 4
                yield Frame(index, frame.time or 0.0, np.ascontiguousarray(np.rot90(image, turns)) if turns else image)
    if not found:
        raise DataError("no frame of the video can be decoded" if total else "the video holds no frames")


def _check_size(picture: Any, max_megapixels: float) -> None:
    if picture.width * picture.height > max_megapixels * 1e6:
        raise DataError(f"{picture.width}x{picture.height} pixels a frame; at most {max_megapixels:g} megapixels")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a container that has a video stream; everything FFmpeg says about it is a DataError."""
    import av

    try:
        limits = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        # whole, or FFmpeg takes what stands before a colon for a protocol
        container = av.open(str(path.absolute()), options=limits, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        if path.is_file() and path.stat().st_size == 0:
            raise DataError("the file is empty") from None
        raise DataError(f"cannot be opened as a video ({_reason(error)})") from None
    with container:
        if not container.streams.video:
            raise DataError("holds no video stream")
        yield container


def _packets(container: Any) -> Iterator[Any]:
    """Yield the packets of the first video stream as far as the file can be read."""
    import av

    try:
        yield from container.demux(container.streams.video[0])
    except av.FFmpegError:
        return


def _decoded(container: Any) -> Iterator[VideoFrame]:
    """Yield the frames of the first video stream; what cannot be decoded is left out."""
    import av

    for packet in _packets(container):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower() or type(error).__name__
