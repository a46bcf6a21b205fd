"""The journal of what became of each file: odd names, damage, a full disk."""

import errno
import os

import pytest

from hai.faces.journal import CropRecord, FileRecord, append_record, load_records


def record(path, num_crops=1):
    crops = [
        CropRecord(f"train/real/{at}.jpg", at, 0, (0.0, 0.0, 1.0, 1.0), 1.0, "mtcnn", 9) for at in range(num_crops)
    ]
    return FileRecord(path, 7, "video", 0, "", path, path, "train", 4, num_crops, "", crops)


@pytest.mark.parametrize("letter", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\udcff", "\n", "\r"])
def test_names_come_back_whatever_is_in_them(tmp_path, letter):
    written = [record(f"real/a{letter}b.mp4"), record("real/c.mp4")]
    for each in written:
        append_record(tmp_path / "files.jsonl", each)
    assert list(load_records(tmp_path / "files.jsonl").values()) == written


@pytest.mark.parametrize("damage", [b'{"path": "real/b', b"{}", b"[1]", b"7", b"", b"\xff\x00\xfe", b'{"crops": [{}]}'])
def test_a_damaged_line_in_the_middle_costs_its_file_alone(tmp_path, damage):
    path = tmp_path / "files.jsonl"
    append_record(path, record("real/a.mp4"))
    with open(path, "ab") as file:
        file.write(damage + b"\n")
    append_record(path, record("real/c.mp4"))
    assert list(load_records(path)) == ["real/a.mp4", "real/c.mp4"]


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "files.jsonl"
    append_record(path, record("real/a.mp4"))
    whole, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    with pytest.raises(OSError, match="No space left") as error:
        append_record(path, record("real/b.mp4"))
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == whole
