import json
import os
import shutil
import zipfile

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hai.config.schema import SourceConfig
from hai.data import remote
from hai.data.remote import copy_file, copy_folder, local_copy, partial_file
from hai.data.sources import load_source
from hai.errors import DataError, StorageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def save_images(folder, names):
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(path, format="PNG")
    return folder


def save_csv(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def loaded(path, **options):
    faults = []
    rows = load_source(SourceConfig(name=options.pop("name", "s"), path=str(path), **options), faults)
    assert faults == []
    return {p: values for p, *values in zip(rows.path, rows.label, rows.split, rows.group, rows.source, strict=True)}


def faults_of(path, **options):
    faults = []
    load_source(SourceConfig(name="s", path=str(path), **options), faults)
    return faults


def test_folder(tmp_path):
    save_images(tmp_path / "d", ["Real/a.png", "REAL/v1/b.PNG", "fake/deepfakes/v2/x/c.png", "fake/d.png"])
    save_images(tmp_path / "d", ["fake/.hidden/e.png", "__MACOSX/real/f.png", "other/g.png"])
    (tmp_path / "d" / "fake" / "notes.txt").write_text("", encoding="utf-8")
    (tmp_path / "d" / "fake" / "clip.mp4").write_text("", encoding="utf-8")
    assert loaded(tmp_path / "d") == {
        "Real/a.png": [0, -1, "", "s"],
        "REAL/v1/b.PNG": [0, -1, "v1", "s"],
        "fake/deepfakes/v2/x/c.png": [1, -1, "v2/x", "s/Deepfakes"],
        "fake/d.png": [1, -1, "", "s"],
    }
    (line,) = load_source(SourceConfig(name="s", path=str(tmp_path / "d")), []).warnings
    assert "2 files are not images and were left out" in line


def test_folder_with_splits(tmp_path):
    save_images(tmp_path / "d", ["train/real/a.png", "Val/Fake/b.png", "test/real/FACE2FACE/c.png"])
    assert loaded(tmp_path / "d") == {
        "train/real/a.png": [0, 0, "", "s"],
        "Val/Fake/b.png": [1, 1, "", "s"],
        "test/real/FACE2FACE/c.png": [0, 2, "", "s/Face2Face"],
    }


def test_folder_links_are_followed_once(tmp_path):
    save_images(tmp_path / "elsewhere", ["a.png"])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "real").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert list(loaded(tmp_path / "d")) == ["real/a.png"]
    (tmp_path / "elsewhere" / "broken.png").symlink_to(tmp_path / "nowhere")
    assert faults_of(tmp_path / "d") == [f"{tmp_path}/d/real/broken.png: missing; a link that leads nowhere?"]


