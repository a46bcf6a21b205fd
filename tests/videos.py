"""Videos made for tests: frames that say their number, and faces that move over a plain wall."""

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def save_video(path: Path, frames: Iterable[Image], *, rate: int = 10, codec: str = "mpeg4", crf: str = "18") -> Path:
    """Encode RGB frames [H, W, 3] of even sides; the container follows from the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = None
        for image in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options={"crf": crf, "qscale": "2"})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.bit_rate = 4_000_000
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def numbered(count: int, height: int = 48, width: int = 64) -> list[Image]:
    """Draw frames whose gray level is 4 times their number; the top left quarter is white."""
    frames = []
    for number in range(count):
        image = np.full((height, width, 3), 4 * number, dtype=np.uint8)
        image[: height // 4, : width // 4] = 255
        frames.append(image)
    return frames


def number_of(image: Image) -> int:
    """Read the number of such a frame."""
    return round(float(image[image.shape[0] // 2 :, image.shape[1] // 2 :].mean()) / 4)


def face_photo() -> Image:
    """Return the face of a photograph that comes with scikit-image, RGB [200, 160, 3]."""
    import skimage.data

    photo: Image = skimage.data.astronaut()[20:220, 140:300]
    return photo


def wall(height: int = 240, width: int = 320) -> Image:
    """Draw a gray wall without anything in it."""
    shade = np.linspace(90, 150, width)[None, :, None] + np.linspace(-10, 10, height)[:, None, None]
    return np.repeat(shade, 3, axis=2).astype(np.uint8)


def with_face(image: Image, face: Image, left: int, top: int) -> Image:
    """Return a copy of an image with a face put over it."""
    image = image.copy()
    image[top : top + face.shape[0], left : left + face.shape[1]] = face
    return image


def save_raw(root: Path) -> Path:
    """Make raw data: moving faces, a wall without one, an image, and files that are broken; 13 in all, 10 of use."""
    from PIL import Image as Picture

    face = face_photo()

    def film(left: int, step: int) -> list[Image]:
        return [with_face(wall(), face, left + step * at, 20) for at in range(8)]

    for number in range(4):
        save_video(root / f"real/person{number}.mp4", film(10 + 10 * number, 3))
        save_video(root / f"fake/Deepfakes/swap{number}.mp4", film(100 - 10 * number, 2))
    save_video(root / "fake/FaceSwap/swap0.mp4", film(60, 4))
    save_video(root / "fake/FaceSwap/nobody.mp4", [wall()] * 8)
    Picture.fromarray(with_face(wall(), face, 40, 30)).save(root / "real/사진 1.png")
    (root / "real/broken.mp4").write_bytes(b"no video at all")
    (root / "fake/Deepfakes/empty.mp4").touch()
    return root
