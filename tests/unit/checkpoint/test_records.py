import json
import math
import os
import subprocess
import sys

import pytest

from hai.checkpoint import files
from hai.checkpoint.records import (
    append_record,
    load_json,
    load_records,
    merge_records,
    parse_json,
    parse_records,
    save_json,
    save_text,
    to_json,
    truncate_after,
)


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert load_records(path) == []
    for step in (1, 2):
        append_record(path, {"step": step, "train/loss": 1 / 3, "name": "얼굴\u2028"})
    assert load_records(path) == [{"step": s, "train/loss": 1 / 3, "name": "얼굴\u2028"} for s in (1, 2)]
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_last_line_costs_that_line_only(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_record(path, {"step": step, "x": "얼굴"})
    os.truncate(path, path.stat().st_size - cut)
    kept = [1, 2] if cut == 1 else [1]  # the line break alone is no loss
    assert [record["step"] for record in load_records(path)] == kept
    append_record(path, {"step": 3})
    assert [record["step"] for record in load_records(path)] == [*kept, 3]


def test_lines_that_are_no_records_are_passed_over():
    assert parse_records(b'\n[1]\nnull\n{"step": 1}\n\xff\n{"step"\n' + b"[" * 100_000) == [{"step": 1}]


def test_what_json_lacks_becomes_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record = {"step": 1, "a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5, 2)}
    append_record(path, record)
    expected = {"step": 1, "a": None, "b": [None, {"c": None}], "d": [1.5, 2]}
    assert load_records(path) == [expected]
    assert json.loads(to_json(record)) == expected
    with pytest.raises(TypeError):
        append_record(path, {"step": {1}})


def test_truncate_after(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 2, 3, 4):
        append_record(path, {"step": step, "n": step})
    assert [record["step"] for record in truncate_after(path, 3)] == [1, 2, 2, 3]
    before = os.stat(path).st_ino
    assert truncate_after(path, 3) == load_records(path)
    assert os.stat(path).st_ino == before  # nothing to do, nothing written
    assert truncate_after(path, 0) == []
    assert truncate_after(tmp_path / "none.jsonl", 5) == []
    assert not (tmp_path / "none.jsonl").exists()


def test_records_that_only_a_checkpoint_remembers_are_put_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = [{"step": step, "val/f1": step / 3, "val/x": math.nan} for step in (2, 4, 6)]
    for record in ({"step": 1, "train/loss": 1.0}, history[0], {"step": 3, "train/loss": 0.5}):
        append_record(path, record)
    assert [record["step"] for record in truncate_after(path, 4, known=history)] == [1, 2, 3, 4]
    path.unlink()
    assert [record["step"] for record in truncate_after(path, 5, known=history)] == [2, 4]
    assert load_records(path)[1] == {"step": 4, "val/f1": 4 / 3, "val/x": None}


@pytest.mark.parametrize(
    ("prefer_ours", "until", "expected"),
    [
        (False, math.inf, [(1, "b"), (2, "b"), (3, "b"), (4, "a"), (9, "b")]),
        (True, math.inf, [(1, "b"), (2, "a"), (3, "b"), (4, "a"), (9, "b")]),
        (False, 3, [(1, "b"), (2, "b"), (3, "b"), (4, "a")]),
        (True, 3, [(1, "b"), (2, "a"), (3, "b"), (4, "a")]),
    ],
)
def test_two_versions_of_the_records_have_no_step_twice(prefer_ours, until, expected):
    ours = b'{"step": 2, "by": "a"}\n{"step": 4, "by": "a"}\n'
    theirs = b"".join(b'{"step": %d, "by": "b"}\n' % step for step in (1, 2, 3, 9)) + b'{"torn'
    merged = parse_records(merge_records(theirs, ours, until=until, prefer_ours=prefer_ours))
    assert [(record["step"], record["by"]) for record in merged] == expected


def test_json_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "summary.json"
    save_json(path, {"status": "running"})

    def fail(*args):
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", fail)
        with pytest.raises(OSError, match="no"):
            save_json(path, {"status": "finished"})
    assert load_json(path) == {"status": "running"}
    save_text(path, "{")
    assert load_json(path) is None
    assert os.listdir(path.parent) == ["summary.json"]
    assert [parse_json(content) for content in (None, b"", b"[]", b"\xff", b'{"a": 1}')] == [None] * 4 + [{"a": 1}]


def test_the_light_modules_do_not_import_torch():
    code = "import sys, hai.checkpoint.runs, hai.checkpoint.owner, hai.checkpoint.remote; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
