"""Which files a prediction is of: found in folders, named, in the order of a sample."""

from __future__ import annotations

import unicodedata
from contextlib import ExitStack
from pathlib import Path

import pytest

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


def test_a_sample_finds_names_whose_letters_were_taken_apart(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "사진.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / apart).write_bytes(b"")
    (tmp_path / "sample.csv").write_text("filename\n사진.png\n", encoding="utf-8")
    with ExitStack() as stack:
        (row,) = find_rows([str(tmp_path / "in")], stack, sample=str(tmp_path / "sample.csv"), unique=True)
    assert (row.name, row.source, row.error) == ("사진.png", tmp_path / "in" / apart, "")
