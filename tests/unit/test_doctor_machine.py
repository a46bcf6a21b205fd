from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hai.doctor.machine import (
    check_compiled,
    check_folders,
    check_packages,
    check_shared_memory,
    free_memory,
    write_error,
)
from hai.doctor.storage import check_place, check_room_for_checkpoints

SMALL_DISKS = """
import json, sys
from pathlib import Path
from hai.doctor.machine import check_shared_memory, write_error
from hai.doctor.storage import check_place

full, sealed = Path(sys.argv[1]), Path(sys.argv[2])
found = [*check_place(str(full)), *check_place(str(sealed / "runs")), *check_shared_memory(full)]
left = [path.name for folder in (full, sealed) for path in folder.iterdir()]
last = [write_error(full), write_error(sealed), left]
print(json.dumps([[one.status, one.text, one.mend] for one in found] + [last]))
"""
MOUNT = """
mount -t tmpfs -o size=64k none "$1" && mount -t tmpfs -o ro none "$2" || exit 77
dd if=/dev/zero of="$1/filling" bs=4k 2>/dev/null
exec "$3" -c "$4" "$1" "$2"
"""


def test_everything_that_hai_declares_is_here() -> None:
    assert {finding.status for finding in check_packages()} == {"ok"}


def test_a_package_that_is_missing_or_too_old_is_named_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "made_up-1.0.dist-info"
    info.mkdir()
    wishes = ["numpy>=999", "no-such-package>=1.2", "pytest>=1", "other>=3; extra == 'more'"]
    lines = ["Metadata-Version: 2.1", "Name: made-up", "Version: 1.0", *(f"Requires-Dist: {wish}" for wish in wishes)]
    (info / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = [one for one in check_packages("made-up") if one.status == "problem"]
    assert "no-such-package is missing" in finding.text
    assert "is too old" in finding.text
    assert finding.mend == 'pip install "numpy>=999" "no-such-package>=1.2"'
    assert [one.status for one in check_packages("not-installed-at-all")] == ["ok", "warning"]


def test_a_package_that_every_process_compiles_anew_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "made_up" / "__init__.py"
    module.parent.mkdir()
    module.write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert list(check_compiled("made_up")) == []
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (finding,) = check_compiled("made_up")
    assert "made_up and others are not compiled" in finding.text
    assert "PYTHONDONTWRITEBYTECODE is set" in finding.text
    command = finding.mend.removeprefix("once: ").replace("~", str(Path.home()))
    subprocess.run(command, shell=True, check=True)
    assert list(check_compiled("made_up")) == []
    assert list(check_compiled("no_such_package")) == []


def test_a_full_and_a_read_only_disk_are_told(tmp_path: Path) -> None:
    full, sealed = tmp_path / "full", tmp_path / "sealed"
    full.mkdir()
    sealed.mkdir()
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", MOUNT, "sh", full, sealed, sys.executable, SMALL_DISKS],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip("this system lets nobody mount a small disk")
    on_full, on_sealed, shared, last = json.loads(done.stdout)
    assert on_full == ["problem", f"{full}: the disk is full", "choose another folder with --storage"]
    assert on_sealed[0] == "problem"
    assert "the file system is read-only" in on_sealed[1]
    assert shared[0] == "warning"
    assert "no space left on device" in shared[1]
    assert last == ["no space left on device", "read-only file system", ["filling"]]


def test_little_shared_memory_is_told_and_none_is_no_trouble(tmp_path: Path) -> None:
    assert list(check_shared_memory(tmp_path / "none")) == []


def test_a_storage_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (finding,) = check_place(str(tmp_path / "new" / "runs"))
    assert finding.status == "ok"
    assert "read back and deleted" in finding.text
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    assert [one.status for one in check_place(str(tmp_path / "runs"))] == ["ok"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_storages_that_cannot_be_are_told_with_their_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (in_the_way,) = check_place(str(tmp_path / "file"))
    assert (in_the_way.status, in_the_way.text) == ("problem", f"{tmp_path}/file: a file is in the way")
    (unknown,) = check_place("nosuch://bucket/runs")
    assert unknown.status == "problem"
    assert "no such scheme 'nosuch'" in unknown.text
    assert "s3://BUCKET" in unknown.mend


def test_a_bucket_that_is_missing_is_told(gcs: int) -> None:
    assert [one.status for one in check_place("gs://bucket/runs")] == ["ok"]
    (missing,) = check_place("gs://no-such-bucket/runs")
    assert missing.status == "problem"
    assert missing.mend


def test_checkpoints_that_have_no_room_are_told(tmp_path: Path) -> None:
    assert list(check_room_for_checkpoints(str(tmp_path / "runs"), 1e3, 2)) == []
    (finding,) = check_room_for_checkpoints(str(tmp_path / "runs"), 1e15, 2)
    assert finding.status == "warning"
    assert finding.text.startswith("4 checkpoints of 1e+03 TB take 4e+03 TB")
    assert list(check_room_for_checkpoints("gs://bucket/runs", 1e15, 2)) == []


def test_a_cache_that_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAI_CACHE", "/proc/hai")  # where nobody, not even root, makes a folder
    (finding,) = [one for one in check_folders() if one.check == "cache"]
    assert finding.status == "problem"
    assert "HAI_CACHE" in finding.mend
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "not" / "yet"))
    assert [one.status for one in check_folders() if one.check == "cache"] != ["problem"]
    assert list(tmp_path.iterdir()) == []
    assert write_error(tmp_path) == ""


@pytest.mark.parametrize(
    ("limit", "use", "expected"),
    [("1000000", "400000", 600000.0), ("max", "400000", 8192e3), ("1000", "2000", 0.0)],
)
def test_a_containers_limit_counts(tmp_path: Path, limit: str, use: str, expected: float) -> None:
    (tmp_path / "memory.max").write_text(limit, encoding="ascii")
    (tmp_path / "memory.current").write_text(use, encoding="ascii")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", encoding="ascii")
    assert free_memory(tmp_path, tmp_path / "meminfo") == expected
    assert free_memory(tmp_path / "none", tmp_path / "none") is None
