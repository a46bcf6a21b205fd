"""Which mistakes are explained, and what their pictures show."""

import numpy as np
import pytest
import torch
from test_error_table import scores_of
from trained_run import image_bytes, save_run

from hai.explain import explain_mistakes, worst_mistakes
from hai.results import Scores
from hai.trained import Trained, load_trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = save_run(tmp_path_factory.mktemp("runs"), threshold=0.505, temperature=0.25)
    return load_trained(str(run), torch.device("cpu"))


def test_the_worst_mistakes_of_each_source_come_first_and_the_worst_source_first():
    label = [0] * 20
    probability = [0.5 + 0.02 * i for i in range(15)] + [0.1] * 3 + [0.9, 0.6]
    source = ["many"] * 15 + ["right"] * 3 + ["few"] * 2
    chosen = worst_mistakes(scores_of(label, probability, source), threshold=0.5)
    assert list(chosen.items()) == [("many", [14, 13, 12, 11, 10, 9]), ("few", [18, 19])]
    assert worst_mistakes(scores_of([0, 1], [0.1, 0.9]), threshold=0.5) == {}


def test_both_kinds_of_mistakes_are_shown_even_if_one_is_more_confident():
    label = [0] * 8 + [1] * 2
    probability = [0.99 - 0.01 * i for i in range(8)] + [0.4, 0.3]
    chosen = worst_mistakes(scores_of(label, probability, ["one"] * 10), threshold=0.5)
    assert chosen == {"one": [0, 9, 1, 8, 2, 3]}


def test_many_sources_share_what_a_page_can_show():
    source = [f"s{i % 30:02d}" for i in range(300)]
    chosen = worst_mistakes(scores_of([0] * 300, [0.9] * 300, source), threshold=0.5)
    assert [len(rows) for rows in chosen.values()] == [2] * 18


def test_pictures_are_the_models_own_and_lit_where_the_evidence_is(trained: Trained) -> None:
    def read(row: int) -> bytes:
        return b"gone bad" if row == 3 else image_bytes(row)

    scores = Scores(
        path=[f"{i}.png" for i in range(6)],
        label=np.array([0, 0, 1, 0, 1, 0]),
        probability_fake=np.array([0.9, 0.2, 0.1, 0.8, 0.2, 0.7]),
        group=[""] * 6,
        source=["a"] * 3 + ["b"] * 3,
        read=read,
    )
    done: list[tuple[int, int]] = []
    explained = explain_mistakes(trained, scores, lambda now, total: done.append((now, total)))
    assert {source: [found.row for found in mistakes] for source, mistakes in explained.items()} == {
        "b": [4, 5],
        "a": [2, 0],
    }
    assert done[-1] == (5, 5)
    again = explain_mistakes(trained, scores)
    for source, mistakes in explained.items():
        for found, same in zip(mistakes, again[source], strict=True):
            assert list(found.views) == ["image"]
            assert found.seen.shape == found.views["image"].shape == (32, 32, 3)
            assert found.views["image"].dtype == np.uint8
            assert np.array_equal(found.views["image"], same.views["image"])
            assert not np.array_equal(found.views["image"], found.seen)
