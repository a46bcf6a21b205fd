import numpy as np
import pyarrow as pa
import pytest

from hai.data.columns import digest_array, digests_of, renamed, strings_of


def test_equal_strings_are_one_object():
    column = pa.chunked_array([["ab", "c", "ab"], ["c", "ab"], []], pa.string())
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
