"""Metrics source by source: which examples speak for a source, against brute force."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from hai.by_source import metrics_by_source
from hai.metrics import point_metrics
from hai.results import Scores, summarise

SOURCE = ["ff"] * 4 + ["ff/Deepfakes"] * 3 + ["ff/FaceSwap"] * 3 + ["celeb"] * 6 + ["made"] * 2
LABEL = np.array([0] * 4 + [1] * 6 + [0, 0, 0, 1, 1, 1] + [1, 1])
PROBABILITY = np.random.default_rng(3).random(len(LABEL)).round(2)


def rows(*sources: str) -> np.ndarray:
    return np.flatnonzero(np.isin(SOURCE, sources))


def test_data_sets_count_whole_and_parts_of_one_class_against_the_other_class_beside_them():
    found = metrics_by_source(LABEL, PROBABILITY, SOURCE)
    called = PROBABILITY >= 0.5
    views = {
        "ff": (rows("ff", "ff/Deepfakes", "ff/FaceSwap"),) * 2,
        "ff/Deepfakes": (rows("ff/Deepfakes"), rows("ff", "ff/Deepfakes")),
        "ff/FaceSwap": (rows("ff/FaceSwap"), rows("ff", "ff/FaceSwap")),
        "celeb": (rows("celeb"),) * 2,
    }
    for name, (own, both) in views.items():
        assert found[f"accuracy/{name}"] == pytest.approx(accuracy_score(LABEL[own], called[own]))
        assert found[f"f1_macro/{name}"] == pytest.approx(f1_score(LABEL[both], called[both], average="macro"))
        assert found[f"roc_auc/{name}"] == pytest.approx(roc_auc_score(LABEL[both], PROBABILITY[both]))
    assert found["roc_auc/made"] is None, "no real image in that data set: nobody else's may stand in"
    assert len(found) == 15


def test_one_source_needs_no_division():
    assert metrics_by_source(LABEL[:6], PROBABILITY[:6], ["a"] * 6) == {}
    parts = metrics_by_source(LABEL[:10], PROBABILITY[:10], SOURCE[:10])
    assert {name.partition("/")[2] for name in parts} == {"ff/Deepfakes", "ff/FaceSwap"}


def test_an_evaluation_counts_own_examples_and_says_how_many_others_it_needed():
    size = len(LABEL)
    scores = Scores([f"{i}.jpg" for i in range(size)], LABEL, PROBABILITY, [""] * size, SOURCE, lambda i: b"")
    per_source = {part["source"]: part for part in summarise(scores, 0.5, seed=0)["per_source"]}
    swaps = per_source["ff/Deepfakes"]
    assert (swaps["n"], swaps["num_others"]) == (3, 4)
    both, own = rows("ff", "ff/Deepfakes"), rows("ff/Deepfakes")
    assert swaps["metrics"]["roc_auc"]["value"] == pytest.approx(roc_auc_score(LABEL[both], PROBABILITY[both]))
    assert swaps["metrics"]["accuracy"]["value"] == pytest.approx(swaps["num_correct"] / 3)
    assert swaps["metrics"]["recall_fake"]["value"] == pytest.approx(np.mean(PROBABILITY[own] >= 0.5))
    assert per_source["ff"]["num_others"] == 6
    assert "num_others" not in per_source["celeb"]
    assert per_source["made"]["metrics"]["roc_auc"]["value"] is None
    assert sum(part["n"] for part in per_source.values()) == size


def test_videos_within_a_group_of_both_classes_are_judged_one_by_one():
    video = ["ff/071"] * 4 + ["ff/071_054"] * 3 + ["ff/054_071"] * 3 + ["c/0"] * 3 + ["c/1"] * 3 + ["", ""]
    group = ["071"] * 10 + ["id0"] * 6 + ["", ""]
    size = len(LABEL)
    first = [video.index(name) for name in dict.fromkeys(video[:16])] + [16, 17]
    logit = np.log(PROBABILITY / (1 - PROBABILITY))
    mean = [logit[[i for i in range(size) if video[i] == video[at]]].mean() if video[at] else logit[at] for at in first]
    expected = roc_auc_score(LABEL[first], mean)
    scores = Scores([""] * size, LABEL, PROBABILITY, group, [""] * size, lambda i: b"", video)
    found = summarise(scores, 0.5, seed=0)["metrics"]
    assert found["video_roc_auc"]["value"] == pytest.approx(expected)
    assert found["video_roc_auc"]["low"] <= expected <= found["video_roc_auc"]["high"]
    assert point_metrics(LABEL, PROBABILITY, video=video)["video_roc_auc"] == pytest.approx(expected)
    unnamed = Scores([""] * size, LABEL, PROBABILITY, group, [""] * size, lambda i: b"")
    assert "video_roc_auc" not in summarise(unnamed, 0.5, seed=0)["metrics"], "a group of both classes is no video"
