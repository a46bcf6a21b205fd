"""How a trained model's metrics hold when its images are compressed, blurred, noisy, smaller, darker or brighter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from hai.data.augment import normalise
from hai.data.content import num_threads
from hai.data.disturb import DISTURBANCES, Disturbance, disturb
from hai.data.images import decode_image, fit_image
from hai.data.manifest import Manifest
from hai.errors import DataError
from hai.memory import free_memory, is_out_of_memory
from hai.rank_results import comparisons_among
from hai.results import probability_of
from hai.tasks import build_task
from hai.tasks.base import Task
from hai.trained import Trained
from hai.types import Arrays, Record

__all__ = ["MOST_IMAGES", "measure_robustness", "sample_rows"]

MOST_IMAGES: Final = 1000
"""Images that are measured; of more, as many, evenly spread."""

_CHANGES: Final = (Disturbance("none", 0.0), *DISTURBANCES)
_AT_ONCE: Final = 16
_MOST_BYTES: Final = 200e6
"""Images that are read at once, fewer where they are large: of all their changes together."""
_MOST_PIXELS: Final = 50e6
"""Of the files that are being changed at once, 60 bytes each: fewer threads where they are large."""


def measure_robustness(
    trained: Trained,
    manifest: Manifest,
    rows: NDArray[np.int64],
    measure: Callable[[Arrays], dict[str, Record]],
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Record:
    """Predict images as they are and after each change of `hai.data.disturb`, and measure each time.

    Args:
        trained: a detector or a ranker.
        manifest: the examples.
        rows: which of them, see `sample_rows`.
        measure: predictions as of `hai.predictions.predict_split` -> metrics {name: {value, low, high}}.
        show: called with (done, total) images.

    Returns:
        `n` and `conditions`, a list of `change`, `level` and `metrics`, first the images as they are ("none"). A
        detector's also have `changed_calls`, the share of images that are called another class than as they are.

    Raises:
        DataError: an image has become unreadable.
    """
    task = build_task(trained.config)
    parts: list[list[Arrays]] = [[] for _ in _CHANGES]
    done, at_once = 0, _AT_ONCE
    for chunk, images in _loaded(trained, manifest, rows):
        for part, image in zip(parts, images, strict=True):
            predicted, at_once = _predicted(trained, task, manifest, chunk, image, at_once)
            part.append(predicted)
        done += len(chunk)
        show(done, len(rows))
    predictions = [{name: np.concatenate([piece[name] for piece in part]) for name in part[0]} for part in parts]
    conditions = []
    for change, predicted in zip(_CHANGES, predictions, strict=True):
        condition: Record = {"change": change.kind, "level": change.level, "metrics": measure(predicted)}
        if "probability_fake" in predicted:
            condition["changed_calls"] = _changed(trained, predictions[0], predicted)
        conditions.append(condition)
    return {"n": len(rows), "conditions": conditions}


def sample_rows(manifest: Manifest, rows: NDArray[np.int64], most: int = MOST_IMAGES) -> NDArray[np.int64]:
    """Choose at most so many rows of a manifest, evenly: its order by hash makes them a random choice.

    Where images are known by comparisons, those of randomly chosen ones, the same at every call: of images chosen one
    by one hardly any two would have been compared.
    """
    if len(rows) <= most:
        return rows
    compared = comparisons_among(manifest, rows)[:, :2]
    if not len(compared):
        return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
    drawn = np.random.default_rng(0).permutation(compared).ravel()
    first = np.sort(np.unique(drawn, return_index=True)[1])[:most]
    chosen: NDArray[np.int64] = rows[np.sort(drawn[first])]
    return chosen


def _loaded(
    trained: Trained, manifest: Manifest, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield some rows [n] and their pictures as they are and changed, uint8 [changes, n, S, S, 3], the next ones ahead.

    Each file is read once, and what it becomes depends on its content alone.
    """
    layout = trained.layout

    def load(row: int) -> NDArray[np.uint8]:
        key = int.from_bytes(manifest.sha256[row, :8].tobytes(), "little")
        found = np.empty((len(_CHANGES), layout.size, layout.size, 3), np.uint8)
        try:
            image = decode_image(manifest.read(row), layout.max_megapixels)
            for number, change in enumerate(_CHANGES):  # one after the other: each may have 40 megapixels
                changed = image if change.kind == "none" else disturb(image, change, key)
                found[number] = fit_image(changed, layout.size, layout.geometry)
        except (DataError, OSError) as error:  # Pillow writes no JPEG of more than 65,500 pixels a side
            raise DataError(f"{manifest.path[row]}: {error}; leave it out of --robustness") from error
        return found

    size = max(1, min(_AT_ONCE, int(_MOST_BYTES / (len(_CHANGES) * 3 * layout.size**2))))
    chunks = iter([rows[start : start + size] for start in range(0, len(rows), size)])
    largest = int((manifest.width[rows].astype(np.int64) * manifest.height[rows]).max())
    threads = max(1, min(num_threads(), int(_MOST_PIXELS / max(largest, 1))))
    with ThreadPoolExecutor(threads, thread_name_prefix="disturb") as pool:
        waiting: deque[tuple[NDArray[np.int64], list[Future[NDArray[np.uint8]]]]] = deque()
        try:
            while True:
                for chunk in islice(chunks, 2 - len(waiting)):
                    waiting.append((chunk, [pool.submit(load, row) for row in chunk.tolist()]))
                if not waiting:
                    return
                chunk, futures = waiting.popleft()
                yield chunk, np.stack([future.result() for future in futures], axis=1)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _predicted(
    trained: Trained,
    task: Task,
    manifest: Manifest,
    rows: NDArray[np.int64],
    image: NDArray[np.uint8],
    at_once: int,
) -> tuple[Arrays, int]:
    """Predict pictures uint8 [n, S, S, 3] of some rows; return also how many at once memory had room for."""
    parts: list[Arrays] = []
    start = 0
    while start < len(rows):
        some = slice(start, start + at_once)
        try:
            parts.append(_forwarded(trained, task, manifest, rows[some], image[some]))
            start += at_once
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(rows[some]) == 1:
                raise
        free_memory(trained.device)
        at_once = len(rows[some]) // 2
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, at_once


def _forwarded(
    trained: Trained, task: Task, manifest: Manifest, rows: NDArray[np.int64], image: NDArray[np.uint8]
) -> Arrays:
    batch = {
        "index": torch.from_numpy(rows),
        "label": torch.from_numpy(manifest.label[rows].astype(np.int64)),
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))),
    }
    batch = {name: values.to(trained.device) for name, values in batch.items()}
    with torch.inference_mode():
        predicted = task.predict(trained.model, {**batch, "image": normalise(batch["image"])})
    return {"index": rows, **{name: values.cpu().numpy() for name, values in predicted.items()}}


def _changed(trained: Trained, before: Arrays, after: Arrays) -> float:
    """Return the share of calls at the stored threshold that have changed."""
    calls = [
        probability_of(predictions["logit"].astype(np.float64) / trained.temperature) >= trained.threshold
        for predictions in (before, after)
    ]
    return float((calls[0] != calls[1]).mean())
