import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hai.data.columns import digest_array, digests_of, numbers_of, read_parquet, renamed, strings_of


def test_equal_strings_are_one_object():
    column = pa.chunked_array([["ab", "c", "ab"], ["c", "ab"], []], pa.string())
    assert strings_of(column.slice(1, 3)) == ["c", "ab", "c"]
    found = strings_of(column)
    assert found == ["ab", "c", "ab", "c", "ab"]
    assert len({id(value) for value in found}) == 2
    assert strings_of(pa.chunked_array([["a", None]], pa.string())) == ["a", None]
    assert strings_of(pa.chunked_array([], pa.string())) == []


def test_each_distinct_string_is_renamed_once():
    asked = []
    found = renamed(["a", "b", "a"], lambda value: asked.append(value) or value.upper())
    assert found == ["A", "B", "A"]
    assert sorted(asked) == ["a", "b"]


def test_numbers_are_joined_and_nothing_else_is_taken_for_them():
    column = pa.chunked_array([pa.array([1, 2, 3], pa.int32()).slice(1), pa.array([4], pa.int32())])
    assert numbers_of(column).tolist() == [2, 3, 4]
    assert numbers_of(pa.chunked_array([], pa.int8())).dtype == np.int8
    for dtype in (np.uint8, np.int64, np.float32, np.float64):
        assert numbers_of(pa.chunked_array([pa.array(np.arange(3, dtype=dtype))])).dtype == dtype
    for other in ([["a"]], [[1, None]]):
        with pytest.raises(ValueError, match="numbers are"):
            numbers_of(pa.chunked_array(other))


def test_reading_a_table_does_not_load_pandas(tmp_path):
    columns = {"number": [1, 2], "name": ["a", "a"], "hash": digest_array(np.zeros((2, 32), dtype=np.uint8))}
    pq.write_table(pa.table(columns), tmp_path / "t")
    code = (
        "import sys; from hai.data.columns import *; table = read_parquet(sys.argv[1]); "
        "numbers_of(table['number']), strings_of(table['name']), digests_of(table['hash']); "
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert read_parquet(tmp_path / "t").num_rows == 2


def test_hashes_survive_slices_and_chunks():
    sha256 = np.random.default_rng(0).integers(0, 256, (7, 32), dtype=np.uint8)
    array = digest_array(sha256)
    assert array.to_pylist() == [row.tobytes() for row in sha256]
    column = pa.chunked_array([array.slice(0, 2), array.slice(2, 4), array.slice(6)])
    assert np.array_equal(digests_of(column), sha256)
    assert np.array_equal(digests_of(pa.chunked_array([digest_array(sha256[::2])])), sha256[::2])


@pytest.mark.parametrize("values", [pa.array([b"x"] * 2, pa.binary()), pa.array([None, bytes(32)], pa.binary(32))])
def test_other_columns_are_no_hashes(values):
    with pytest.raises(ValueError, match="hashes are"):
        digests_of(pa.chunked_array([values]))
