"""Which files a prediction is of: found in folders, named, in the order of a sample."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from hai.errors import DataError, StorageError
from hai.predict.files import find_files, find_rows


def test_natural_order_and_hidden_files(tmp_path: Path) -> None:
    names = ["a/2.png", "a/10.png", "B/1.jpg", "b2.jpg", "b10.jpg", "1/x.png", "10/x.png", "2/x.png", "c.MOV"]
    for name in [*names, ".hidden.png", ".git/x.png", "__MACOSX/x.png", "x.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    with ExitStack() as stack:
        found = [name for name, _ in find_files(str(tmp_path), stack)]
    assert found == ["1/x.png", "2/x.png", "10/x.png", "a/2.png", "a/10.png", "B/1.jpg", "b2.jpg", "b10.jpg", "c.MOV"]


def test_links_are_followed_and_other_endings_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("kept/a.png", "in/b.png", "in/clip.dat", "in/noending", "in/more.dat", "in/labels.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "kept")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    with ExitStack() as stack:
        assert [name for name, _ in find_files(str(tmp_path / "in"), stack)] == ["b.png", "linked/a.png"]
    said = capsys.readouterr().err
    assert said.endswith("left out as neither images nor videos by their names: 2 with .dat, 1 with no ending\n")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    scandir = os.scandir

    def scan(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with (
        ExitStack() as stack,
        pytest.raises(DataError, match=r"closed: cannot be read \(Permission denied\); allow it"),
    ):
        list(find_files(str(tmp_path), stack))


def test_a_sample_finds_names_whose_letters_were_taken_apart(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "사진.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / apart).write_bytes(b"")
    (tmp_path / "sample.csv").write_text("filename\n사진.png\n", encoding="utf-8")
    with ExitStack() as stack:
        (row,) = find_rows([str(tmp_path / "in")], stack, sample=str(tmp_path / "sample.csv"), unique=True)
    assert (row.name, row.source, row.error) == ("사진.png", tmp_path / "in" / apart, "")


def test_an_archive_without_a_cache_folder_to_unpack_it_in_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cache", "images.zip"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    with (
        pytest.raises(StorageError, match=r"^HAI_CACHE: .*cache cannot be written \(File exists\); name a writable"),
        ExitStack() as stack,
    ):
        list(find_files(str(tmp_path / "images.zip"), stack))


def sources_of(folder: Path, wanted: Sequence[str], *inputs: str) -> dict[str, str]:
    """Return the file that each name of a sample finds, relative to the folder; "" where it finds none."""
    (folder / "sample.csv").write_text("\n".join(["filename", *wanted]), encoding="utf-8")
    with ExitStack() as stack:
        rows = find_rows([str(folder / name) for name in inputs], stack, sample=str(folder / "sample.csv"), unique=True)
    assert all(bool(row.source) != bool(row.error) for row in rows)
    return {row.name: Path(str(row.source)).relative_to(folder).as_posix() if row.source else "" for row in rows}


def test_a_name_of_a_sample_finds_its_own_file_only(tmp_path: Path) -> None:
    for name in ("in/a/1.png", "in/2.png", "in/c/d/3.png", "in/4.png", "in/x5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert sources_of(tmp_path, ["a/1.png", "b/1.png", "1.png"], "in") == {
        "a/1.png": "in/a/1.png",
        "b/1.png": "",
        "1.png": "",
    }
    wanted = ["1.png", "TEST/2.png", "d/3.png", "4.png", "TEST/4.png", "5.png"]
    found = ["in/a/1.png", "in/2.png", "in/c/d/3.png", "in/4.png", "", ""]
    assert list(sources_of(tmp_path, wanted, "in").values()) == found
    (tmp_path / "in" / "사.png").write_bytes(b"")
    both = ["사.png", unicodedata.normalize("NFD", "사.png")]
    assert sources_of(tmp_path, both, "in") == dict.fromkeys(both, "in/사.png")
    assert sources_of(tmp_path, ["2.png"], "in", "in/2.png") == {"2.png": "in/2.png"}


@pytest.mark.parametrize(
    ("wanted", "inputs", "reason"),
    [
        (["001.mp4"], ["day1", "day2"], "001.mp4 could be 001.mp4 of more than one --input"),
        (["day1/001.mp4"], ["day1", "day2"], "day1/001.mp4 could be 001.mp4 of more than one --input"),
        (["001.mp4"], ["."], "001.mp4 could be day1/001.mp4 or day2/001.mp4"),
        (["x/a/1.mp4"], ["day1"], "x/a/1.mp4 could be a/1.mp4 or 1.mp4"),
        (["day1/001.mp4", "day2/001.mp4"], ["day1"], "day1/001.mp4 and day2/001.mp4 could both be 001.mp4"),
    ],
)
def test_a_sample_that_leaves_open_which_file_is_meant(
    tmp_path: Path, wanted: list[str], inputs: list[str], reason: str
) -> None:
    for name in ("day1/001.mp4", "day2/001.mp4", "day1/1.mp4", "day1/a/1.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        sources_of(tmp_path, wanted, *inputs)
    said, _, mend = str(caught.value).partition("; give the folder that ")
    assert (said, bool(mend)) == (f"--sample = {tmp_path / 'sample.csv'}: {reason}", True)
