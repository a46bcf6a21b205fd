"""`hai preprocess` as processes: killed, stopped, with workers that die, and as tasks of a Ray cluster."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from ray_runs import joined_node

from benchmarks.faults.ray_kills import kill_tree
from hai.errors import ConfigError
from hai.faces.crops import crop_file
from hai.faces.pool import CRASHED, Job, crop_in_processes
from hai.faces.settings import CropSettings

SETTINGS = CropSettings(frames=4, image_size=96)
ROOT = Path(__file__).resolve().parents[2]


def start(raw: Path, output: Path, *more: str, address: str = "local") -> subprocess.Popen[str]:
    """Start `hai preprocess` on the raw data."""
    options = ["--input", str(raw), "--output", str(output), "--frames", "4", "--image-size", "96", *more]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "ray_jobs/preprocess.py"), *options],
        env=os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def run(raw: Path, output: Path, *more: str, **options: str) -> tuple[int, str]:
    process = start(raw, output, *more, **options)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come to pass"
        time.sleep(0.02)


def num_lines(output: Path) -> int:
    journal = output / "files.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def is_cropping(node: subprocess.Popen[bytes]) -> bool:
    return any("_crop_there" in process.name() for process in psutil.Process(node.pid).children(recursive=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def unbroken(raw, tmp_path_factory):
    """The output of a run that nothing happens to."""
    output = tmp_path_factory.mktemp("unbroken") / "crops"
    status, said = run(raw, output)
    assert status == 0, said
    assert "processed: 12 videos and 1 images; 10 with faces, 1 without, 2 unusable" in said
    assert "faces found: in 37 of 41 frames (90.2 %)" in said
    assert "unusable: real/broken.mp4: cannot be opened as a video" in said
    return contents(output)


@pytest.mark.slow
def test_a_killed_run_loses_no_video_repeats_none_and_leaves_nobody_behind(raw, unbroken, tmp_path):
    output = tmp_path / "crops"
    times: dict[str, int] = {}
    for kills in (2, 5):
        process = start(raw, output, "--num-workers", "2")
        until(lambda kills=kills: num_lines(output) >= kills, f"{kills} files done")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        until(lambda workers=workers: not any(worker.is_running() for worker in workers), "the end of all workers")
        recorded = [
            json.loads(line) for line in (output / "files.jsonl").read_bytes().splitlines() if line[-1:] == b"}"
        ]
        crops = [output / crop["path"] for record in recorded for crop in record["crops"]]
        now = {str(path): path.stat().st_mtime_ns for path in crops}
        assert times.items() <= now.items()  # what was done before the first kill was not done again
        times = now
    assert times
    status, said = run(raw, output)
    assert status == 0, said
    assert "going on: " in said
    assert times == {path: os.stat(path).st_mtime_ns for path in times}
    assert contents(output) == unbroken


@pytest.mark.slow
def test_a_signal_finishes_the_files_in_work_and_says_how_to_go_on(raw, unbroken, tmp_path):
    output = tmp_path / "crops"
    process = start(raw, output, "--num-workers", "1")
    until(lambda: num_lines(output) >= 1, "the first file")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 3, said
    assert "SIGTERM: finishing the files in work" in said
    assert "the same command goes on" in said
    assert json.loads((output / "preprocess.json").read_text(encoding="utf-8"))["status"] == "running"
    status, said = run(raw, output)
    assert status == 0, said
    assert contents(output) == unbroken


class Deadly(type(Path())):
    """A path whose reader ends when it hears of it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_file_that_takes_its_process_down_is_named_and_the_others_are_done(raw, tmp_path):
    videos = sorted((raw / "real").glob("person*.mp4"))
    jobs = [Job(path.name, path, "video") for path in (videos[0], Deadly(tmp_path / "deadly.mp4"), *videos[1:])]
    found = {job.name: harvest for job, harvest in crop_in_processes(jobs, SETTINGS, lambda: False, num_workers=2)}
    assert found.pop("deadly.mp4").error == CRASHED
    assert sorted(found) == [path.name for path in videos]
    assert all(len(harvest.crops) == 4 for harvest in found.values())


class Endless(type(Path())):
    """A path whose reader never gets it."""

    def __reduce__(self):
        return time.sleep, (10_000,)


def test_who_leaves_waits_for_no_file_in_work(raw, tmp_path):
    first = raw / "real/person0.mp4"
    jobs = [Job("a", first, "video"), Job("b", Endless(first), "video")]
    results = crop_in_processes(jobs, SETTINGS, lambda: False, num_workers=2)
    assert next(results)[0].name == "a"
    results.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.ray
def test_a_machine_that_goes_away_takes_no_video_along(raw, unbroken, ray_cluster, tmp_path):
    output = tmp_path / "crops"
    with joined_node(ray_cluster.address, tmp_path) as node:
        process = start(raw, output, "--num-workers", "4", address=ray_cluster.address)
        until(lambda: num_lines(output) >= 1 and is_cropping(node), "work on the second machine")
        kill_tree(node)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"using the Ray cluster at {ray_cluster.address}" in said
    assert contents(output) == unbroken


def test_workers_give_what_this_process_gives(raw):
    paths = [raw / "real/person0.mp4", raw / "real/사진 1.png", raw / "real/broken.mp4"]
    jobs = [Job(path.name, path, "image" if path.suffix == ".png" else "video") for path in paths]
    found = dict(crop_in_processes(jobs, SETTINGS, lambda: False, num_workers=2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each process has: sums in parts differ in their last digits
    try:
        assert found == {job: crop_file(job.path, job.kind, SETTINGS) for job in jobs}
    finally:
        torch.set_num_threads(threads)
    assert [len(found[job].crops) for job in jobs] == [4, 1, 0]


def test_a_detector_that_cannot_be_loaded_ends_the_work_at_once(raw):
    jobs = [Job(str(number), raw / "real/person0.mp4", "video") for number in range(40)]
    settings = CropSettings(detector="retinaface")
    with pytest.raises(ConfigError, match="retina-face is not installed"):
        list(crop_in_processes(jobs, settings, lambda: False, num_workers=1))
