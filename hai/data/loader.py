"""The ring loader: threads fill a few reused uint8 buffers ahead of the consumer, in strict order."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hai.data.buffers import Buffers

__all__ = ["RING", "Job", "RingLoader"]

RING = 4
"""Batches loaded or being loaded when the consumer asks for one."""

_LOOK_AGAIN = 1.0  # seconds; a garbage collection may stop a thread just before it waits, and nobody notifies it
_CHUNK = 8  # images that a thread takes at once: few, so that all threads share the first batch
_PATIENCE = 5.0  # seconds to wait for a thread that is still decoding when the loader ends


class Job(Protocol):
    """One batch to load."""

    def __len__(self) -> int: ...

    def load(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Write images start to stop into out [stop - start, S, S, 3]; called in threads, several at once."""
        ...


JobT = TypeVar("JobT", bound=Job)


class RingLoader(Generic[JobT]):
    """Load batches ahead of their use and yield them in the order of the jobs: (job, uint8 [B, 3, S, S] on device).

    Threads, not processes: decoding, resizing and copying release the interpreter's lock, and nothing has to be handed
    between processes. A job that fails raises its error when its turn comes, after the batches before it, and ends the
    iterator. It also ends with `close`, with the last reference to it and with the process, and its threads with it.

    On a CPU a batch is the buffer itself, which goes back into the ring when the last tensor that looks at it is gone:
    it is never overwritten, however long the consumer keeps it. On a GPU it is copied from pinned memory without
    waiting. Images lie in memory as [B, S, S, 3], torch's channels_last.

    Args:
        jobs: pulled by the consumer's thread, at most `RING` ahead.
        size: height and width of the images, S.
        device: where batches go.
        num_threads: threads that load; 0: the consumer's own. The batches are the same.
    """

    def __init__(self, jobs: Iterable[JobT], *, size: int, device: torch.device, num_threads: int) -> None:
        self._jobs = iter(jobs)
        self._device = device
        self._num_threads = num_threads
        self._size = size
        self._buffers = Buffers(pinned=device.type == "cuda")
        self._copying: deque[tuple[torch.cuda.Event, NDArray[np.uint8]]] = deque()
        self._crew = _Crew()
        self._ahead: deque[_Batch[JobT]] = deque()
        self._no_more_jobs: BaseException | None = None
        threads = [threading.Thread(target=self._crew.work, name="hai-loader", daemon=True) for _ in range(num_threads)]
        self._end = weakref.finalize(self, _end, self._crew, threads)  # also called before the interpreter shuts down
        for thread in threads:
            thread.start()

    def __iter__(self) -> Iterator[tuple[JobT, Tensor]]:
        return self

    def __next__(self) -> tuple[JobT, Tensor]:
        try:
            self._pull()
            if not self._ahead:
                raise self._no_more_jobs or StopIteration
            batch = self._ahead.popleft()
            self._crew.wait(batch, help_out=self._num_threads == 0)
            return batch.job, self._on_device(batch)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the threads and drop what they were loading."""
        self._no_more_jobs = StopIteration()
        self._ahead.clear()
        self._end()

    def _pull(self) -> None:
        while self._no_more_jobs is None and len(self._ahead) < RING:
            try:
                job = next(self._jobs)
            except StopIteration:
                self._no_more_jobs = StopIteration()
            except Exception as error:  # raised when the batches before it are used up
                self._no_more_jobs = error
            else:
                batch = _Batch(job, self._take(len(job)))
                self._ahead.append(batch)
                self._crew.add(batch, max(1, min(_CHUNK, -(-len(job) // max(1, self._num_threads)))))

    def _take(self, count: int) -> NDArray[np.uint8]:
        """Lend [count, S, S, 3], after what the GPU has copied by now has come back."""
        while self._copying and self._copying[0][0].query():  # type: ignore[no-untyped-call]
            self._copying.popleft()
        return self._buffers.take((count, self._size, self._size, 3))

    def _on_device(self, batch: _Batch[JobT]) -> Tensor:
        image = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)
        if self._device.type == "cpu":
            return image
        copy = image.to(self._device, non_blocking=True)
        if self._device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._copying.append((event, batch.pixels))
        return copy


class _Batch(Generic[JobT]):
    """A job, the buffer it fills and how much of it is still to do."""

    def __init__(self, job: JobT, pixels: NDArray[np.uint8]) -> None:
        self.job, self.pixels = job, pixels
        self.num_left = 0
        self.errors: list[tuple[int, BaseException]] = []


class _Crew:
    """What the threads share. It does not know the loader, so that a forgotten loader can end."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._chunks: deque[tuple[_Batch[Job], int, int]] = deque()
        self._stopping = False

    def add(self, batch: _Batch[JobT], chunk: int) -> None:
        total = len(batch.job)
        chunks = [(batch, start, min(start + chunk, total)) for start in range(0, total, chunk)]
        with self._changed:
            batch.num_left = len(chunks)
            self._chunks.extend(chunks)  # type: ignore[arg-type]
            self._changed.notify_all()

    def wait(self, batch: _Batch[JobT], *, help_out: bool) -> None:
        """Return when a batch is loaded; raise the error of its first image that failed."""
        while help_out and batch.num_left:
            self._load_next()
        with self._changed:
            self._changed.wait_for(lambda: batch.num_left == 0 or self._stopping)
        if batch.num_left:
            raise StopIteration
        if batch.errors:
            raise min(batch.errors, key=lambda pair: pair[0])[1]

    def work(self) -> None:
        """Load until told to stop: what a thread does."""
        while True:
            with self._changed:
                while not (self._chunks or self._stopping):
                    self._changed.wait(_LOOK_AGAIN)
                if self._stopping:
                    return
            self._load_next()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._chunks.clear()
            self._changed.notify_all()

    def _load_next(self) -> None:
        """Load one chunk, if there is one; nothing of it is held on to afterwards."""
        try:
            batch, start, stop = self._chunks.popleft()
        except IndexError:  # another thread was faster
            return
        error: BaseException | None = None
        try:
            batch.job.load(start, stop, batch.pixels[start:stop])
        except BaseException as caught:  # raised again where the batch is used
            error = caught
        with self._changed:
            if error is not None:
                batch.errors.append((start, error))
            batch.num_left -= 1
            if batch.num_left == 0:
                self._changed.notify_all()


def _end(crew: _Crew, threads: list[threading.Thread]) -> None:
    """Stop the threads and wait for them, unless a garbage collection inside one of them brought us here."""
    crew.stop()
    if threading.current_thread() not in threads:
        for thread in threads:
            if thread.is_alive():
                thread.join(_PATIENCE)
