"""The verb `preprocess`: on all cores of this machine or as tasks on a Ray cluster, and what is said at the end."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hai.console import plain, print_table
from hai.cpus import num_cpus
from hai.faces.contact import CONTACT_SHEET
from hai.faces.crops import Harvest, crop_file
from hai.faces.pool import CRASHED, Cropper, Job, crop_in_processes
from hai.faces.preprocess import Request, run_preprocessing
from hai.faces.settings import PREPROCESS, CropSettings
from hai.progress import progress_bar
from hai.types import SPLITS

__all__ = ["crop_on_ray", "run_preprocess"]

_INTERRUPTED = 3
_MOST_LINES = 20
_LOOK_SECONDS = 1.0
_TRIES = 3
_AHEAD = 2  # tasks for each CPU of a cluster, so that none waits for the next


def run_preprocess(request: Request, *, num_workers: int | None = None) -> int:
    """Cut out faces and say what came of it.

    Args:
        request: what and where to.
        num_workers: files in work at once; None: one for each core of this machine or of the cluster.

    Returns:
        Exit status: 0 done, 3 stopped by a signal, the same command goes on.

    Raises:
        HaiError: the user can mend it.
    """
    with ExitStack() as stack:
        request.check()
        cropper = _cropper(num_workers, stack)
        stop = stack.enter_context(_stopped_by_signals())  # behind Ray, which takes SIGTERM for itself when it connects
        show = stack.enter_context(progress_bar("cutting out faces", "files"))
        result = run_preprocessing(request, cropper, say=_say, show=show, stop=stop)
    if result is None:
        _say("stopped; what is done is kept, the same command goes on")
        return _INTERRUPTED
    _tell(result["summary"], request.output)
    return 0


def _cropper(num_workers: int | None, stack: ExitStack) -> Cropper:
    """Choose where to work: on the cluster that RAY_ADDRESS names or that runs on this machine, else in processes."""
    from hai.launch.cluster import connected, live_address

    named = os.environ.get("RAY_ADDRESS")
    if named == "local" or not (named or live_address(lambda line: None)):
        return functools.partial(crop_in_processes, num_workers=num_workers or num_cpus())
    ray = stack.enter_context(connected(_say))
    return functools.partial(crop_on_ray, ray=ray, num_workers=num_workers)


def crop_on_ray(
    jobs: Iterable[Job], settings: CropSettings, stop: Callable[[], bool], *, ray: Any, num_workers: int | None = None
) -> Iterator[tuple[Job, Harvest]]:
    """Cut out the faces of many files as tasks of a connected cluster, one CPU each; results come in any order.

    A file whose tasks die each time is reported as unusable; one that went away with a node is begun again. When
    stopped, files in work are finished, others left.
    """
    task = ray.remote(num_cpus=1, max_retries=_TRIES - 1)(_crop_there)
    limit = num_workers or max(1, _AHEAD * int(ray.cluster_resources().get("CPU", 1)))
    if settings.detector_model:
        settings = replace(settings, detector_model=os.path.abspath(settings.detector_model))
    todo, again = iter(jobs), list[Job]()
    waiting: dict[Any, Job] = {}
    lost: Counter[str] = Counter()
    while True:
        while len(waiting) < limit and not stop():
            job = again.pop() if again else next(todo, None)
            if job is None:
                break
            waiting[task.remote(job.path.absolute(), job.kind, settings)] = job  # workers are in other folders
        if not waiting:
            return
        finished, _ = ray.wait(list(waiting), num_returns=1, timeout=_LOOK_SECONDS)
        for reference in finished:
            job = waiting.pop(reference)
            try:
                yield job, ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause or error from None
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                yield job, Harvest(error=CRASHED)
            except (ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError):
                lost[job.name] += 1
                if lost[job.name] < _TRIES:
                    again.append(job)
                else:
                    yield job, Harvest(error=CRASHED)


def _crop_there(path: Path, kind: str, settings: CropSettings) -> Harvest:
    """Run in a Ray worker."""
    import torch

    torch.set_num_threads(1)
    return crop_file(path, kind, settings)


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a request to stop; a second one ends at once."""
    asked = threading.Event()

    def note(number: int, _: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        _say(f"{signal.Signals(number).name}: finishing the files in work, then stopping")

    numbers = (signal.SIGTERM, signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in numbers} if is_main else {}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(plain(line), file=sys.stderr, flush=True)


def _tell(summary: dict[str, Any], output: Path) -> None:
    """Print the summary."""
    videos, images = summary["videos"], summary["images"]
    what = " and ".join(f"{count} {name}" for count, name in ((videos, "videos"), (images, "images")) if count)
    print(
        f"processed: {what}; {summary['files_with_faces']} with faces, {len(summary['without_face'])} without, "
        f"{summary['files_unusable']} unusable"
    )
    rate = f" ({100 * summary['face_rate']:.1f} %)" if summary["face_rate"] is not None else ""
    fallback = f", {summary['by_fallback']} crops by the fallback detector" if summary["by_fallback"] else ""
    print(f"faces found: in {summary['frames_with_faces']} of {summary['frames']} frames{rate}{fallback}")
    rows = []
    for part in summary["by_source"]:
        source = plain(part["source"])
        found = None if part["face_rate"] is None else f"{100 * part['face_rate']:.1f} %"
        rows.append(
            [
                part["label"],
                source or None,
                part["files"],
                part["files_with_faces"],
                found,
                part["crops"],
            ]
        )
    print_table(["label", "source", "files", "with faces", "frames with a face", "crops"], rows)
    print()
    counts = summary["by_split"]
    rows = []
    for split in SPLITS:
        real, fake = (counts.get(f"{split}/{label}", {}) for label in ("real", "fake"))
        if real or fake:
            rows.append([split, real.get("crops", 0), fake.get("crops", 0), real.get("files", 0), fake.get("files", 0)])
    print_table(["split", "real crops", "fake crops", "real files", "fake files"], rows)
    lines = [f"unusable: {path}: {reason}" for path, reason in summary["unusable"].items()]
    lines += [f"no face: {path}" for path in summary["without_face"]]
    for line in lines[:_MOST_LINES]:
        print(plain(line), file=sys.stderr)
    if len(lines) > _MOST_LINES:
        print(f"and {len(lines) - _MOST_LINES} more, see {output / PREPROCESS}", file=sys.stderr)
    if not summary["crops"]:
        print("warning: no face was found in any file", file=sys.stderr)
    for label in ("real", "fake"):
        crops = {split: counts.get(f"{split}/{label}", {}).get("crops", 0) for split in ("train", "val")}
        if any(crops.values()) and not all(crops.values()):
            lacking = next(split for split, count in crops.items() if not count)
            print(
                f"warning: no {label} crops in {lacking}; another --seed divides anew in a new --output",
                file=sys.stderr,
            )
    print(f"wrote {output}; look at {output / CONTACT_SHEET}")
