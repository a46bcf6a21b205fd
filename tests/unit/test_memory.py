"""What a step frees is kept for the next one, and given back at the end."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

STEPS = """
import json, os, resource, threading, torch
from hai.memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        [torch.ones(10_000_000) for _ in range(3)]  # 40 MB each: more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def look():
    found["usual"] = faults()
    with freed_memory_kept(torch.device("cuda")):
        found["gpu"] = faults()
    with freed_memory_kept(torch.device("cpu")):
        faults()
        found["kept"] = faults()
        found["held"] = held()
    found["left"] = held()

found = {}
if os.environ.get("IN_THREAD"):
    thread = threading.Thread(target=look)  # as in Ray Train
    thread.start()
    thread.join()
else:
    look()
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
@pytest.mark.parametrize("where", [{}, {"IN_THREAD": "1"}], ids=["main", "thread"])
def test_the_memory_of_a_step_is_used_again_and_given_back_at_the_end(where: dict[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = seen({**kept, **where})
    assert found["kept"] < found["usual"] / 10
    assert found["gpu"] > found["usual"] / 2
    assert found["left"] < found["held"] - 60_000_000
    found = seen({**kept, **where, "MALLOC_ARENA_MAX": "8"})
    assert found["kept"] > found["usual"] / 2  # as the user's own settings have it


def seen(environment: dict[str, str]) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found
