"""Suites of the benchmark at a small size: that they run, and what of their numbers is no matter of speed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import checkpoint, million, scaling

ROOT = Path(million.__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def values(records):
    return {record["name"].partition(":")[0]: record["value"] for record in records}


def test_orders_do_not_grow_with_the_number_of_workers():
    found = values(scaling.simulated(100_000, 1))
    assert found["examples_repeated_or_missing"] == 0
    assert found["held_bytes_per_example"] <= scaling.HELD
    assert found["held_bytes_of_1000_workers"] <= scaling.GROWTH
    assert found["start_seconds"] > 0


def test_what_two_workers_write_is_what_one_writes(tmp_path):
    found = values(scaling.two_workers(tmp_path, steps=40, repeats=1))
    assert found["checkpoint_bytes_of_two_workers"] == pytest.approx(1, abs=0.01)


def test_the_second_run_on_many_files_reads_none_of_them_again(tmp_path):
    million.draw_data(tmp_path, 2000, 200)
    first, second = (million.start_in_process(tmp_path, cache=tmp_path / "cache") for _ in range(2))
    assert (first["files"], first["remembered"]) == (200, 0)
    assert (second["files"], second["remembered"]) == (200, 200)
    assert first["seconds"].keys() == second["seconds"].keys()


def test_the_copy_of_a_checkpoint_is_seen_in_memory():
    model, state = checkpoint.build_state()
    size = sum(tensor.nbytes for part in (model, state) for tensor in part.values())
    assert checkpoint.peak_copies("hai", size) >= 1


def test_a_stopped_benchmark_leaves_nothing_behind(tmp_path):
    words = ["-c", "from hai.cli import main; main()", "benchmark", "all", "--quick"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        family: list[psutil.Process] = []
        end = time.monotonic() + 120
        while len(family) < 2 and time.monotonic() < end:  # the suite, and what it has started
            time.sleep(0.2)
            family = psutil.Process(command.pid).children(recursive=True)
        assert len(family) >= 2
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 143
    finally:
        command.kill()
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert not list(tmp_path.glob("hai-benchmark-*"))
