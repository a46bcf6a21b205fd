import numpy as np
import pytest

from hai.data.gather import content_codes


@pytest.mark.parametrize("shared", [0, 8, 31])
def test_contents_are_numbered_in_the_order_of_their_hashes(shared):
    rng = np.random.default_rng(shared)
    sha256 = rng.integers(0, 256, (200, 32), dtype=np.uint8)
    sha256[:, :shared] = 7  # the first bytes say nothing then
    sha256[100:150] = sha256[rng.integers(0, 100, 50)]
    names = [row.tobytes() for row in sha256]
    order = {name: number for number, name in enumerate(sorted(set(names)))}
    assert content_codes(sha256).tolist() == [order[name] for name in names]
    assert content_codes(sha256[:0]).tolist() == []
