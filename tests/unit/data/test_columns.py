import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hai.data.columns import digest_array, read_columns, renamed, taken


def read(path, table, **kinds):
    pq.write_table(pa.table(table), path)
    return read_columns(path, **{"distinct": (), "repeated": (), **kinds})[0]


def test_what_is_written_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("hai.data.columns._BATCH", 7)
    sha256 = np.random.default_rng(0).integers(0, 256, (50, 32), dtype=np.uint8)
    groups = [f"group {number % 3}" for number in range(50)]
    columns = {
        "path": [f"ü{number}.jpg" for number in range(50)],
        "group": groups,
        "sha256": digest_array(sha256),
        "label": pa.array(np.arange(50, dtype=np.int8)),
        "offset": pa.array(np.arange(50) << 40),
        "score": pa.array(np.where(np.arange(50) % 2, 0.5, np.nan)),
        "right": pa.array([[number] * (number % 3) for number in range(50)]),
    }
    found = read(tmp_path / "t", columns, distinct=("path",), repeated=("group", "not there"))
    assert list(found) == list(columns)
    assert found["path"] == columns["path"]
    assert found["group"] == groups
    assert len({id(name) for name in found["group"]}) == 3
    assert np.array_equal(found["sha256"], sha256)
    assert (found["label"].dtype, found["offset"].dtype) == (np.int8, np.int64)
    assert np.array_equal(found["offset"], np.arange(50) << 40)
    assert np.array_equal(found["score"], columns["score"].to_numpy(zero_copy_only=False), equal_nan=True)
    assert found["right"] == columns["right"].to_pylist()


def test_a_file_without_rows_has_columns(tmp_path):
    columns = {
        "path": pa.array([], pa.string()),
        "label": pa.array([], pa.int8()),
        "sha256": pa.array([], pa.binary(32)),
    }
    found = read(tmp_path / "t", columns, distinct=("path",))
    assert found["path"] == []
    assert found["label"].dtype == np.int8
    assert found["sha256"].shape == (0, 32)


@pytest.mark.parametrize(
    "column",
    [
        {"path": [1, 2]},
        {"path": ["a", None]},
        {"sha256": pa.array([b"a", b"b"], pa.binary())},
        {"sha256": pa.array([bytes(32), None], pa.binary(32))},
        {"label": pa.array([1, None], pa.int8())},
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path, column):
    with pytest.raises(ValueError, match=f"column {next(iter(column))} is "):
        read(tmp_path / "t", column, distinct=("path",))


def test_reading_does_not_load_pandas(tmp_path):
    columns = {"number": [1, 2], "name": ["a", "a"], "sha256": digest_array(np.zeros((2, 32), dtype=np.uint8))}
    pq.write_table(pa.table(columns), tmp_path / "t")
    code = (
        "import sys; from hai.data.columns import read_columns; "
        "read_columns(sys.argv[1], distinct=(), repeated=('name',)); print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_each_distinct_string_is_renamed_once():
    asked = []
    found = renamed(["a", "b", "a"], lambda value: asked.append(value) or value.upper())
    assert found == ["A", "B", "A"]
    assert sorted(asked) == ["a", "b"]


def test_strings_are_taken_by_position():
    assert taken(["a", "bc", ""], np.array([2, 1, 1])) == ["", "bc", "bc"]
    assert taken([], np.zeros(0, dtype=np.int64)) == []
