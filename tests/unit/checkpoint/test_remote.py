import os
import threading
import time

import pytest

from benchmarks.faults.storage import FaultyFileSystem as Storage
from hai.checkpoint import reach, remote
from hai.checkpoint.reach import within
from hai.checkpoint.remote import Bucket, Mount, check_storage, is_bucket, is_mount, locate, open_remote
from hai.errors import StorageError

MOUNTS = r"""overlay / overlay rw 0 0
proc /proc proc rw 0 0
/dev/sda1 /data ext4 rw 0 0
drive /content/drive fuse.drive rw 0 0
server:/x /data/me/net\040share nfs4 rw 0 0
me#host /mnt/ssh fuse.sshfs rw 0 0
/dev/sdb1 /mnt/usb fuseblk rw 0 0
overlay /mnt/rootless fuse.fuse-overlayfs rw 0 0
//nas/y /mnt/nas cifs rw 0 0
host /mnt/nine 9p rw 0 0
tmpfs /mnt/nas/tmp tmpfs rw 0 0
torn
"""


@pytest.fixture(autouse=True)
def storage():
    Storage.reset()
    yield
    Storage.reset()


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/data/me/runs", False),
        ("/content/drive/My Drive/runs", True),
        ("/content/driver", False),
        ("/data/me/net share/runs", True),
        ("/data/me/net", False),
        ("/mnt/ssh", True),
        ("/mnt/usb/runs", False),
        ("/mnt/rootless/runs", False),
        ("/mnt/nas/runs", True),
        ("/mnt/nas/tmp/runs", False),
        ("/mnt/nine", True),
    ],
)
def test_mounts_are_told_from_local_disks(tmp_path, folder, expected):
    table = tmp_path / "mounts"
    table.write_text(MOUNTS, encoding="utf-8")
    assert is_mount(remote.Path(folder), table) is expected


def test_no_mount_table_means_local_disks(tmp_path):
    assert not is_mount(tmp_path, tmp_path / "absent")


def test_urls_and_paths(tmp_path, monkeypatch):
    assert [is_bucket(s) for s in ("s3://b/x", "gs://b", "faulty://b")] == [True] * 3
    assert [is_bucket(s) for s in ("runs", "/a/b", "file:///a/b", "~/runs", "C:/x")] == [False] * 5
    assert open_remote(str(tmp_path)) is None
    assert isinstance(open_remote("faulty://b/x"), Bucket)
    monkeypatch.setattr(remote, "is_mount", lambda folder: True)
    assert isinstance(open_remote(str(tmp_path)), Mount)


def test_locate(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    assert locate(f"file://{tmp_path}/a b", "run").path == tmp_path / "a b" / "run"
    monkeypatch.chdir(tmp_path)
    assert locate("runs", "run").path == tmp_path / "runs" / "run"
    first, slash, other = locate("faulty://b/x", "run"), locate("faulty://b/x/", "run"), locate("faulty://c/x", "run")
    assert first.path == slash.path != other.path
    assert first.path.parent == tmp_path / "cache" / "runs"
    assert first.remote.url == "faulty://b/x/run"
    for attempt in (2, 10):
        Storage.objects[f"b/x/run/attempt-{attempt}/owner.json"] = b"{}"
    assert locate("faulty://b/x", "run").remote.url == "faulty://b/x/run/attempt-10"


@pytest.fixture(params=["bucket", "mount"])
def folder(request, tmp_path):
    return Bucket("faulty://bucket/run") if request.param == "bucket" else Mount(tmp_path / "mount")


def test_a_remote_folder(folder, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1000)
    assert folder.read("a/b") is None
    assert folder.size("a/b") is None
    assert folder.names("a") == []
    folder.delete("a/b")
    folder.delete_folder("a")
    folder.put(source, "a/b")
    folder.write("a/c", b"small")
    folder.write("a/c", b"other")
    assert folder.names("a") == ["b", "c"]
    assert folder.names("") == ["a"]
    assert folder.read("a/c") == b"other"
    assert folder.size("a/b") == 1000
    assert b"".join(folder.blocks("a/b")) == source.read_bytes()
    folder.fetch("a/b", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    with pytest.raises(FileNotFoundError):
        folder.fetch("a/none", tmp_path / "target")
    folder.delete("a/b")
    folder.delete("a/c")
    folder.delete_folder("a")
    assert folder.names("") == []


def test_a_storage_that_works_is_left_as_it_was(tmp_path):
    check_storage(str(tmp_path / "new" / "runs"))
    assert os.listdir(tmp_path / "new" / "runs") == []
    check_storage("faulty://bucket/runs")
    assert Storage.objects == {}
    assert len(Storage.writes) == 1


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in ("file", "file/runs"):
        with pytest.raises(
            StorageError, match=r"^storage: .*: a file is in the way; choose another folder with --stor"
        ):
            check_storage(str(tmp_path / path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="you may not write there"):
        check_storage(str(tmp_path))


def test_read_only_file_systems_are_named(tmp_path):
    with pytest.raises(StorageError, match=r"^storage: /proc/hai: .*; choose another folder"):
        check_storage("/proc/hai")


def test_an_unknown_scheme_says_what_there_is():
    with pytest.raises(StorageError, match="no such scheme 'nosuch'; use a folder, s3://BUCKET"):
        check_storage("nosuch://bucket/runs")


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("url", "error", "expected"),
    [
        ("s3://b", ImportError("Install s3fs to access S3"), "Install s3fs to access S3; pip install s3fs"),
        ("s3://b", NoCredentialsError("Unable to locate credentials"), "no credentials .*aws configure"),
        ("gs://b", PermissionError("Access Denied"), "access refused .*gcloud auth application-default login"),
        ("gs://b", OSError("Forbidden: 403"), "access refused"),
        ("s3://b", FileNotFoundError("The specified bucket does not exist"), "no such bucket or folder"),
        ("s3://b", ConnectionError("reset\nmore"), "ConnectionError: reset$"),
    ],
)
def test_storage_errors_say_how_to_mend_them(monkeypatch, url, error, expected):
    def fail(self, name, content):
        raise error

    monkeypatch.setattr(Bucket, "write", fail)
    with pytest.raises(StorageError, match=f"^storage: {url}: {expected}") as found:
        check_storage(url)
    assert "\n" not in str(found.value)


def test_a_storage_that_lies_is_refused(monkeypatch):
    monkeypatch.setattr(Bucket, "read", lambda self, name: b"other")
    with pytest.raises(StorageError, match="does not read back"):
        check_storage("faulty://bucket")


def test_a_storage_that_hangs_is_refused(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(Bucket, "write", lambda self, name, content: release.wait(30))
    monkeypatch.setattr(reach, "_LIMIT_S", 0.1)
    with pytest.raises(StorageError, match="check the network"):
        check_storage("faulty://bucket")
    release.set()


def test_within():
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["a"])
    release = threading.Event()
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within"):
        within(0.05, lambda: release.wait(60))
    assert time.monotonic() - start < 30
    release.set()
