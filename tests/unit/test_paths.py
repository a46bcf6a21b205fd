import subprocess
import sys
from pathlib import Path

import pytest

from hai.errors import StorageError
from hai.paths import cache_folder, cache_room, locked


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("HAI_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.setenv("HAI_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "hai"


def test_a_lock_keeps_other_processes_out_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path))
    code = "from hai.paths import locked\nwith locked('free'), locked('job'):\n    print('in', flush=True)\n"
    with locked("job"), locked("another job"):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting for another process: job\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    assert process.communicate() == ("in\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("held", [locked, cache_room])
@pytest.mark.parametrize("cache", ["file/cache", "/proc"])  # cannot be made; is there, for reading only
def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, cache, held):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / cache))
    with (
        pytest.raises(StorageError, match=rf"^HAI_CACHE: .*{cache}.* cannot be written .*; name a writable folder$"),
        held("job"),
    ):
        pass


def test_a_room_in_the_cache_is_removed_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    with cache_room("job") as room:
        (Path(room) / "file").write_bytes(b"")
        assert [path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()] == ["job"]
    assert list((tmp_path / "cache").iterdir()) == []
