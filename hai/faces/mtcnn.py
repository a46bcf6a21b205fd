"""MTCNN on the CPU: three small networks that propose, sift and settle face boxes.

Source: Zhang, Zhang, Li, Qiao, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks",
IEEE Signal Processing Letters 23(10), 2016. The weights are those of the package facenet-pytorch 2.6.0 (MIT), converted
from the authors' own; only its weight files are used. As there, boxes count pixels from 1 and enclose their last one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hai.errors import ConfigError
from hai.faces.packages import MTCNN_SHA256, PACKAGES

__all__ = ["Mtcnn", "load_weights"]

_CELL, _STRIDE = 12, 2  # what one output of the proposal network sees, and how far it is to the next, pixels
_SHRINK: Final = 0.709  # from one level of the pyramid to the next: half the area
_SIFTED, _SETTLED = 24, 48  # inputs of the second and third network, pixels

_Pool = tuple[int, int] | None
_POOLS: Final[dict[str, tuple[_Pool, ...]]] = {
    "pnet": ((2, 2), None, None),
    "rnet": ((3, 2), (3, 2), None),
    "onet": ((3, 2), (3, 2), (2, 2), None),
}
"""(kernel, stride) of the pooling behind each convolution."""

Weights = dict[str, dict[str, Tensor]]
Boxes = NDArray[np.float32]
Sums = NDArray[np.int32] | NDArray[np.int64]


def load_weights(folder: Path | None = None) -> Weights:
    """Read the three networks' tensors.

    Args:
        folder: with pnet.pt, rnet.pt and onet.pt; default: that of the installed package.

    Raises:
        ConfigError: they are not there or not the known ones.
    """
    if folder is None:
        package = importlib.util.find_spec("facenet_pytorch")
        if package is None or not package.submodule_search_locations:
            raise PACKAGES["mtcnn"].missing("mtcnn")
        folder = Path(package.submodule_search_locations[0]) / "data"
    weights: Weights = {}
    for name, sha256 in MTCNN_SHA256.items():
        file = folder / f"{name}.pt"
        try:
            content = file.read_bytes()
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        else:
            reason = "" if hashlib.sha256(content).hexdigest() == sha256 else "is not the known weight file"
        if reason:
            raise ConfigError(f"detector = mtcnn; {file} {reason}; run: {PACKAGES['mtcnn'].install}")
        weights[name] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights


class Mtcnn:
    """The cascade with its weights.

    Args:
        weights: of the three networks.
        min_face: height of the smallest face that is looked for, pixels.
        thresholds: least probability of a face behind each network.
    """

    def __init__(
        self, weights: Weights, min_face: int = 32, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    ) -> None:
        self._weights, self._min_face, self._thresholds = weights, min_face, thresholds

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> tuple[Boxes, Boxes]:
        """Find faces.

        Args:
            image: RGB, [H, W, 3].

        Returns:
            Boxes (left, top, right, bottom) in pixels, possibly beyond the image, [N, 4], and the probability of a face
            in each, highest first, [N].
        """
        sums = _sums(image)
        boxes = self._propose(sums)
        boxes, scores, move = self._judge(sums, _square(boxes), "rnet", _SIFTED, self._thresholds[1])
        keep = _suppress(boxes, scores, 0.7, inclusive=False)
        boxes = _moved(boxes[keep], move[keep])
        boxes, scores, move = self._judge(sums, _square(boxes), "onet", _SETTLED, self._thresholds[2])
        boxes = _moved(boxes, move)
        keep = _suppress(boxes, scores, 0.7, of_smaller=True)
        return boxes[keep], scores[keep]

    def _propose(self, sums: Sums) -> Boxes:
        """Slide the first network over a pyramid of the image; returns its boxes, moved as it says, [N, 4]."""
        height, width = sums.shape[0] - 1, sums.shape[1] - 1
        whole = np.array([[0, 0, width, height]])
        scale, found = _CELL / self._min_face, [np.zeros((0, 9), np.float32)]
        while min(height, width) * scale >= _CELL:
            level = _shrunk(sums, whole, int(height * scale + 1), int(width * scale + 1))
            face, move = _run("pnet", self._weights["pnet"], level)
            rows, columns = torch.nonzero(face[0, 1] >= self._thresholds[0], as_tuple=True)
            cells = torch.stack((columns, rows), dim=1).float() * _STRIDE
            corners = torch.floor(torch.cat((cells + 1, cells + _CELL), dim=1) / scale)
            here = torch.cat((corners, face[0, 1, rows, columns][:, None], move[0, :, rows, columns].T), dim=1).numpy()
            found.append(here[_suppress(here[:, :4], here[:, 4], 0.5, inclusive=False)])
            scale *= _SHRINK
        every = np.concatenate(found)
        every = every[_suppress(every[:, :4], every[:, 4], 0.7, inclusive=False)]
        sides = every[:, [2, 3, 2, 3]] - every[:, [0, 1, 0, 1]]
        moved: Boxes = every[:, :4] + every[:, 5:] * sides
        return moved

    def _judge(self, sums: Sums, boxes: Boxes, name: str, size: int, threshold: float) -> tuple[Boxes, Boxes, Boxes]:
        """Look at each box with a network; returns those that hold a face, their scores and where they should move."""
        edges = np.trunc(boxes).astype(np.int64)
        edges[:, :2] = np.maximum(edges[:, :2], 1) - 1
        edges[:, 2:] = np.minimum(edges[:, 2:], (sums.shape[1] - 1, sums.shape[0] - 1))
        inside = (edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])
        boxes, edges = boxes[inside], edges[inside]
        if not len(boxes):
            return boxes, np.zeros(0, np.float32), boxes
        parts = _shrunk(sums, edges, size, size)
        face, move = (output.numpy() for output in _run(name, self._weights[name], parts))
        holds = face[:, 1] > threshold
        return boxes[holds], face[holds, 1], move[holds]


def _sums(image: NDArray[np.uint8]) -> Sums:
    """Add up all pixels above and left of each corner of an image [H, W, 3]; returns [H + 1, W + 1, 3]."""
    number = np.int32 if image.size // 3 * 255 < 2**31 else np.int64
    pixels = torch.from_numpy(image.astype(number, order="C"))  # a copy: what comes in may be read-only or reversed
    sums = F.pad(pixels.cumsum(0, dtype=pixels.dtype).cumsum(1, dtype=pixels.dtype), (0, 0, 1, 0, 1, 0))
    return sums.numpy()


def _shrunk(sums: Sums, edges: NDArray[np.int64], height: int, width: int) -> Tensor:
    """Scale parts of an image by averaging areas, all parts at once.

    Args:
        sums: of all pixels above and left of each corner, [H + 1, W + 1, 3].
        edges: left, top, right, bottom of each part, [N, 4].
        height: of the result, pixels.
        width: of the result, pixels.

    Returns:
        [N, 3, height, width], channels last in memory, which is what makes the pooling fast.
    """
    across, down = np.arange(width + 1), np.arange(height + 1)
    wide, high = (edges[:, 2:3] - edges[:, :1]), (edges[:, 3:4] - edges[:, 1:2])
    left, right = edges[:, :1] + across[:-1] * wide // width, edges[:, :1] - (-across[1:] * wide // width)
    top, bottom = edges[:, 1:2] + down[:-1] * high // height, edges[:, 1:2] - (-down[1:] * high // height)
    corners, per_row = sums.reshape(-1, 3), sums.shape[1]

    def at(row: NDArray[np.int64], column: NDArray[np.int64]) -> Sums:
        found: Sums = corners.take(row[:, :, None] * per_row + column[:, None], axis=0)  # thrice as fast as sums[y, x]
        return found

    total = at(bottom, right)
    total -= at(top, right)
    total -= at(bottom, left)
    total += at(top, left)
    area = (bottom - top)[:, :, None] * (right - left)[:, None]
    return torch.from_numpy((total / area[..., None]).astype(np.float32)).permute(0, 3, 1, 2)


def _run(name: str, weights: dict[str, Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a network to pixels 0-255, [B, 3, H, W]; returns P(no face), P(face) and moves of the box's four edges."""
    x = (pixels - 127.5) / 128
    for number, pool in enumerate(_POOLS[name], 1):
        x = F.conv2d(x, weights[f"conv{number}.weight"], weights[f"conv{number}.bias"])
        x = F.prelu(x, weights[f"prelu{number}.weight"])
        x = F.max_pool2d(x, *pool, ceil_mode=True) if pool else x
    if name == "pnet":
        head = [F.conv2d(x, weights[f"conv4_{part}.weight"], weights[f"conv4_{part}.bias"]) for part in (1, 2)]
    else:
        number = len(_POOLS[name]) + 1
        x = x.permute(0, 3, 2, 1).flatten(1)  # the order of the weights is column-major
        x = F.linear(x, weights[f"dense{number}.weight"], weights[f"dense{number}.bias"])
        x = F.prelu(x, weights[f"prelu{number}.weight"])
        number += 1
        head = [
            F.linear(x, weights[f"dense{number}_{part}.weight"], weights[f"dense{number}_{part}.bias"])
            for part in (1, 2)
        ]
    return F.softmax(head[0], dim=1), head[1]