def test_what_is_no_source_is_refused_with_the_forms(tmp_path):
    save_images(tmp_path / "d", ["cats/a.png"])
    with pytest.raises(DataError, match=r"no real/ or fake/ folder \(found: cats\)"):
        loaded(tmp_path / "d")
    (tmp_path / "e" / "real").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        loaded(tmp_path / "e")
    with pytest.raises(DataError, match="no such file or folder"):
        loaded(tmp_path / "f")
    (tmp_path / "g.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="a CSV, a pack, or an archive"):
        loaded(tmp_path / "g.txt")


def test_csv(tmp_path):
    save_images(tmp_path, ["a.png", "sub/한글.png", "c.png", "d.png"])
    text = "\ufeff Label,extra,path,source,split,group\r\nREAL,x,a.png,,,\r\n1,y,sub\\한글.png,Deepfakes,Val,g 1\r\n"
    text += f"\r\nfake,z,./c.png,s,test,\r\n0,,{tmp_path}/d.png\r\n"
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    assert loaded(tmp_path / "rows.csv") == {
        "a.png": [0, -1, "", "s"],
        "sub/한글.png": [1, 1, "g 1", "s/Deepfakes"],
        "c.png": [1, 2, "", "s"],
        "d.png": [0, -1, "", "s"],
    }


def test_labels_csv_wins_over_folders_and_image_dir_moves_the_start(tmp_path):
    save_images(tmp_path / "d", ["real/a.png", "fake/b.png"])
    save_csv(tmp_path / "d" / "labels.csv", "path,label", "real/a.png,fake")
    assert loaded(tmp_path / "d") == {"real/a.png": [1, -1, "", "s"]}
    save_csv(tmp_path / "t.csv", "path,label", "a.png,real")
    assert list(loaded(tmp_path / "t.csv", image_dir=str(tmp_path / "d" / "real"))) == ["a.png"]
    with pytest.raises(DataError, match=r"image_dir = .*no such folder"):
        loaded(tmp_path / "t.csv", image_dir=str(tmp_path / "none"))


def test_every_bad_row_is_listed_with_its_line_and_rule(tmp_path):
    save_images(tmp_path / "d", ["a.png", "b.png"])
    save_images(tmp_path, ["secret.png"])
    rows = [
        "path,label,split",
        "a.png,real,train",
        "b.png,cat,train",
        "gone.png,fake,",
        "a.png,fake,",
        "../secret.png,1,",
    ]
    rows += [f"{tmp_path}/secret.png,1,", "b.png,fake,dev", ",real,", "x/../../secret.png,0,"]
    table = save_csv(tmp_path / "d" / "t.csv", *rows)
    faults = faults_of(table)
    expected = {
        3: "label = 'cat'",
        4: "no such file",
        5: "already in line 2",
        6: "leaves its folder",
        7: "leaves its folder",
        9: "path is empty",
        10: "leaves its folder",
    }
    for line, words in expected.items():
        assert any(fault.startswith(f"{table}:{line}:") and words in fault for fault in faults), (line, words)
    assert sum(fault.startswith(f"{table}:8:") for fault in faults) == 2
    assert len(faults) == 9


GOOD_CELLS = {
    "path": ["a.png", "b.png", "한글/c.png"],
    "label": ["real", "FAKE", "0", "1"],
    "split": ["", "train", "VAL"],
}
BAD_CELLS = {
    "path": ["gone.png", "", "../a.png", "/etc/hostname", "한글"],
    "label": ["", "2", "true"],
    "split": ["all", "0"],
}


@st.composite
def csv_rows(draw):
    """Rows of cells, and which of them are bad by their own."""
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        bad = draw(st.sets(st.sampled_from(["path", "label", "split"])))
        cells = {name: draw(st.sampled_from((BAD_CELLS if name in bad else GOOD_CELLS)[name])) for name in GOOD_CELLS}
        rows.append((cells, bool(bad)))
    return rows


@given(rows=csv_rows(), columns=st.permutations(["path", "label", "split"]), end=st.sampled_from(["\n", "\r\n"]))
def test_generated_csvs_have_each_bad_row_listed_and_no_other(tmp_path_factory, rows, columns, end):
    folder = tmp_path_factory.mktemp("csv")
    save_images(folder, GOOD_CELLS["path"])
    lines = [columns, *[[cells[name] for name in columns] for cells, _ in rows]]
    (folder / "t.csv").write_text(end.join(",".join(line) for line in lines), encoding="utf-8", newline="")
    expected, seen = set(), set()
    for line, (cells, bad) in enumerate(rows, 2):
        if any(cells.values()) and (bad or cells["path"] in seen):
            expected.add(line)
        if cells["path"] in GOOD_CELLS["path"]:
            seen.add(cells["path"])
    faults = []
    loaded_rows = load_source(SourceConfig(name="s", path=str(folder / "t.csv")), faults)
    assert {int(fault.removeprefix(f"{folder}/t.csv:").split(":")[0]) for fault in faults} == expected
    good = [cells["path"] for line, (cells, _) in enumerate(rows, 2) if line not in expected and any(cells.values())]
    assert [path for path in loaded_rows.path if path in good] == good


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("path,label\n", "no rows below the header"),
        ("file,label\na,real\n", "has no column 'path' (found: file, label)"),
        ("path,label,label\na,real,1\n", "has the column 'label' twice"),
        ("path,label\na,real\n".encode("utf-16"), "not UTF-8"),
        ('"path,label\na,real\n', "cannot be read as CSV"),
    ],
)
def test_unusable_csvs(tmp_path, text, words):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        loaded(path)
    assert words in str(caught.value)


