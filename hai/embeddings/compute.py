"""Encode the images whose embeddings are not kept yet, with all workers, a durable piece at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hai import errors
from hai.console import shown_seconds
from hai.data.dataset import ImageDataset
from hai.distributed import Workers
from hai.embeddings.shards import as_keys
from hai.embeddings.store import EmbeddingStore
from hai.errors import DataError
from hai.memory import free_memory, is_out_of_memory
from hai.types import Batch

__all__ = ["compute_embeddings", "encoding_batch_size"]

_ROUND_S: Final = 15.0
"""How long the workers encode before what they have is kept: the most that a killed run repeats, and a stop waits."""
_ROUND_ROWS: Final = 4096
_SAY_EVERY_S: Final = 30.0
_BATCH_PIXELS: Final = 1 << 23
_LARGEST_BATCH: Final = 128
_CPU_BATCH: Final = 4


def compute_embeddings(
    store: EmbeddingStore,
    images: ImageDataset,
    encode: Callable[[Batch], Tensor],
    workers: Workers,
    *,
    say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
    round_rows: int = _ROUND_ROWS,
) -> bool:
    """Encode each content that a worker's store lacks once, and keep it in the stores of all.

    The workers go in rounds. In a round each encodes its own images for a while; then the rows are gathered and every
    worker keeps all of them, so that machines without a common disk end up with equal stores; the first worker alone
    sends them to a bucket. An error of any worker is raised on all of them, after the round's rows were kept.

    Args:
        store: this worker's; the same key on all.
        images: the images, the same on all workers.
        encode: takes a loaded batch, returns its embeddings [B, D].
        workers: this worker's group.
        say: takes a line for people; used by the first worker.
        stop: asked on the first worker between batches; what is done by then is kept.
        round_rows: most rows that the workers encode in a round, but for the last batch of each.

    Returns:
        False if it was stopped before the end.

    Raises:
        DataError: an image cannot be read or has no finite embedding.
        StorageError: the store cannot be read or written.
    """
    sha256 = images.manifest.sha256[images.rows]
    _, distinct = np.unique(as_keys(sha256), return_index=True)
    missing, error = _attempt(lambda: store.missing(sha256[distinct]))
    _raise_together(workers, error)
    lacking = distinct[missing] if missing is not None else distinct
    todo = np.unique(workers.gather_arrays({"position": lacking})["position"])
    report = _Report(len(todo), len(distinct), store.place, say if workers.is_first else lambda line: None)
    own = todo[workers.rank :: workers.world_size]
    done, most, is_stopping = 0, max(1, round_rows // workers.world_size), False

    def asked() -> bool:
        nonlocal is_stopping
        is_stopping = is_stopping or (workers.is_first and stop())
        return is_stopping

    with closing(_Encoder(store, images, encode, own, workers.device)) as encoder:
        while done < len(todo) and not workers.agree(int(asked())):
            positions, rows, error = encoder.encode_round(most, asked)
            gathered = workers.gather_arrays({"position": positions, "row": rows})
            order = np.argsort(gathered["position"])
            at, kept = gathered["position"][order], gathered["row"][order]
            _, trouble = _attempt(lambda: store.add(sha256[at], kept, upload=workers.is_first))  # noqa: B023
            _raise_together(workers, error or trouble)
            done += len(at)
            report.update(done)
    if workers.is_first:
        store.send()
    return done == len(todo)


def encoding_batch_size(image_size: int, device_type: str) -> int:
    """Return how many images of `image_size` pixels a side are encoded at once."""
    most = max(1, min(_LARGEST_BATCH, _BATCH_PIXELS // image_size**2))
    return min(_CPU_BATCH, most) if device_type == "cpu" else most


class _Encoder:
    """One worker's images, loaded ahead and encoded as long as a round lasts."""

    def __init__(
        self,
        store: EmbeddingStore,
        images: ImageDataset,
        encode: Callable[[Batch], Tensor],
        positions: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self._store, self._images, self._encode, self._positions = store, images, encode, positions
        self._size = encoding_batch_size(images.config.data.image_size, device.type)
        self._at_once = self._size
        self._batches = images.batches(self._requests(), device=device, training=False)
        self._at = 0

    def _requests(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        for start in range(0, len(self._positions), self._size):
            yield 0, self._positions[start : start + self._size]

    def encode_round(
        self, most: int, asked: Callable[[], bool]
    ) -> tuple[NDArray[np.int64], NDArray[Any], Exception | None]:
        """Encode until the time, the rows or the images are used up; an error ends the round after what was done."""
        first, rows = self._at, [np.empty((0, self._store.width), dtype=self._store.dtype)]
        end = time.monotonic() + _ROUND_S
        error: Exception | None = None
        while self._at < len(self._positions) and self._at - first < most and not asked():
            encoded, error = _attempt(self._encode_batch)
            if encoded is None:
                break
            rows.append(encoded)
            self._at += len(encoded)
            if time.monotonic() >= end:
                break
        return self._positions[first : self._at], np.concatenate(rows), error

    def _encode_batch(self) -> NDArray[Any]:
        batch = next(self._batches)
        with np.errstate(over="ignore"):
            encoded = self._encoded(batch).astype(self._store.dtype)
        is_finite = np.isfinite(encoded).all(axis=1)
        if not is_finite.all():
            row = int(batch["index"][int(is_finite.argmin())])
            raise DataError(
                f"{self._images.manifest.path[row]}: its embedding is not finite in {self._store.dtype.name}; "
                "set data.embedding_precision=float32 or train.mixed_precision=false"
            )
        return encoded

    def _encoded(self, batch: Batch) -> NDArray[Any]:
        """Encode a loaded batch; where memory runs out, half as many images at once from then on."""
        rows: list[NDArray[Any]] = []
        start = 0
        while start < len(batch["index"]):
            piece = {name: values[start : start + self._at_once] for name, values in batch.items()}
            try:
                rows.append(self._encode(piece).float().cpu().numpy())
                start += self._at_once
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(piece["index"]) == 1:
                    raise
            free_memory(piece["index"].device)
            self._at_once = len(piece["index"]) // 2
        return np.concatenate(rows)

    def close(self) -> None:
        """End the threads that read ahead."""
        self._batches.close()


class _Report:
    """Lines about the progress, at sensible intervals."""

    def __init__(self, total: int, num_images: int, place: str, say: Callable[[str], None]) -> None:
        self._total, self._say = total, say
        self._start = self._said = time.monotonic()
        kept = f"features: {num_images - total} of {num_images} images are kept in {place}"
        say(f"{kept}; encoding {total}" if total else kept)

    def update(self, done: int) -> None:
        now = time.monotonic()
        if done < self._total and now - self._said < _SAY_EVERY_S:
            return
        self._said = now
        rate = done / max(now - self._start, 1e-9)
        left = f", about {shown_seconds((self._total - done) / rate)} left" if 0 < done < self._total else ""
        self._say(f"features: encoded {done} of {self._total} images, {rate:.3g} images/s{left}")


def _attempt(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _raise_together(workers: Workers, error: Exception | None) -> None:
    """Raise an error of any worker on all of them, or the others would wait for the one that failed."""
    if not workers.largest(int(error is not None)):
        return
    told = b"" if error is None else json.dumps([type(error).__name__, str(error)]).encode() + b"\n"
    gathered = workers.gather_arrays({"text": np.frombuffer(told, dtype=np.uint8)})["text"].tobytes()
    if error is not None:
        raise error
    kind, text = json.loads(gathered.split(b"\n")[0])
    known = getattr(errors, kind, None) if kind in errors.__all__ else None
    raise known(text) if known else RuntimeError(f"another worker failed: {kind}: {text}")
