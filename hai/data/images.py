"""Image bytes to RGB as a person sees it, and RGB to the model's square: the one path of training and serving."""

from __future__ import annotations

import io
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hai.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "AnyImage",
    "decode_image",
    "decode_small",
    "each_image",
    "fit_image",
    "refuse_unusable",
    "resize_image",
    "rgb_pixels",
]

logger = logging.getLogger(__name__)

AnyImage = str | Path | bytes | NDArray[np.uint8] | Image.Image
"""A file, the content of an image file, pixels [H, W, 3] in RGB, or an image of Pillow's."""

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "PSD")
"""Pillow's decoders that may open a file; all others stay closed."""

IMAGE_SUFFIXES: Final = (
    frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"))
    | frozenset((".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".psd"))
    | frozenset((".heic", ".heif", ".jxl"))
)
"""File name endings, lower case, that count as images in a folder; the last three are named as unreadable."""

_NO_DECODER: Final = (
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", 0, "JPEG XL"),
    (b"ftyphei", 4, "HEIF"),
    (b"ftyphev", 4, "HEIF"),
    (b"ftypmif1", 4, "HEIF"),
    (b"ftypmsf1", 4, "HEIF"),
)
_ORIENTATION: Final = 0x0112
_PILLOW_QUIET: Final = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_filters_lock = threading.Lock()


def decode_image(data: bytes, max_megapixels: float = 40.0) -> NDArray[np.uint8]:
    """Decode one image to the RGB that a person sees.

    EXIF orientation is applied, palette, gray and CMYK become RGB, transparency is composited over white, 16 bits are
    scaled to 8, animations and multi-page files give their first frame; colour profiles are ignored. Plain JPEGs take a
    faster decoder whose result is bit for bit Pillow's.

    Args:
        data: the whole file.
        max_megapixels: larger images are refused from their header, before their pixels are allocated.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DataError: the image cannot be used; the text is the reason alone, since the bytes have no name.
    """
    size = _plain_jpeg(data)
    if size is not None:
        _check_size(*size, max_megapixels)
        try:
            return simplejpeg.decode_jpeg(data)  # type: ignore[no-any-return]
        except ValueError:
            pass  # damaged or unusual: Pillow tolerates what is harmless and names what is not
    _quiet_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_megapixels)
            image.load()
            return _to_rgb(_upright(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(_unidentified(data)) from None
    except Image.DecompressionBombError:
        raise DataError(f"refused as a decompression bomb; larger than {max_megapixels:g} megapixels") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot be decoded: {reason}") from None


def rgb_pixels(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn an image of Pillow's, or pixels in RGB, into what `decode_image` makes of its file, [H, W, 3].

    Raises:
        DataError: it cannot be; the text is the reason alone.
    """
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise DataError(f"pixels are {pixels.dtype} {list(pixels.shape)}; must be uint8 [height, width, 3], RGB")
        return np.ascontiguousarray(pixels)  # torch refuses negative strides, such as those of bgr[:, :, ::-1]
    _quiet_pillow()
    try:
        return _to_rgb(_upright(image))
    except DataError:
        raise
    except Exception as error:  # an image that was opened and not yet read may be damaged
        raise DataError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from None


def each_image(images: AnyImage | Iterable[AnyImage]) -> Iterable[AnyImage]:
    """Go through images, also where one alone is given; so are pixels of any shape that cannot be several images."""
    if isinstance(images, np.ndarray):
        alone = images.ndim <= 3 and images.dtype.kind not in "OSU"  # arrays of names and of other objects are lists
    else:
        alone = isinstance(images, str | Path | bytes | Image.Image)
    return [images] if alone else images  # type: ignore[list-item, return-value]


def refuse_unusable(images: Sequence[AnyImage], errors: Iterable[str]) -> None:
    """Raise a DataError with a line for each image that has an error."""
    faults = [
        f"{image if isinstance(image, str | Path) else f'image {place}'}: {error}"
        for place, (image, error) in enumerate(zip(images, errors, strict=True))
        if error
    ]
    if faults:
        raise DataError("\n".join(faults))


def decode_small(data: bytes, side: int, max_megapixels: float = 40.0) -> NDArray[np.uint8]:
    """Decode one image at a size of its decoder's choice, for looking at it as a whole: several times faster.

    Args:
        data: the whole file.
        side: both sides of the result have at least this many pixels if the image has them.
        max_megapixels: as in decode_image.

    Returns:
        uint8 [h, w, 3].

    Raises:
        DataError: as decode_image.
    """
    size = _plain_jpeg(data)
    if size is not None:
        _check_size(*size, max_megapixels)
        try:
            return simplejpeg.decode_jpeg(data, min_height=side, min_width=side)  # type: ignore[no-any-return]
        except ValueError:
            pass  # as in decode_image
    return decode_image(data, max_megapixels)


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise DataError(
            f"{width}x{height} pixels refused as a decompression bomb; at most data.max_megapixels = {max_megapixels:g}"
        )
    if width < 1 or height < 1:
        raise DataError(f"{width}x{height} pixels; the image is empty")


def _quiet_pillow() -> None:
    """Keep Pillow's remarks on odd files from the console (and from becoming errors); what matters is an exception.

    Not `warnings.catch_warnings`: that is not safe in threads.
    """
    if _PILLOW_QUIET not in warnings.filters:
        with _filters_lock:
            warnings.filterwarnings("ignore", module=r"PIL\.")


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Read (width, height) of an upright 8-bit gray or YCbCr JPEG from its markers; None for every other file."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, end, has_exif, is_ycbcr = 2, len(data) - 9, False, True
    while at < end:
        if data[at] != 0xFF:
            return None
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1:
            segment = data[at + 4 : at + 2 + length]
            if segment[:4] == b"Exif":
                if has_exif or _exif_orientation(segment[6:]) != 1:
                    return None
                has_exif = True
            elif b"Orientation" in segment:
                return None
        elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe":
            is_ycbcr = length >= 14 and data[at + 15] == 1
        elif marker in (0xC0, 0xC1, 0xC2):
            precision, height, width, parts = struct.unpack_from(">BHHB", data, at + 4)
            if precision != 8 or not height or not width or at + 10 + 3 * parts > len(data):
                return None
            if parts == 3 and (not is_ycbcr or data[at + 10 : at + 19 : 3] == b"RGB"):
                return None
            return (width, height) if parts in (1, 3) else None
        elif marker in (0xFF, 0xD8, 0xD9, 0xDA) or (0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return None  # fill bytes, no frame, or a frame of another kind
        at += 2 + length
    return None


def _exif_orientation(tiff: bytes) -> int:
    """Read the orientation from an EXIF block: 1 if it has none, 0 if the block is odd."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 0
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return int(value) if kind == 3 and number == 1 else 0
    except struct.error:
        return 0
    return 1


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation that the metadata ask for; damaged metadata ask for nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # metadata parsers raise anything on damaged bytes; the pixels are still good
        logger.debug("orientation ignored: %s", error)
        return image


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        gray = _scaled_to_8_bits(image)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _scaled_to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale deep gray values [H, W] to 0-255; `transparency` marks a gray level that is see-through, so white."""
    values: NDArray[Any] = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise DataError("floating-point pixels outside 0-1; save as 8- or 16-bit")
        return (values * 255 + 0.5).astype(np.uint8)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise DataError("32-bit pixels outside 0-65535; save as 8- or 16-bit")
    gray = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray[values == clear] = 255
    return gray


def _unidentified(data: bytes) -> str:
    if not data:
        return "the file is empty"
    for magic, at, name in _NO_DECODER:
        if data.startswith(magic, at):
            return f"a {name} image, for which there is no decoder here; convert it to JPEG or PNG"
    return "not an image of a known kind, or its header is damaged"


def fit_image(
    image: NDArray[np.uint8],
    size: int,
    geometry: Literal["resize", "pad", "crop"],
    offset: tuple[float, float] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Make an image the model's square, within 1 level of Pillow's bilinear filter; of millions of values one is 2 off.

    Args:
        image: uint8 [H, W, 3], RGB.
        size: height and width of the result, pixels.
        geometry: `resize` squashes; `pad` keeps the aspect and centres it on black; `crop` takes a square at native
            resolution, smaller images being enlarged first until their shorter side fits.
        offset: where the crop lies, (down, right) in [0, 1)^2 of the room there is; None: the centre. Only `crop`
            looks at it.
        out: contiguous uint8 [size, size, 3] that `resize` may write to.

    Returns:
        uint8 [size, size, 3]; the image itself if nothing had to change, else `out`, new or a view of the image.
    """
    height, width = image.shape[:2]
    if geometry == "resize":
        return resize_image(image, size, size, out)
    if geometry == "pad":
        scale = size / max(height, width)
        image = resize_image(image, max(1, round(height * scale)), max(1, round(width * scale)))
        height, width = image.shape[:2]
        if height == width == size:
            return image
        square = np.zeros((size, size, 3), dtype=np.uint8)
        top, left = (size - height) // 2, (size - width) // 2
        square[top : top + height, left : left + width] = image
        return square
    shorter = min(height, width)
    if shorter < size:
        image = resize_image(image, max(size, round(height * size / shorter)), max(size, round(width * size / shorter)))
        height, width = image.shape[:2]
    down, right = height - size, width - size
    top, left = (
        (down // 2, right // 2) if offset is None else (int(offset[0] * (down + 1)), int(offset[1] * (right + 1)))
    )
    return image[top : top + size, left : left + size]


def resize_image(
    image: NDArray[np.uint8], height: int, width: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Scale an image [H, W, 3] as close to Pillow as `fit_image` says; one that fits is returned itself.

    The result is `out` where that is given.
    """
    if image.shape[:2] == (height, width):
        return image
    import torch

    planes = _planes(torch.from_numpy(image if image.flags.writeable else image.copy()))
    if out is not None:  # what `interpolate` calls, which can write to a given place
        torch.ops.aten._upsample_bilinear2d_aa.out(planes, [height, width], False, out=_planes(torch.from_numpy(out)))
        return out
    fitted = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    result: NDArray[np.uint8] = fitted[0].permute(1, 2, 0).contiguous().numpy()
    return result


def _planes(pixels: Tensor) -> Tensor:
    """View [H, W, 3] as [1, 3, H, W] in channels_last memory: nothing is transposed."""
    return pixels.unsqueeze(0).permute(0, 3, 1, 2)