def test_rows_that_cannot_be_read_are_listed_with_the_others(tmp_path):
    save_images(tmp_path, ["a.png", "b.png", "c.png"])
    lines = ["path,label,note", '"a.png"x,real,', "b.png,\xe9,", '"b.png",real,"two', 'lines"', "gone.png,fake,"]
    lines += [f"{'x' * 200_000},fake,", "c.png,fake,a note", 'a.png,fake,"never closed', "gone.png,fake,"]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode("latin-1"))
    faults = []
    rows = load_source(SourceConfig(name="s", path=str(tmp_path / "t.csv")), faults)
    assert rows.path[0] == "b.png"
    assert sorted(int(fault.removeprefix(f"{tmp_path}/t.csv:").split(":")[0]) for fault in faults) == [2, 3, 6, 7, 9]
    assert max(map(len, faults)) < 500


def zip_of(folder, to, inside=""):
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{inside}{path.relative_to(folder)}")
    return to


def test_archives_are_unpacked_once_and_again_when_they_change(tmp_path, cache):
    save_images(tmp_path / "d", ["real/a.png", "fake/b.png"])
    archive = zip_of(tmp_path / "d", tmp_path / "a.zip", "top/faces/")
    assert list(loaded(archive)) == list(loaded(archive)) == ["fake/b.png", "real/a.png"]
    assert len(os.listdir(cache / "unpacked")) == 1
    save_images(tmp_path / "d", ["real/c.png"])
    zip_of(tmp_path / "d", archive)
    assert len(loaded(archive)) == 3
    assert len(os.listdir(cache / "unpacked")) == 2


def test_archive_with_a_csv(tmp_path):
    save_images(tmp_path / "d", ["images/a.png"])
    save_csv(tmp_path / "d" / "rows.csv", "path,label", "a.png,fake")
    archive = shutil.make_archive(str(tmp_path / "a"), "gztar", tmp_path / "d")
    assert loaded(archive, image_dir="images") == {"a.png": [1, -1, "", "s"]}


def upload(memory, folder, to):
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"{to}/{path.relative_to(folder)}", path.read_bytes())


def test_urls_are_copied_once(tmp_path, memory):
    save_images(tmp_path / "d", ["real/a.png", "fake/b.png"])
    upload(memory, tmp_path / "d", "/bucket/d")
    seen = []
    rows = load_source(
        SourceConfig(name="s", path="memory://bucket/d"), [], lambda done, total: seen.append((done, total))
    )
    assert sorted(rows.path) == ["fake/b.png", "real/a.png"]
    assert seen[-1][0] == seen[-1][1] > 0
    before = [os.stat(file).st_mtime_ns for file in rows.file]
    again = load_source(SourceConfig(name="s", path="memory://bucket/d"), [])
    assert [os.stat(file).st_mtime_ns for file in again.file] == before
    memory.rm_file("/bucket/d/real/a.png")
    save_images(tmp_path / "new", ["b.png"])
    memory.pipe_file("/bucket/d/fake/b.png", b"another content")
    changed = load_source(SourceConfig(name="s", path="memory://bucket/d"), [])
    assert changed.path == ["fake/b.png"]
    with open(changed.file[0], "rb") as file:
        assert file.read() == b"another content"


def test_urls_of_archives_and_csvs(tmp_path, memory):
    save_images(tmp_path / "d", ["a.png", "b.png", "unused.png"])
    save_csv(tmp_path / "d" / "t.csv", "path,label", "a.png,real", "b.png,fake", "gone.png,fake")
    upload(memory, tmp_path / "d", "/bucket/csv")
    faults = []
    rows = load_source(SourceConfig(name="s", path="memory://bucket/csv/t.csv"), faults)
    assert len(faults) == 1
    assert "t.csv:4: path = 'gone.png'; there is no such file in memory://bucket/csv" in faults[0]
    assert not any("unused" in name for name in os.listdir(os.path.dirname(rows.file[0])))
    save_images(tmp_path / "e", ["real/a.png"])
    memory.pipe_file("/bucket/e.zip", zip_of(tmp_path / "e", tmp_path / "e.zip").read_bytes())
    assert list(loaded("memory://bucket/e.zip")) == ["real/a.png"]


