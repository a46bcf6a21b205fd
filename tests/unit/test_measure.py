import subprocess
import sys

import pytest

from benchmarks._measure import cpu_seconds, interleaved, memory, peak_memory, ratios, record, timed

WORK = [sys.executable, "-c", "while __import__('time').process_time() < 0.3: pass"]


def test_processor_time_covers_the_children_that_ended_and_those_that_live():
    before = cpu_seconds()
    assert timed(lambda: subprocess.run(WORK, check=True)).cpu >= 0.28
    with subprocess.Popen([*WORK[:-1], f"{WORK[-1]}\nprint(flush=True); input()"], stdin=-1, stdout=-1) as living:
        living.stdout.readline()
        assert cpu_seconds() - before >= 0.53
        living.communicate(b"\n")
    assert cpu_seconds() - before >= 0.56


def test_contestants_run_by_turns_in_both_directions():
    called = []
    measured = interleaved({name: lambda name=name: called.append(name) or len(called) for name in "ab"}, 2)
    assert called == ["a", "b", "b", "a"]
    assert measured == {"a": [1, 4], "b": [2, 3]}
    assert ratios(measured["a"], measured["b"]) == [0.5, 4 / 3]
    assert ratios([(1, 4)], [(1, 2)], field=1) == [2.0]


def test_a_record_is_judged_by_its_median():
    assert record("a", [3.0, 1.0, 2.0], floor=2.0) == {
        "name": "a", "value": 2.0, "low": 1.0, "high": 3.0, "floor": 2.0, "holds": True,
    }  # fmt: skip
    assert not record("a", [1.0], floor=2.0)["holds"]
    assert not record("a", [3.0], most=2.0)["holds"]
    assert record("a", [3.0], most=4.0)["floor"] == 4.0
    assert record("a", [3.0])["holds"]


def test_memory_is_that_of_the_whole_tree():
    hold = "held = b'1' * 60_000_000; import time; time.sleep(0.3); print('done')"
    nested = f"import subprocess, sys; held = b'1' * 60_000_000; subprocess.run([sys.executable, '-c', {hold!r}])"
    peak = peak_memory([sys.executable, "-c", nested], every=0.05)
    assert peak.output == "done\n"
    assert 120e6 < peak.bytes < 240e6
    with pytest.raises(subprocess.CalledProcessError):
        peak_memory([sys.executable, "-c", "raise SystemExit(3)"])


def test_own_memory():
    assert memory("VmRSS") <= memory()
