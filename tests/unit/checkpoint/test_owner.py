import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from benchmarks.faults.storage import FaultyFileSystem as Storage
from hai.checkpoint import owner, remote, runs
from hai.checkpoint.owner import Clock, Owner, is_alive, is_owner, load_owner, process_started
from hai.checkpoint.records import save_json
from hai.checkpoint.remote import Bucket, Location, locate
from hai.checkpoint.runs import RunRow, list_runs, restart_run
from hai.errors import CheckpointError, StorageError

CHILD = """
    import sys, time
    from pathlib import Path
    from hai.checkpoint.owner import Owner
    from hai.checkpoint.remote import Location
    print(Owner(Location(Path(sys.argv[1]), None), print).acquire(), flush=True)
    time.sleep(300)
"""


class Lines(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


class FakeClock(Clock):
    """Time that passes only when somebody sleeps; `events` happen on the way."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.events: dict[float, object] = {}

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        for when in [when for when in self.events if when <= self.time]:
            self.events.pop(when)()


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture(params=["disk", "bucket"])
def location(request, tmp_path):
    Storage.reset()
    yield Location(tmp_path / "run", None if request.param == "disk" else Bucket("faulty://bucket/run"))
    Storage.reset()


def write(location: Location, record: dict) -> None:
    if location.remote is None:
        save_json(location.path / "owner.json", record)
    else:
        location.remote.write("owner.json", json.dumps(record).encode())


def elsewhere(heartbeat: float, attempt: str = "theirs") -> dict:
    return {"host": "far", "machine": "far boot", "pid": 7, "started": "1", "attempt": attempt, "heartbeat": heartbeat}


def test_a_free_run_is_claimed_and_given_up(location, lines):
    claim = Owner(location, lines, FakeClock())
    assert is_owner(location, "anybody")
    attempt = claim.acquire()
    record = load_owner(location)
    assert record["pid"] == os.getpid()
    assert (record["attempt"], record["released"], claim.attempt) == (attempt, False, attempt)
    assert is_owner(location, attempt)
    assert not is_owner(location, "other")
    claim.release()
    assert load_owner(location)["released"]
    second = Owner(location, lines, FakeClock())
    assert second.acquire() != attempt
    second.release()
    assert lines == []


def test_a_run_of_this_very_process_is_refused_until_it_is_over(location, lines):
    first = Owner(location, lines)
    first.acquire()
    with pytest.raises(
        CheckpointError, match=f"run run: process {os.getpid()} on .* is training it; stop that process"
    ):
        Owner(location, lines).acquire()
    owner._held.clear()  # as in a notebook whose cell was interrupted: nobody holds the claim any more
    second = Owner(location, lines)
    second.acquire()
    first.release()  # must not touch the claim of the second
    assert load_owner(location)["attempt"] == second.attempt
    assert not load_owner(location)["released"]
    second.release()


def test_takeovers_between_real_processes(tmp_path, lines):
    location = Location(tmp_path / "run", None)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(location.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        attempt = child.stdout.readline().strip()
        assert load_owner(location)["attempt"] == attempt
        with pytest.raises(CheckpointError, match=f"process {child.pid} on"):
            Owner(location, lines).acquire()
        assert is_owner(location, attempt)
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet waited for: a zombie
        assert not is_alive(child.pid, load_owner(location)["started"])
        claim = Owner(location, lines)
        claim.acquire()
        assert not is_owner(location, attempt)
        claim.release()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert lines == []


def test_a_reused_process_id_is_another_process():
    started = process_started(os.getpid())
    assert is_alive(os.getpid(), started)
    assert not is_alive(os.getpid(), f"{started}0")
    assert process_started(2**22 + 1) is None


def test_where_there_is_no_proc_ps_is_asked(monkeypatch):
    monkeypatch.setattr(owner.os.path, "exists", lambda path: False)
    started = process_started(os.getpid())
    assert started
    assert started == process_started(os.getpid())
    assert process_started(2**22 + 1) is None


def test_another_machine_is_waited_for_until_its_heartbeat_is_old(location, lines):
    clock = FakeClock()
    write(location, elsewhere(clock.time - 10))
    claim = Owner(location, lines, clock)
    start = clock.time
    claim.acquire()
    claim.release()
    assert 50 <= clock.time - start <= 53
    assert lines == ["run run: owned by far process 7; waiting until its heartbeat is 60 s old"]


def test_a_heartbeat_of_yesterday_is_not_waited_for(location, lines):
    clock = FakeClock()
    write(location, elsewhere(clock.time - 86_400))
    claim = Owner(location, lines, clock)
    claim.acquire()
    claim.release()
    assert clock.time - 1_000_000 <= 1
    assert lines == []


def test_a_clock_ahead_of_ours_is_not_waited_for_for_ever(location, lines):
    clock = FakeClock()
    write(location, elsewhere(clock.time + 5_000))
    claim = Owner(location, lines, clock)
    claim.acquire()
    claim.release()
    assert 60 <= clock.time - 1_000_000 <= 63


def test_a_living_owner_elsewhere_keeps_us_waiting_until_it_releases(location, lines):
    clock = FakeClock()
    write(location, elsewhere(clock.time))
    for beat in range(1, 20):
        clock.events[clock.time + 15 * beat] = lambda when=clock.time + 15 * beat: write(location, elsewhere(when))
    clock.events[clock.time + 290] = lambda: write(location, elsewhere(clock.time) | {"released": True})
    claim = Owner(location, lines, clock)
    claim.acquire()
    claim.release()
    assert 290 <= clock.time - 1_000_000 <= 293
    assert len(lines) == 1


def test_of_two_claims_at_one_moment_one_stands(tmp_path, lines):
    Storage.reset()
    location = Location(tmp_path / "run", Bucket("faulty://bucket/run"))
    clock = FakeClock()
    theirs = elsewhere(clock.time)
    clock.events[clock.time + 0.1] = lambda: write(location, theirs)  # just after ours, before we look again
    claim = Owner(location, lines, clock)
    claim.acquire()
    assert clock.time - 1_000_000 >= 60  # theirs stood; we waited for it to fall silent
    assert len(lines) == 1
    claim.release()


def test_a_torn_owner_file_is_no_owner(location, lines):
    if location.remote is None:
        location.path.mkdir()
        (location.path / "owner.json").write_bytes(b'{"pid":')
    else:
        location.remote.write("owner.json", b'{"pid":')
    claim = Owner(location, lines, FakeClock())
    claim.acquire()
    claim.release()


def test_the_heartbeat_beats_and_stops_when_the_run_is_lost(location, lines, monkeypatch):
    monkeypatch.setattr(owner, "HEARTBEAT_S", 0.01)
    clock = FakeClock()
    claim = Owner(location, lines, clock)
    claim.acquire()
    clock.time += 100
    beaten = threading.Event()
    for _ in range(1000):
        if load_owner(location)["heartbeat"] == clock.time:
            beaten.set()
            break
        beaten.wait(0.01)
    assert beaten.is_set()
    for _ in range(200):  # a beat that has just looked may still write once
        write(location, elsewhere(clock.time))
        claim._heartbeat.join(0.1)
        if not claim._heartbeat.is_alive():
            break
    assert not claim._heartbeat.is_alive()
    write(location, elsewhere(clock.time))
    claim.release()
    assert load_owner(location) == elsewhere(clock.time)


def test_a_storage_that_is_down_refuses_a_claim_and_keeps_an_owner(tmp_path, lines):
    Storage.reset()
    location = Location(tmp_path / "run", Bucket("faulty://bucket/run"))
    claim = Owner(location, lines, FakeClock())
    attempt = claim.acquire()
    Storage.down = True
    assert is_owner(location, attempt)
    with pytest.raises(StorageError, match="network is down"):
        Owner(location, lines).acquire()
    Storage.down = False
    claim.release()


def build_storage(kind: str, tmp_path: Path) -> str:
    Storage.reset()
    return str(tmp_path / "runs") if kind != "bucket" else "faulty://bucket/runs"


def put(storage: str, name: str, content: bytes) -> None:
    folder = Bucket(storage) if "://" in storage else remote.Mount(Path(storage))
    folder.write(name, content)


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_the_table_of_runs(tmp_path, kind):
    storage = build_storage(kind, tmp_path)
    assert list_runs(storage) == []
    best = {"metric": "val/f1_macro", "value": 0.9, "step": 20}
    summary = {"status": "finished", "step": 30, "best": best, "last_saved": "2026-01-01T00:00:00+00:00"}
    put(storage, "a/summary.json", json.dumps(summary).encode())
    put(storage, "a/run.yaml", b"task: detector\nseed: 1\n")
    put(storage, "b/run.yaml", b"task: [")
    for name, age in (("c", 5), ("d", 500)):
        put(storage, f"{name}/summary.json", b'{"status": "running", "step": 3}')
        put(storage, f"{name}/owner.json", json.dumps({"attempt": "x", "heartbeat": runs.time.time() - age}).encode())
    put(storage, "e/notes.txt", b"no run")
    put(storage, "s/summary.json", b'{"status": "interrupted", "task": "ranker sweep", "step": 7}')
    put(storage, "s/trials.csv", b"number,id\n")
    if kind == "bucket":
        put(storage, "a/attempt-2/summary.json", b'{"status": "failed"}')
    rows = {row.name: row for row in list_runs(storage)}
    assert list(rows) == ["a", "b", "c", "d", "s"]
    assert (rows["s"].task, rows["s"].step) == ("ranker sweep", 7)
    if kind == "bucket":
        assert (rows["a"].status, rows["a"].step) == ("failed", None)
    else:
        assert rows["a"] == RunRow("a", "detector", "finished", 30, best, "2026-01-01T00:00:00+00:00")
    assert (rows["b"].task, rows["b"].status) == ("?", "interrupted")
    assert (rows["c"].status, rows["d"].status) == ("running", "interrupted")


@pytest.mark.parametrize("kind", ["disk", "mount", "bucket"])
def test_restart_keeps_the_old_run(tmp_path, lines, monkeypatch, kind):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(owner, "_SETTLE_S", 0.0)
    storage = build_storage(kind, tmp_path)
    if kind == "mount":
        monkeypatch.setattr(remote, "is_mount", lambda folder: folder.is_relative_to(tmp_path / "runs"))
    restart_run(storage, "run", lines)
    assert lines == []
    for number in (1, 2):
        location = locate(storage, "run")
        put(storage if kind != "bucket" else location.remote.url, "run/x" if kind != "bucket" else "x", b"old")
        location.path.mkdir(parents=True, exist_ok=True)
        (location.path / "y").write_text(str(number), encoding="utf-8")
        restart_run(storage, "run", lines)
        fresh = locate(storage, "run")
        assert not (fresh.path / "y").exists()
        if kind == "bucket":
            assert fresh.remote.url == f"faulty://bucket/runs/run/attempt-{number + 1}"
            assert "bucket/runs/run/x" in Storage.objects
            assert (location.path / "y").exists()
        else:
            assert (tmp_path / "runs" / f"run.old-{number}" / "x").read_bytes() == b"old"
            assert (locate(storage, f"run.old-{number}").path / "y").read_text(encoding="utf-8") == str(number)
    assert len(lines) == 2
    Storage.reset()


def test_a_living_run_is_not_restarted(tmp_path, lines):
    claim = Owner(locate(str(tmp_path), "run"), lines)
    claim.acquire()
    with pytest.raises(CheckpointError, match="is training it"):
        restart_run(str(tmp_path), "run", lines)
    claim.release()
    restart_run(str(tmp_path), "run", lines)
    assert sorted(os.listdir(tmp_path)) == ["run.old-1"]