def test_urls_that_lead_nowhere(memory):
    with pytest.raises(DataError, match="nothing is there"):
        loaded("memory://bucket/none")
    with pytest.raises(StorageError, match="cannot be reached"):
        loaded("nosuchscheme://bucket/none")


def test_remote_names_cannot_leave_the_folder(memory, tmp_path):
    name = "/bucket/bad/../../evil.png"
    memory.store[name] = MemoryFile(memory, name, b"1")
    with pytest.raises(DataError, match=r"leaves the folder by '\.\.'"):
        local_copy("memory://bucket/bad")


class Breaking(MemoryFileSystem):
    """A file system whose connection breaks at the second request."""

    cachable = False
    requests = 0

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.requests += 1
        if self.requests == 2:
            raise PermissionError("connection lost")
        return super().cat_file(path, start, end, **kwargs)


def test_an_interrupted_copy_goes_on(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(remote, "_CHUNK", 100)
    data = os.urandom(250)
    memory.pipe_file("/bucket/x", data)
    fs, to, counts = Breaking(), tmp_path / "x", []
    with pytest.raises(StorageError, match="run again to go on"):
        copy_file(fs, "/bucket/x", to, 250, token="t", progress=counts.append)
    assert not to.exists()
    assert sum(counts) == 100
    copy_file(fs, "/bucket/x", to, 250, token="t")
    assert to.read_bytes() == data
    assert fs.requests == 4
    assert os.listdir(tmp_path) == ["x"]


def test_what_was_copied_of_a_folder_is_written_down_on_the_way(tmp_path, memory, monkeypatch):
    """A process that is killed gets no chance to do it at the end."""
    monkeypatch.setattr(remote, "_FLUSH_SECONDS", -1.0)
    for i in range(40):
        memory.pipe_file(f"/bucket/d/{i}", b"12345")
    known = []

    def progress(done: int, total: int) -> None:
        state = tmp_path / "d" / ".copied.json"
        known.append(len(json.loads(state.read_text())) if state.exists() else 0)

    assert copy_folder("memory://bucket/d", tmp_path / "d", progress) == 40
    assert known[0] == 0
    assert known[-1] >= 24
    assert not (tmp_path / "d" / ".copied.json").exists()


def test_what_a_killed_copy_left_of_older_versions_goes(tmp_path, memory):
    memory.pipe_file("/bucket/d/real/a.jpg", b"12345")
    to = tmp_path / "d"
    for name in ("real", "gone"):
        (to / name).mkdir(parents=True)
    (to / "gone" / "gone.jpg").write_bytes(b"old")
    partial_file(to / "real" / "a.jpg", 4, token="old").write_bytes(b"old")
    assert copy_folder("memory://bucket/d", to) == 1
    assert [str(path.relative_to(to)) for path in sorted(to.rglob("*"))] == ["real", "real/a.jpg"]


def test_passing_trouble_is_tried_again(tmp_path, memory):
    class Shaky(Breaking):
        def cat_file(self, path, start=None, end=None, **kwargs):
            self.requests += 1
            if self.requests == 1:
                raise ConnectionResetError("try again")
            return MemoryFileSystem.cat_file(self, path, start, end, **kwargs)

    memory.pipe_file("/bucket/x", b"12345")
    copy_file(Shaky(), "/bucket/x", tmp_path / "x", 5)
    assert (tmp_path / "x").read_bytes() == b"12345"


def test_a_file_of_another_size_or_content_is_refused(tmp_path, memory):
    memory.pipe_file("/bucket/x", b"12345")
    fs = fsspec.filesystem("memory")
    with pytest.raises(DataError, match="5 bytes; expected 9"):
        copy_file(fs, "/bucket/x", tmp_path / "x", 9)
    with pytest.raises(DataError, match="another content"):
        copy_file(fs, "/bucket/x", tmp_path / "x", 5, sha256="0" * 64)
    assert os.listdir(tmp_path) == []
