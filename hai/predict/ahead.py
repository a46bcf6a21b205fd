"""Reading files ahead of the model: in threads where that is light work, in processes where faces or videos are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np

from hai.faces.pool import CRASHED, work_in_processes
from hai.predict.pictures import Job, Pictures, View, load_pictures

__all__ = ["read_ahead"]

_AHEAD = 4
"""Files waiting for each thread."""


def read_ahead(
    jobs: Iterable[Job], view: View, *, in_processes: bool, num_workers: int, stop: Callable[[], bool]
) -> Generator[tuple[Job, Pictures], None, None]:
    """Make the pictures of many files at once; results come in any order.

    Args:
        jobs: pulled as there is room for them, few ahead.
        view: how files become pictures.
        in_processes: costs seconds to start; a file that crashes its decoder ends one of them and no more, and what is
            in work can be dropped.
        num_workers: files in work at once.
        stop: asked often; no file is begun after it has said yes, and processes drop theirs.

    Raises:
        ConfigError: a face detector cannot be loaded.
    """
    if in_processes:
        crashed = Pictures(np.zeros((0, view.size, view.size, 3), np.uint8), error=CRASHED)
        yield from work_in_processes(
            jobs, load_pictures, view, crashed=crashed, stop=stop, num_workers=num_workers, finish=False
        )
    else:
        yield from _in_threads(iter(jobs), partial(load_pictures, view), num_workers, stop)


def _in_threads(
    jobs: Iterator[Job], work: Callable[[Job], Pictures], num_workers: int, stop: Callable[[], bool]
) -> Iterator[tuple[Job, Pictures]]:
    import torch

    waiting: deque[tuple[Job, Future[Pictures]]] = deque()
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_workers, "hai-reader", initializer=torch.set_num_threads, initargs=(1,))
    try:
        while not stop():
            for job in islice(jobs, _AHEAD * num_workers - len(waiting)):
                waiting.append((job, pool.submit(work, job)))
            if not waiting:
                return
            job, future = waiting.popleft()
            yield job, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)  # the readers' number would be that of every thread that begins from now on
