import subprocess
import sys
import time

import psutil
import pytest

from benchmarks._measure import (
    TreeClock,
    cpu_seconds,
    interleaved,
    main,
    memory,
    missing,
    output_of,
    peak_memory,
    ratios,
    record,
    timed,
)

WORK = [sys.executable, "-c", "while __import__('time').process_time() < 0.3: pass"]


def test_processor_time_covers_the_children_that_ended_and_those_that_live():
    before = cpu_seconds()
    assert timed(lambda: subprocess.run(WORK, check=True)).cpu >= 0.28
    with subprocess.Popen([*WORK[:-1], f"{WORK[-1]}\nprint(flush=True); input()"], stdin=-1, stdout=-1) as living:
        living.stdout.readline()
        assert cpu_seconds() - before >= 0.53
        living.communicate(b"\n")
    assert cpu_seconds() - before >= 0.56


def test_processor_time_covers_processes_that_nobody_waits_for():
    waits = [*WORK[:-1], f"{WORK[-1]}\n__import__('sys').stdin.read()"]
    careless = f"""
import signal, subprocess
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets what children took
subprocess.Popen({waits!r}).wait()
"""
    ends = time.monotonic() + 60
    with TreeClock(every=0.05) as clock:
        with subprocess.Popen([sys.executable, "-c", careless], stdin=-1):  # ends when its standard input is closed
            while clock.seconds() < 0.25 and time.monotonic() < ends:
                time.sleep(0.01)
        half = time.time()
        with subprocess.Popen(waits, stdin=-1):
            while clock.seconds() < clock.seconds(half) + 0.25 and time.monotonic() < ends:
                time.sleep(0.01)
    assert clock.seconds(half) >= 0.25
    assert clock.seconds() >= clock.seconds(half) + 0.2
    assert clock.seconds(0.0) == 0.0
    assert clock.shares(0.0, half)[0] >= 0.1
    assert clock.shares(half, time.time())[0] >= 0.1
    assert clock.shares(time.time(), time.time() + 1) == []
    assert sum(clock.shares(0.0, time.time())) == pytest.approx(clock.seconds())


def test_what_a_failing_command_said_is_shown(capsys):
    assert output_of([sys.executable, "-c", "import sys; print('a'); print('b', file=sys.stderr)"]) == "a\n"
    assert capsys.readouterr() == ("", "")
    with pytest.raises(subprocess.CalledProcessError):
        output_of([sys.executable, "-c", "raise SystemExit('no such thing')"])
    assert "no such thing" in capsys.readouterr().err


def test_a_command_that_takes_too_long_leaves_nothing_behind(tmp_path):
    inner = f"import time; time.sleep(300); '{tmp_path}'"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
    with pytest.raises(subprocess.TimeoutExpired):
        output_of([sys.executable, "-c", outer], patience=1.5)
    assert not [one for one in psutil.process_iter(["cmdline"]) if inner in (one.info["cmdline"] or ())]


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
    assert missing("a", 2.0).keys() == record("a", [3.0]).keys()


@pytest.mark.parametrize(("value", "status"), [(1.0, 1), (2.0, 0), (None, 0)])
def test_a_suite_alone_fails_below_a_floor_and_not_for_what_it_could_not_measure(value, status, capsys):
    with pytest.raises(SystemExit) as ended:
        main(lambda quick: [missing("a", 2.0) if value is None else record("a", [value], floor=2.0)])
    assert ended.value.code == status
    assert '"a"' in capsys.readouterr().out


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
