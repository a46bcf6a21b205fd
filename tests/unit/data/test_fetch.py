from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from kagglesdk import kaggle_env

from benchmarks.faults.web import File, WebServer
from hai.cli import main
from hai.config.schema import SourceConfig
from hai.data import download as downloads
from hai.data import fetch as fetching
from hai.data import remote
from hai.data.fetch import Fetched, fetch
from hai.data.sources import load_source
from hai.errors import ConfigError, DataError, StorageError

FILES = {"real/a.jpg": os.urandom(40_000), "fake/b.jpg": os.urandom(40_000), "labels.csv": b"path,label\n"}


def zipped(files: dict[str, bytes] = FILES) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


ZIP = zipped()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".fetched.json"
    }


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "COLAB_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "_PAUSE_S", 0.001)
    monkeypatch.setattr(downloads, "TIMEOUT", (2.0, 0.3))
    with WebServer() as server:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
        server.files |= {"/faces.zip": File(ZIP), "/kaggle/me/faces": File(ZIP)}
        yield server


@pytest.fixture
def to(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there" / "faces"


def test_a_zip_is_downloaded_and_unpacked_once(web, to):
    steps = []

    @contextmanager
    def show(what):
        steps.append([what])
        yield lambda done, total: steps[-1].append((done, total))

    found = fetch(f"{web.url}/faces.zip?X-Amz-Signature=1", to, show=show)
    assert tree(to) == FILES
    assert os.listdir(to.parent) == ["faces"]
    assert found == Fetched(to, f"{web.url}/faces.zip", 3, 0, sum(map(len, FILES.values())), found.date, True)
    assert [step[0] for step in steps] == ["downloading", "unpacking"]
    assert steps[0][-1] == (len(ZIP), len(ZIP))
    web.files.clear()
    again = fetch(f"{web.url}/faces.zip?X-Amz-Signature=2", to)
    assert not again.is_new
    assert (again.files, again.bytes, again.date) == (found.files, found.bytes, found.date)
    assert len(web.requests) == 1


def test_kaggle_and_its_pages_are_one_source(web, to):
    assert fetch("kaggle:me/faces", to).source == "kaggle:me/faces"
    assert tree(to) == FILES
    assert not fetch("https://www.kaggle.com/datasets/me/faces", to).is_new


def test_a_competition_needs_a_login(web, to):
    with pytest.raises(ConfigError, match="kaggle:competitions/contest: competitions need a login of Kaggle: create"):
        fetch("kaggle:competitions/contest", to)
    assert web.requests == []
    assert os.listdir(to.parent) == []


@pytest.mark.parametrize(
    ("path", "content", "headers"),
    [
        ("/faces.tar", tarred("w"), {}),
        ("/faces.TGZ", tarred("w:gz"), {"Content-Encoding": "x-gzip"}),
        ("/faces.tar.xz", tarred("w:xz"), {}),
        ("/download", ZIP, {"Content-Disposition": 'attachment; filename="faces.zip"'}),
        ("/download", ZIP, {}),
        ("/download", tarred("w:gz"), {}),
    ],
)
def test_archives_of_every_kind(web, to, path, content, headers):
    web.files[path] = File(content, headers=headers)
    fetch(web.url + path, to)
    assert tree(to) == FILES


def test_what_is_no_archive_keeps_its_name(web, to):
    web.files["/a%20b.docx"] = File(ZIP)
    fetch(f"{web.url}/a%20b.docx", to)
    assert tree(to) == {"a b.docx": ZIP}


def test_archives_in_archives_are_counted(web, to):
    web.files["/x.zip"] = File(zipped({"part_00.zip": ZIP, "readme": b"1"}))
    assert fetch(f"{web.url}/x.zip", to).archives == 1


def test_an_interrupted_download_goes_on(web, to):
    web.files["/faces.zip"].breaks = [70_000] + [0] * 20
    with pytest.raises(StorageError, match="run again to go on with the download"):
        fetch(f"{web.url}/faces.zip?X-Amz-Signature=1", to)
    assert not to.exists()
    web.files["/faces.zip"].breaks.clear()
    fetch(f"{web.url}/faces.zip?X-Amz-Signature=2", to)
    assert web.requests[-1] == ("GET", "/faces.zip", "bytes=70000-")
    assert tree(to) == FILES


def test_what_was_downloaded_of_another_source_is_kept(web, to):
    web.files["/faces.zip"].breaks = [70_000] + [0] * 20
    with pytest.raises(StorageError):
        fetch(f"{web.url}/faces.zip?token=canary", to)
    with pytest.raises(
        ConfigError, match=r"faces\.part: holds an unfinished download of .*/faces\.zip; delete"
    ) as caught:
        fetch("kaggle:me/faces", to)
    assert "canary" not in str(caught.value)
    assert "canary" not in (to.with_name("faces.part") / ".hai-fetch.json").read_text()
    web.files["/faces.zip"].breaks.clear()
    fetch(f"{web.url}/faces.zip", to)
    assert web.requests[-1] == ("GET", "/faces.zip", "bytes=70000-")


def test_what_another_source_only_began_goes(web, to, monkeypatch):
    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_brought", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(f"{web.url}/faces.zip", to)
    assert os.listdir(to.parent) == ["faces.part"]
    fetch("kaggle:me/faces", to)
    assert tree(to) == FILES


@pytest.mark.parametrize("name", ["source", ".hai-fetch.json"])
@pytest.mark.parametrize("text", ["", "[]", '{"identity": "x", "source": "x"}'])
def test_a_users_folder_beside_the_target_is_never_deleted(web, to, name, text):
    part = to.with_name("faces.part")
    part.mkdir()
    (part / name).write_text(text)
    (part / "thesis.tex").write_text("mine")
    for source in (f"{web.url}/faces.zip", "kaggle:me/faces"):
        with pytest.raises(ConfigError, match=r"faces\.part: is in the way"):
            fetch(source, to)
    assert sorted(os.listdir(part)) == sorted([name, "thesis.tex"])


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_beside_the_target_is_in_the_way(web, to, kind):
    part = to.with_name("faces.part")
    part.write_text("mine") if kind == "file" else part.symlink_to(to.parent)
    with pytest.raises(ConfigError, match=r"faces\.part: is in the way"):
        fetch(f"{web.url}/faces.zip", to)
    assert web.requests == []


def test_a_process_killed_while_unpacking_leaves_nothing_half(web, to, monkeypatch):
    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(f"{web.url}/faces.zip", to)
    part = to.with_name("faces.part")
    (part / "content.part-xyz").mkdir()
    (part / "content" / "stray").write_bytes(b"1")
    os.replace(part / "body", part / "archive.zip")  # as a kill at the worst moment would leave it
    fetch(f"{web.url}/faces.zip", to)
    assert tree(to) == FILES
    assert len(web.requests) == 1
    assert os.listdir(to.parent) == ["faces"]


@pytest.mark.parametrize("damage", [ZIP[:50_000], ZIP[:20_000] + b"?" + ZIP[20_001:]])
def test_a_damaged_zip_is_named_and_fetched_anew(web, to, damage):
    web.files["/faces.zip"] = File(damage, has_length=False)
    with pytest.raises(DataError, match=r"/faces\.zip: cannot be unpacked .*: run again to fetch it anew"):
        fetch(f"{web.url}/faces.zip", to)
    assert os.listdir(to.parent) == []
    web.files["/faces.zip"] = File(ZIP)
    fetch(f"{web.url}/faces.zip", to)
    assert tree(to) == FILES


def test_a_hostile_archive_is_refused_and_kept(web, to):
    web.files["/x.zip"] = File(zipped({"../evil.sh": b"1", "real/a.jpg": b"2"}))
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"leaves the folder by '\.\.'; refused \(the download is kept in .*\.part\)"
        ):
            fetch(f"{web.url}/x.zip", to)
    assert len(web.requests) == 1
    assert os.listdir(to.parent) == ["faces.part"]