def _square(boxes: Boxes) -> Boxes:
    """Grow the shorter sides of boxes about their centres."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(axis=1, keepdims=True) if len(boxes) else sides[:, :1]
    corner = boxes[:, :2] + (sides - longer) / 2
    return np.concatenate((corner, corner + longer), axis=1)


def _moved(boxes: Boxes, move: Boxes) -> Boxes:
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    result: Boxes = boxes + move * np.concatenate((sides, sides), axis=1)
    return result


def _suppress(
    boxes: Boxes, scores: Boxes, most: float, *, of_smaller: bool = False, inclusive: bool = True
) -> NDArray[np.int64]:
    """Leave out boxes that overlap a better one.

    Args:
        boxes: [N, 4].
        scores: [N].
        most: largest overlap that both survive.
        of_smaller: overlap is a share of the smaller box, else of the union.
        inclusive: boxes enclose their last pixel.

    Returns:
        Positions that stay, best first.
    """
    one = np.float32(inclusive)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2] + one, axis=1)
    order, keep = np.argsort(-scores, kind="stable"), list[int]()
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        common = np.prod(np.maximum(high - low + one, 0), axis=1)
        whole = np.minimum(areas[best], areas[rest]) if of_smaller else areas[best] + areas[rest] - common
        order = rest[common <= most * whole]
    return np.array(keep, dtype=np.int64)
