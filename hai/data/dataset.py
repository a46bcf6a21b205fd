"""Labelled images of one split, as the loop asks for them.

A data set of another task offers the same four methods, which `hai.tasks.base.Dataset` spells out:

- `__len__`: how many examples there are;
- `strata`: which of them are drawn how often, see `hai.order`;
- `batches`: requests of positions in, loaded batches out, in order;
- `prepare`: a loaded batch in, the model's input out, on the device.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hai.config.schema import RunConfig
from hai.data.augment import Change, Draw, degrade, degrades, draw_changes, draw_in_threads
from hai.data.cache import open_cache
from hai.data.images import decode_image, fit_image
from hai.data.inputs import ModelInputs
from hai.data.loader import RingLoader
from hai.data.splits import codes_of
from hai.errors import DataError
from hai.paths import is_mount
from hai.types import Batch

if TYPE_CHECKING:
    from hai.data.manifest import Manifest

__all__ = ["BatchStream", "ImageDataset"]

_MOST_THREADS = 16  # by default; more of them wait for the interpreter's lock instead of decoding


class ImageDataset:
    """Images of one split of a manifest, by position 0..N-1.

    Args:
        manifest: all examples of the run; `index` of a batch points into it.
        config: what becomes of an image, and its random changes in training.
        split: train, val or test; None: all of them.
    """

    def __init__(self, manifest: Manifest, config: RunConfig, split: str | None) -> None:
        self.manifest, self.config, self.split = manifest, config, split
        self.rows: NDArray[np.int64] = np.arange(len(manifest)) if split is None else manifest.indices(split)
        self.labels: NDArray[np.int64] = manifest.label[self.rows].astype(np.int64)
        self._crc = np.zeros(len(manifest), dtype=np.uint32)  # of content that matched its hash; 0: not yet read
        self._inputs = ModelInputs()
        self._cache = open_cache(manifest, config.data, num_uses=self._num_uses())

    def __len__(self) -> int:
        return len(self.rows)

    def strata(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Divide the examples into strata for `data.sampling`.

        Returns:
            The stratum of each example [N] and the share of each stratum in an epoch [S]. `proportional`: one stratum.
            `balanced` and `weighted`: one for each class and source, classes with equal shares; the sources of a class
            have equal shares, or shares by weight. Sources `name/part` divide the share of source `name` equally: if
            each part counted as much as another source, a source of many manipulations would hold most fakes but not
            most real images, and where an image comes from would tell its label.
        """
        if self.config.data.sampling == "proportional":
            return np.zeros(len(self), dtype=np.int64), np.ones(1)
        source, names = codes_of(self.manifest.source)
        cells = self.labels * len(names) + source[self.rows]
        counts = np.bincount(cells)
        present = np.flatnonzero(counts)  # ordered by label, then by name
        shares = np.zeros(len(present))
        for label in np.unique(present // len(names)):
            own = np.flatnonzero(present // len(names) == label)
            weights = self._source_weights([names[cell % len(names)] for cell in present[own]])
            shares[own] = weights / weights.sum()
        return (np.cumsum(counts > 0) - 1)[cells], shares / shares.sum()

    def batches(
        self, requests: Iterable[tuple[int, NDArray[np.int64]]], *, device: torch.device, training: bool
    ) -> BatchStream:
        """Load one batch per request (epoch, positions), in order and ahead of its use.

        Args:
            requests: pulled lazily, at most `hai.data.loader.RING` ahead.
            device: where the batches go.
            training: crop, resize and compress at random, as each example draws in the epoch.

        Returns:
            An iterator of batches with `image` uint8 [B, 3, S, S], `index` and `label`. Closing it ends its threads. An
            image that cannot be read any more, or has changed, raises DataError there.
        """
        jobs = (_Load(self, epoch, self.rows[positions], training) for epoch, positions in requests)
        loader = RingLoader(jobs, size=self.config.data.image_size, device=device, num_threads=self._num_threads())
        return BatchStream(loader, self.manifest, device)

    def names(self, positions: NDArray[np.int64]) -> list[str]:
        """Return the paths of examples, as the manifest has them."""
        return [self.manifest.path[row] for row in self.rows[positions].tolist()]

    def prepare(self, batch: Batch, *, epoch: int, training: bool) -> Batch:
        """Make the model's input of a loaded batch on its device: normalised float32, changed at random in training."""
        changes: list[Change] = []
        if training:
            changes = draw_changes(batch["index"], self.config.augment, seed=self.config.seed, epoch=epoch)
        return {**batch, "image": self._inputs(batch["image"], changes)}

    def load_images(self, rows: NDArray[np.int64], drawn: NDArray[np.float64] | None, out: NDArray[np.uint8]) -> None:
        """Load the images of manifest rows [N] into contiguous [N, S, S, 3]; arguments and errors of `load_image`."""
        left: Iterable[int] = range(len(rows))
        if self._cache is not None and self._cache.read_squares(rows, out):
            left = () if drawn is None else np.flatnonzero(degrades(drawn, self.config.augment)).tolist()
        for place in left:
            target = out[place]
            image = self.load_image(int(rows[place]), None if drawn is None else drawn[place], target)
            if image is not target:
                target[...] = image

    def load_image(
        self, row: int, drawn: NDArray[np.float64] | None = None, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Load the image of a manifest row, [S, S, 3].

        Args:
            row: manifest index.
            drawn: its row of `draw_in_threads`; None: no random changes.
            out: contiguous [S, S, 3] that it may be written to, and is then returned.

        Raises:
            DataError: the file has changed or cannot be read.
        """
        data = self.config.data
        image = self._cache.read(row) if self._cache else None
        if image is None:
            image = self._decode(row)
            if data.geometry != "crop":
                image = fit_image(image, data.image_size, data.geometry, out=out)
            if self._cache:
                self._cache.write(row, image)
        if drawn is None:
            return fit_image(image, data.image_size, data.geometry)
        offset = (float(drawn[Draw.CROP_Y]), float(drawn[Draw.CROP_X]))
        return degrade(fit_image(image, data.image_size, data.geometry, offset), self.config.augment, drawn)

    def _decode(self, row: int) -> NDArray[np.uint8]:
        content = self.manifest.read(row)
        crc = zlib.crc32(content) or 1  # a third of the hash's time: files can also rot between two epochs
        if crc != self._crc[row]:
            if hashlib.sha256(content).digest() != self.manifest.sha256[row].tobytes():
                raise DataError(
                    f"{self.manifest.path[row]}: content has changed since it was indexed; put it back or start anew"
                )
            self._crc[row] = crc
        try:
            return decode_image(content, self.config.data.max_megapixels)
        except DataError as error:
            raise DataError(f"{self.manifest.path[row]}: {error}") from error

    def _num_threads(self) -> int:
        asked = self.config.data.num_threads
        if not asked and len(self.rows) and is_mount(Path(self.manifest.file[self.rows[0]])):
            return _MOST_THREADS  # most of them wait for the network
        return asked or min(_MOST_THREADS, self.config.scale.cpus_per_worker or torch.get_num_threads())

    def _num_uses(self) -> float:
        """Return how often the run loads each image of this split."""
        train = self.config.train
        num_training = max(1, len(self.manifest.indices("train")))
        limit = (train.max_steps or math.inf) * train.global_batch_size / num_training
        epochs = min(train.max_epochs or math.inf, limit)
        return {"train": epochs, "val": epochs / train.eval_every_epochs}.get(self.split or "", 1)

    def _source_weights(self, sources: list[str]) -> NDArray[np.float64]:
        balanced = self.config.data.sampling == "balanced"
        configured = {source.name: 1.0 if balanced else source.weight for source in self.config.data.sources}
        parents = [_parent(source, configured) for source in sources]
        return np.array([configured[parent] / parents.count(parent) for parent in parents])


class BatchStream(Iterator[Batch]):
    """Loaded batches; an iterator that can be closed."""

    def __init__(self, loader: RingLoader[_Load], manifest: Manifest, device: torch.device) -> None:
        self._loader, self._manifest, self._device = loader, manifest, device

    def __next__(self) -> Batch:
        job, image = next(self._loader)
        label = self._manifest.label[job.rows].astype(np.int64)
        return {"image": image, "index": self._sent(job.rows), "label": self._sent(label)}

    def close(self) -> None:
        """End the threads that read ahead."""
        self._loader.close()

    def _sent(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":  # pinned, or the copy would wait for it
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


class _Load:
    """The images of one request."""

    def __init__(self, dataset: ImageDataset, epoch: int, rows: NDArray[np.int64], training: bool) -> None:
        self.rows = rows
        self._dataset = dataset
        self._drawn = draw_in_threads(rows, seed=dataset.config.seed, epoch=epoch) if training else None

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        drawn = None if self._drawn is None else self._drawn[start:stop]
        self._dataset.load_images(self.rows[start:stop], drawn, out)


def _parent(source: str, configured: Iterable[str]) -> str:
    """Name the configured source that a source of the manifest, `name` or `name/part`, belongs to."""
    return max((name for name in configured if f"{source}/".startswith(f"{name}/")), key=len)