def test_too_small_a_disk_is_said_before_anything_comes(web, to, monkeypatch):
    free = len(ZIP) + (64 << 20) + 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 10**12, free))
    with pytest.raises(StorageError, match=r"the download, and what is in it .* needs 161 kB, 67\.2 MB are free"):
        fetch(f"{web.url}/faces.zip", to)
    assert os.listdir(to.parent) == []
    web.files["/faces.mp4"] = File(ZIP)
    fetch(f"{web.url}/faces.mp4", to)


def test_what_is_there_of_a_download_needs_no_room_again(web, to, monkeypatch):
    web.files["/faces.zip"].breaks = [65_536] + [0] * 20
    with pytest.raises(StorageError, match="run again to go on"):
        fetch(f"{web.url}/faces.zip", to)
    web.files["/faces.zip"].breaks.clear()
    free = 2 * len(ZIP) - 65_536 + (64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 10**12, free - 1))
    with pytest.raises(StorageError, match="are free at"):
        fetch(f"{web.url}/faces.zip", to)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 10**12, free))
    fetch(f"{web.url}/faces.zip", to)
    assert tree(to) == FILES


def test_folders_that_are_something_else_are_left_alone(web, to):
    to.mkdir()
    (to / "mine").write_bytes(b"1")
    with pytest.raises(ConfigError, match="is there and was not made from SOURCE"):
        fetch(f"{web.url}/faces.zip", to)
    (to / "mine").unlink()
    fetch(f"{web.url}/faces.zip", to)
    with pytest.raises(ConfigError, match=r"holds .*faces\.zip already"):
        fetch("kaggle:me/faces", to)
    with pytest.raises(ConfigError, match=r"holds .*faces\.zip already"):
        fetch(f"{web.url}/faces.zip?id=2", to)
    other = to.with_name("other")
    other.with_name("other.part").mkdir()
    (other.with_name("other.part") / "mine").touch()
    with pytest.raises(ConfigError, match=r"other\.part: is in the way"):
        fetch(f"{web.url}/faces.zip", other)
    assert os.listdir(other.with_name("other.part")) == ["mine"]


