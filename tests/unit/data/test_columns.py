import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hai.data.columns import read_columns, renamed, taken, write_columns


def read(path, table, **kinds):
    pq.write_table(pa.table(table), path)
    return read_columns(path, **{"distinct": (), "repeated": (), **kinds})[0]


@pytest.mark.parametrize("size", [0, 6, 7, 50])
def test_what_is_written_is_read_in_pieces(tmp_path, monkeypatch, size):
    monkeypatch.setattr("hai.data.columns._BATCH", 7)
    numbers = np.arange(size)
    columns = {
        "path": [f"ü{number}.jpg" for number in range(size)],
        "group": [f"group {number % 3}" for number in range(size)],
        "sha256": np.random.default_rng(0).integers(0, 256, (size, 32), dtype=np.uint8),
        "label": numbers.astype(np.int8),
        "offset": numbers << 40,
        "score": np.where(numbers % 2, 0.5, np.nan),
        "right": pa.array([[number] * (number % 3) for number in range(size)], pa.list_(pa.int32())),
    }
    write_columns(tmp_path / "t", columns, {"note": "ü"})
    found, notes = read_columns(tmp_path / "t", distinct=("path",), repeated=("group", "not there"))
    assert notes[b"note"] == "ü".encode()
    assert list(found) == list(columns)
    assert found["path"] == columns["path"]
    assert found["group"] == columns["group"]
    assert len({id(name) for name in found["group"]}) == min(3, size)
    assert found["right"] == columns["right"].to_pylist()
    for name in ("sha256", "label", "offset", "score"):
        assert found[name].dtype == columns[name].dtype
        assert np.array_equal(found[name], columns[name], equal_nan=name == "score")
    table = pq.read_table(tmp_path / "t")
    table.validate(full=True)
    assert table.column("path").to_pylist() == columns["path"]


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


def test_pandas_is_not_loaded(tmp_path):
    code = (
        "import sys, numpy as np; from hai.data.columns import read_columns, write_columns; "
        "columns = {'n': np.arange(2), 'name': ['a', 'a'], 'sha256': np.zeros((2, 32), np.uint8)}; "
        "write_columns(sys.argv[1], columns, {}); "
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
