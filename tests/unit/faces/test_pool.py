"""Processes that cut out faces: what becomes of the files when one of them ends."""

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

from hai.faces import pool
from hai.faces.crops import Harvest
from hai.faces.pool import CRASHED, Job, crop_in_processes
from hai.faces.settings import CropSettings
from hai.launch.preprocess import crop_on_ray

JOBS = [Job(f"{number}.mp4", Path(f"{number}.mp4"), "video") for number in range(8)]


class Pool:
    """Does each file at once; is broken from the call `breaks` on."""

    def __init__(self, breaks):
        self.left = breaks

    def submit(self, _, about, job):
        self.left -= 1
        if self.left < 0:
            raise BrokenProcessPool("a process ended while nobody looked")
        future = Future()
        if job.name == "3.mp4":
            future.set_exception(BrokenProcessPool("a process ended"))
        else:
            future.set_result(Harvest(num_frames=1))
        return future

    def shutdown(self, **_):
        pass


def test_no_file_is_lost_when_a_process_ends_between_two_files(monkeypatch):
    pools = iter([Pool(3), Pool(1), *(Pool(99) for _ in range(9))])
    monkeypatch.setattr(pool, "_started", lambda *_: next(pools))
    found = list(crop_in_processes(JOBS, CropSettings(), lambda: False, num_workers=2))
    assert sorted(job.name for job, _ in found) == [job.name for job in JOBS]
    assert [job.name for job, harvest in found if harvest.error == CRASHED] == ["3.mp4"]


class Ray:
    """Notes what it is asked."""

    def __init__(self):
        self.asked = []

    def remote(self, **_):
        return lambda task: SimpleNamespace(remote=lambda *given: self.asked.append(given) or len(self.asked))

    def cluster_resources(self):
        return {"CPU": 2}

    def wait(self, references, **_):
        return references, []

    def get(self, _):
        return Harvest()


def test_workers_of_a_cluster_are_told_absolute_paths():
    ray, settings = Ray(), CropSettings(detector="mediapipe", detector_model="model.tflite")
    assert len(list(crop_on_ray(JOBS, settings, lambda: False, ray=ray))) == len(JOBS)
    assert [given[0] for given in ray.asked] == [Path.cwd() / job.path for job in JOBS]
    assert {given[2].detector_model for given in ray.asked} == {str(Path.cwd() / "model.tflite")}