@pytest.mark.parametrize("text", ["", "[]", '{"identity": "x"}', '{"identity": "x", "fetched": {}}'])
def test_a_stamp_that_is_none_makes_no_data_set(web, to, text):
    to.mkdir()
    (to / ".fetched.json").write_text(text)
    with pytest.raises(ConfigError, match="was not made from SOURCE"):
        fetch(f"{web.url}/faces.zip", to)


def test_logins_are_not_taken_from_addresses(to):
    with pytest.raises(ConfigError, match="must not hold a login") as caught:
        fetch("https://me:canary@example.org/x.zip", to)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("chain", ["simplecache::", "zip://a.jpg::"])
def test_chained_addresses_are_refused(web, to, chain):
    """Nothing would take their signatures out of what is written."""
    with pytest.raises(ConfigError, match=r"SOURCE = .* must not be a chain with '::'") as caught:
        fetch(f"{chain}{web.url}/faces.zip?sig=canary", to)
    assert "canary" not in str(caught.value)
    assert os.listdir(to.parent) == []
    assert web.requests == []


def test_queries_that_name_the_data_are_no_signature(web, to):
    fetch(f"{web.url}/faces.zip?set=train&sv=1&sig=2&skoid=3&se=4", to)
    assert not fetch(f"{web.url}/faces.zip?set=train&sv=2&sig=3&skoid=4&ses=5", to).is_new
    for name in ("set", "src", "seq", "sub"):
        with pytest.raises(ConfigError, match=r"holds .* already"):
            fetch(f"{web.url}/faces.zip?set=train&{name}=val", to)


@pytest.mark.parametrize("kind", ["link", "mount"])
def test_a_target_that_cannot_be_put_in_place_is_refused_before_anything_comes(web, to, tmp_path, monkeypatch, kind):
    if kind == "link":
        (tmp_path / "empty").mkdir()
        to.symlink_to(tmp_path / "empty")
    else:
        to.mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(to))
    with pytest.raises(ConfigError, match=r"--to = .*/faces; is a link or a mount point, name a folder"):
        fetch(f"{web.url}/faces.zip", to)
    assert web.requests == []
    assert os.listdir(to.parent) == ["faces"]


