from types import SimpleNamespace

import numpy as np

from hai.metrics import detector_metrics
from hai.results import Scores, probability_of, summarise


def scores_of(label: list[int], probability: list[float], source: list[str]) -> Scores:
    size = len(label)
    path = [f"{i}.jpg" for i in range(size)]
    return Scores(path, np.array(label), np.array(probability), ["g", "g"] + [""] * (size - 2), source, lambda i: b"")


def test_predictions_get_names_and_are_ordered_by_source_and_path() -> None:
    manifest = SimpleNamespace(
        path=["z", "b", "a", "x"],
        source=["s", "t", "t", "s"],
        group=["1", "2", "3", "4"],
        video=["v", "w", "", "v"],
        read=lambda i: b"%d" % i,
    )
    predictions = {"index": np.array([2, 0, 1]), "label": np.array([1, 0, 1]), "logit": np.array([4.0, 0.0, -2.0])}
    scores = Scores.of(predictions, manifest, temperature=2.0)  # type: ignore[arg-type]
    assert scores.path == ["z", "a", "b"]
    assert scores.source == ["s", "t", "t"]
    assert scores.group == ["1", "3", "2"]
    assert scores.video == ["v", "", "w"]
    assert scores.label.tolist() == [0, 1, 1]
    np.testing.assert_allclose(scores.probability_fake, [0.5, 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))])
    assert [scores.read(i) for i in range(3)] == [b"0", b"2", b"1"]
    assert scores.predictions(0.5).tolist() == [1, 1, 0], "a score at the threshold is fake"


def test_probability_of_large_logits_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        assert probability_of(np.array([-1e9, 0.0, 1e9])).tolist() == [0.0, 0.5, 1.0]


def test_summary_counts_and_divides_by_source() -> None:
    label, probability = [0, 0, 1, 1, 1, 0], [0.1, 0.7, 0.8, 0.2, 0.9, 0.3]
    scores = scores_of(label, probability, ["a", "a", "a", "a", "b", "b"])
    summary = summarise(scores, 0.5, seed=3)
    assert summary["n"] == 6
    assert summary["num_groups"] == 5
    assert summary["num_correct"] == 4
    assert summary["confusion_matrix"] == [[2, 1], [1, 2]]
    assert summary["threshold"] == 0.5
    assert summary["metrics"] == detector_metrics(label, probability, scores.group, 0.5, seed=3)
    first, second = summary["per_source"]
    assert (first["source"], first["n"], first["confusion_matrix"]) == ("a", 4, [[1, 1], [1, 1]])
    assert (second["source"], second["n"], second["num_groups"], second["num_correct"]) == ("b", 2, 2, 2)
    assert second["metrics"] == detector_metrics([1, 0], [0.9, 0.3], ["", ""], 0.5, seed=3)


def test_a_single_source_has_the_numbers_of_the_whole() -> None:
    summary = summarise(scores_of([0, 1], [0.2, 0.9], ["a", "a"]), 0.5, seed=0)
    (only,) = summary["per_source"]
    assert only.pop("source") == "a"
    assert only == {name: summary[name] for name in only}
