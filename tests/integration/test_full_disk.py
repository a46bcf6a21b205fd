"""A real disk that fills up under a run: no good checkpoint is lost, and training goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("full_disk_run.py")


def _is_allowed() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _is_allowed(), reason="this system lets nobody mount a small disk")
def test_a_disk_is_full_at_any_save(tmp_path: Path) -> None:
    """On a tmpfs of its own, with 0 to 15 pages left at each save, then with room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" "$3" "$1" "$4"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", disk, sys.executable, CHILD, tmp_path / "unbroken"]
    folders = [CHILD.parent, CHILD.parents[1], CHILD.parents[2]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == "finished"
    assert found["lost"] == []
    assert found["failed"] >= 3
    assert found["saved_when_tight"] >= 3
    assert all("the disk is full: needs " in line and " bytes, " in line for line in found["lines"])
    assert found["saved_after"]
    assert found["identical"]