def test_refusals_of_servers(web, to):
    web.files["/faces.zip"].statuses = [403, 404, 418]
    for match in (r"refuses \(403\); the address needs a login", r"no such file \(404\)", "answers 418"):
        with pytest.raises(StorageError, match=match):
            fetch(f"{web.url}/faces.zip", to)


def test_local_archives_and_folders(to, tmp_path, web):
    (tmp_path / "faces.zip").write_bytes(ZIP)
    assert fetch(str(tmp_path / "faces.zip"), to).source == str(tmp_path / "faces.zip")
    assert tree(to) == FILES
    assert os.listdir(to.parent) == ["faces"]
    copy = fetch(str(to), tmp_path / "copy")
    assert tree(copy.path) == FILES
    assert (copy.path / ".fetched.json").is_file()
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        fetch(str(tmp_path / "none.zip"), tmp_path / "x")
    with pytest.raises(ConfigError, match="lies in SOURCE"):
        fetch(str(tmp_path), tmp_path / "x")


def test_an_archive_on_a_mounted_drive_is_copied_in_resumable_chunks(to, tmp_path, monkeypatch, web):
    (tmp_path / "faces.zip").write_bytes(ZIP)
    monkeypatch.setattr(fetching, "is_mount", lambda path: path.is_relative_to(tmp_path / "faces.zip"))
    monkeypatch.setattr(remote, "_CHUNK", 30_000)
    reads = []
    local = fsspec.filesystem("file")
    whole = local.cat_file

    def cat_file(path: str, start: int, end: int) -> bytes:
        reads.append(start)
        if len(reads) == 3:
            raise PermissionError("the drive is gone")
        return whole(path, start=start, end=end)

    monkeypatch.setattr(type(local), "cat_file", lambda self, *args, **options: cat_file(*args, **options))
    with pytest.raises(StorageError, match="run again to go on with the copy"):
        fetch(str(tmp_path / "faces.zip"), to)
    fetch(str(tmp_path / "faces.zip"), to)
    assert reads == [0, 30_000, 60_000, 60_000]
    assert tree(to) == FILES


def test_the_stamp_holds_no_secret(web, to):
    fetch(f"{web.url}/faces.zip?X-Goog-Signature=canary&token=canary", to)
    note = (to / ".fetched.json").read_text()
    assert "canary" not in note
    assert json.loads(note)["identity"] == f"{web.url}/faces.zip"


def test_kaggle_is_a_source_of_data(web, tmp_path, monkeypatch):
    """It is fetched into the cache, once; whatever folder its zip wraps everything in is stepped into."""
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    web.files["/kaggle/me/faces"] = File(
        zipped({f"faces/{name}": content for name, content in FILES.items() if "/" in name})
    )
    for _ in range(2):
        rows = load_source(SourceConfig(name="s", path="kaggle:me/faces"), [])
        assert sorted(zip(rows.path, rows.label, strict=True)) == [("fake/b.jpg", 1), ("real/a.jpg", 0)]
    assert [method for method, _, _ in web.requests] == ["POST", "GET"]


def test_the_command(web, to, capsys, monkeypatch):
    def ran(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["data", "fetch", *words])
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    web.files["/x.zip"] = File(zipped({"part_00.zip": ZIP, "readme": b"1"}))
    url, words = f"{web.url}/x.zip", (f"{web.url}/x.zip?X-Amz-Signature=canary", "--to", str(to))
    status, said = ran(*words)
    assert (status, said.splitlines()) == (
        0,
        [
            f"wrote {to}: 2 files, 80.3 kB, from {url}",
            "warning: 1 of the files are archives and stay packed; hai data fetch unpacks each",
        ],
    )
    status, said = ran(*words)
    assert status == 0
    assert said.startswith(f"{to}: already there, 2 files, 80.3 kB, from {url}, fetched 20")
    status, said = ran(f"{web.url}/gone.zip", "--to", f"{to}-gone")
    assert (status, said) == (2, f"{web.url}/gone.zip: the server has no such file (404); check the address\n")
    monkeypatch.setattr("hai.paths.is_mount", lambda path: True)
    assert ran(*words)[1].startswith(f"warning: {to} is no local disk")
