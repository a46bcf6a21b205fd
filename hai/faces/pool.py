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
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from hai.faces.crops import Harvest, crop_file
from hai.faces.settings import CropSettings

__all__ = ["CRASHED", "Cropper", "Job", "crop_in_processes", "work_in_processes"]

JobT = TypeVar("JobT", bound=tuple[Any, ...])
ResultT = TypeVar("ResultT")

CRASHED: Final = "its decoder crashes, or needs more memory than there is"
"""Error of a file that ends the process which reads it."""

_AHEAD: Final = 2
"""Files waiting for each process; few, since results wait in memory."""
_LOOK_SECONDS: Final = 0.05


class Job(NamedTuple):
    """A file whose faces are wanted."""

    name: str
    """Relative to the data's root."""
    path: Path
    kind: str


Cropper = Callable[[Iterable[Job], CropSettings, Callable[[], bool]], Iterator[tuple[Job, Harvest]]]
"""Takes jobs, settings and what says that it should stop; yields results as they come, in any order."""


def crop_in_processes(
    jobs: Iterable[Job], settings: CropSettings, stop: Callable[[], bool], *, num_workers: int
) -> Iterator[tuple[Job, Harvest]]:
    """Cut out the faces of many files in processes of this machine; results come in any order.

    The file that ends a process is reported as unusable. When stopped, files in work are finished, others left.
    """
    done = work_in_processes(jobs, _crop, settings, crashed=Harvest(error=CRASHED), stop=stop, num_workers=num_workers)
    yield from done


def _crop(settings: CropSettings, job: Job) -> Harvest:
    return crop_file(job.path, job.kind, settings)


def work_in_processes(
    jobs: Iterable[JobT],
    work: Callable[[Any, JobT], ResultT],
    about: Any,
    *,
    crashed: ResultT,
    stop: Callable[[], bool],
    num_workers: int,
    finish: bool = True,
) -> Iterator[tuple[JobT, ResultT]]:
    """Do many jobs in processes of this machine; results come in any order.

    Where a process dies, the jobs it may have died of are tried again one by one; the one that does it again has the
    result `crashed`.

    Args:
        jobs: pulled as there is room for them, few ahead.
        work: takes `about` and a job; a function of a module.
        about: what all jobs have in common.
        crashed: stands for the result of a job that ends its process.
        stop: asked many times a second; no job is begun after it has said yes.
        num_workers: processes.
        finish: when stopped, jobs in work are finished; else they are dropped and their processes ended.
    """
    todo, suspects, held = iter(jobs), deque[JobT](), deque[JobT]()
    going_on = True
    while going_on and not stop():
        source, limit = (suspects, 1) if suspects else (held, num_workers)
        waiting: dict[Future[ResultT], JobT] = {}
        begun, going = multiprocessing.Pipe(duplex=False)
        pool = _started(limit, begun)
        try:
            while not stop():
                while len(waiting) < (limit if limit == 1 else _AHEAD * limit):
                    if not source and source is held:
                        held.extend(islice(todo, 1))
                    if not source:
                        break
                    waiting[pool.submit(work, about, source[0])] = source[0]  # it stays there if the pool is broken
                    source.popleft()
                if not waiting:
                    going_on = source is suspects
                    break
                for future in wait(waiting, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                    yield waiting[future], future.result()
                    del waiting[future]
            if finish:
                pool.shutdown(wait=True, cancel_futures=True)
                for future, job in waiting.items():
                    if not future.cancelled():
                        yield job, future.result()
        except BrokenProcessPool:
            if source is suspects and waiting:
                yield next(iter(waiting.values())), crashed
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
    """Prepare a process: one thread, as others have the other cores; an end when its parent wants it or is gone."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with, args=(begun,), daemon=True).start()


def _end_with(begun: Connection) -> None:
    wait_for([begun])
    os._exit(1)
