"""Cutting out faces on all cores of this machine, in processes that a broken file may take down with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Final, NamedTuple

from hai.faces.crops import Harvest, crop_file
from hai.faces.settings import CropSettings

__all__ = ["CRASHED", "Cropper", "Job", "crop_in_processes", "num_cores"]

CRASHED: Final = "its decoder crashes, or needs more memory than there is"
"""Error of a file that ends the process which reads it."""

_AHEAD: Final = 2
"""Files waiting for each process; few, since results wait in memory."""
_LOOK_SECONDS: Final = 1.0


class Job(NamedTuple):
    """A file whose faces are wanted."""

    name: str
    """Relative to the data's root."""
    path: Path
    kind: str


Cropper = Callable[[Iterable[Job], CropSettings, Callable[[], bool]], Iterator[tuple[Job, Harvest]]]
"""Takes jobs, settings and what says that it should stop; yields results as they come, in any order."""


def num_cores() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crop_in_processes(
    jobs: Iterable[Job], settings: CropSettings, stop: Callable[[], bool], *, num_workers: int
) -> Iterator[tuple[Job, Harvest]]:
    """Cut out the faces of many files in processes of this machine; results come in any order.

    Where a process dies, the files it may have died of are tried again one by one; the one that does it again is
    reported as unusable. When stopped, files in work are finished, others left.
    """
    todo, suspects = deque(jobs), deque[Job]()
    while (todo or suspects) and not stop():
        source, limit = (suspects, 1) if suspects else (todo, num_workers)
        waiting: dict[Future[Harvest], Job] = {}
        begun, going = multiprocessing.Pipe(duplex=False)
        pool = _started(limit, begun)
        try:
            while (source or waiting) and not stop():
                while source and len(waiting) < (limit if limit == 1 else _AHEAD * limit):
                    job = source[0]  # stays there if the pool is broken already
                    waiting[pool.submit(crop_file, job.path, job.kind, settings)] = job
                    source.popleft()
                for future in wait(waiting, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                    yield waiting[future], future.result()
                    del waiting[future]
            pool.shutdown(wait=True, cancel_futures=True)
            for future, job in waiting.items():
                if not future.cancelled():
                    yield job, future.result()
        except BrokenProcessPool:
            if source is suspects and waiting:
                yield next(iter(waiting.values())), Harvest(error=CRASHED)
            else:
                suspects.extend(waiting.values())
        finally:
            going.close()  # all that is wanted has come; whatever is in work still ends now
            pool.shutdown(wait=True, cancel_futures=True)
            begun.close()


def _started(num_workers: int, begun: Connection) -> ProcessPoolExecutor:
    """Start processes that end as soon as the other end of a pipe is closed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hai.faces.crops", "torch"])  # loaded once; processes then begin in no time
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin, initargs=(begun,))


def _begin(begun: Connection) -> None:
    """Prepare a process: one thread, as others have the other cores; an end once its parent wants it or is gone."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with, args=(begun,), daemon=True).start()


def _end_with(begun: Connection) -> None:
    wait_for([begun])
    os._exit(1)
