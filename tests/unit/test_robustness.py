"""Robustness: each condition is what an evaluation of the changed files would say."""

import contextlib
import csv
import io
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ranked_run import save_ranker
from trained_run import save_image, save_run

from hai.data.disturb import DISTURBANCES, Disturbance, disturb
from hai.errors import DataError
from hai.evaluation import evaluate_checkpoint
from hai.robustness import sample_rows
from hai.score_scale import Scale


def values_of(record: dict[str, Any]) -> dict[str, float]:
    """Name value, low and high of each metric that is defined."""
    metrics = record["metrics"].items()
    return {f"{name} {part}": one for name, metric in metrics for part, one in metric.items() if one is not None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen pictures with labels and tiers, in groups of two."""
    root = tmp_path_factory.mktemp("data")
    rows, tiers = [], []
    for i in range(24):
        save_image(root / "images" / f"{i:02d}.png", i, size=(40, 30 + i))
        rows.append([f"images/{i:02d}.png", ("real", "fake")[i % 2], f"g{i // 2}", "test", ("x", "y")[i % 3 > 0]])
        tiers.append([f"id{i}", f"{i:02d}.png", ("gold", "silver", "bronze")[i % 3], "test", 30 - i])
    for name, head, lines in (
        ("labels", ["path", "label", "group", "split", "source"], rows),
        ("metadata", ["image_id", "filename", "tier", "split", "votes"], tiers),
    ):
        with open(root / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *lines])
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), threshold=0.505, temperature=0.25)


@pytest.fixture(scope="module")
def evaluated(run: Path, data: Path) -> tuple[dict[str, Any], str, str]:
    """What evaluation.json says, the page, and what was printed."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        record = evaluate_checkpoint(str(run), str(data / "labels.csv"), robustness=True)
    folder = run / "evaluation" / "test"
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) == record
    return record, (folder / "report.html").read_text(encoding="utf-8"), told.getvalue()


def test_all_conditions_are_measured_and_the_first_is_the_evaluation_itself(evaluated: Any) -> None:
    record = evaluated[0]
    found = record["robustness"]
    assert found["n"] == record["n"] == 24
    assert [(one["change"], one["level"]) for one in found["conditions"]] == [("none", 0.0), *DISTURBANCES]
    assert values_of(found["conditions"][0]) == pytest.approx(values_of(record), abs=1e-6)
    assert found["conditions"][0]["changed_calls"] == 0
    assert any(one["changed_calls"] > 0 for one in found["conditions"][1:])


@pytest.mark.parametrize("change", [("resize", 0.5), ("noise", 20)])
def test_a_condition_is_what_an_evaluation_of_changed_files_says(
    run: Path, data: Path, evaluated: Any, tmp_path: Path, change: tuple[str, float]
) -> None:
    (tmp_path / "images").mkdir()
    for file in sorted((data / "images").iterdir()):
        key = int.from_bytes(sha256(file.read_bytes()).digest()[:8], "little")
        changed = disturb(np.asarray(Image.open(file)), Disturbance(*change), key)
        Image.fromarray(changed).save(tmp_path / "images" / file.name)
    (tmp_path / "labels.csv").write_bytes((data / "labels.csv").read_bytes())
    with contextlib.redirect_stdout(io.StringIO()):
        record = evaluate_checkpoint(str(run), str(tmp_path / "labels.csv"), output=str(tmp_path / "out"))
    (measured,) = [
        one for one in evaluated[0]["robustness"]["conditions"] if (one["change"], one["level"]) == change
    ]  # fmt: skip
    assert "robustness" not in record
    assert values_of(measured) == pytest.approx(values_of(record), abs=1e-6)
    assert values_of(measured) != pytest.approx(values_of(evaluated[0]["robustness"]["conditions"][0]), abs=1e-6)


def test_the_page_and_the_console_show_it(evaluated: Any) -> None:
    record, page, told = evaluated
    for text in ("Where it errs", "Where the model looked", "Robustness", "JPEG compression", "sigma 0.5 px"):
        assert text in page, text
    assert page.count('aria-label="Macro-F1 and ROC-AUC over') == 5
    value = record["robustness"]["conditions"][4]["metrics"]["f1_macro"]["value"]
    (line,) = [line for line in told.splitlines() if "quality 60" in line]
    assert f"{value:.4g}" in line
    errors = {(row["fact"], row["range"]) for row in record["errors"]}
    assert {(fact, name) for fact, name in errors if fact == "source"} == {
        ("source", f"{Path(record['data']['path']).parent.name}/{part}") for part in "xy"
    }
    assert "brightness" in {fact for fact, _ in errors}


def test_where_memory_runs_out_fewer_images_are_predicted_at_once(
    run: Path, data: Path, evaluated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hai import robustness

    whole, sizes = robustness._forwarded, []

    def forward(*arguments: Any) -> Any:
        rows = arguments[3]
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("of the test")
        return whole(*arguments)

    monkeypatch.setattr(robustness, "_forwarded", forward)
    with contextlib.redirect_stdout(io.StringIO()):
        record = evaluate_checkpoint(str(run), str(data / "labels.csv"), output=str(tmp_path), robustness=True)
    assert sizes[:4] == [16, 8, 4, 2]
    assert max(sizes[3:]) == 2
    for found, expected in zip(
        record["robustness"]["conditions"], evaluated[0]["robustness"]["conditions"], strict=True
    ):
        assert values_of(found) == pytest.approx(values_of(expected), abs=1e-6)


def test_large_files_are_changed_one_after_the_other_and_what_has_no_jpeg_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hai import robustness

    threads = []
    pool = robustness.ThreadPoolExecutor
    monkeypatch.setattr(robustness, "ThreadPoolExecutor", lambda count, **named: threads.append(count) or pool(count))
    monkeypatch.setattr(robustness, "_MOST_PIXELS", 3e6)
    for number, size in enumerate([(1000, 1100), (40, 40), (66000, 8)]):
        save_image(tmp_path / "test" / ("real", "fake")[number % 2] / f"{number}.png", number, size=size)
        if number == 1:
            evaluate_checkpoint(str(run), str(tmp_path), output=str(tmp_path / "out"), robustness=True)
    assert threads == [2]
    with pytest.raises(DataError, match=r"2\.png: .*; leave it out of --robustness"):
        evaluate_checkpoint(str(run), str(tmp_path), output=str(tmp_path / "out"), robustness=True)


def test_a_ranker_is_measured_too(data: Path, tmp_path: Path) -> None:
    run = save_ranker(tmp_path, "ranker", Scale(thresholds=(0.1, -0.1)))
    with contextlib.redirect_stdout(io.StringIO()) as told:
        record = evaluate_checkpoint(str(run), str(data / "metadata.csv"), robustness=True)
    conditions = record["robustness"]["conditions"]
    assert len(conditions) == 1 + len(DISTURBANCES)
    assert values_of(conditions[0]) == pytest.approx(values_of(record), abs=1e-6)
    assert "changed_calls" not in conditions[0]
    assert "pair_accuracy" in told.getvalue()
    page = (run / "evaluation" / "test" / "report.html").read_text(encoding="utf-8")
    assert page.count('aria-label="Pair accuracy and SRCC over') == 5


class Known:
    """What `sample_rows` asks of a manifest: its size, and which images were compared."""

    def __init__(self, size: int, comparisons: Any = ()) -> None:
        self.size, self.comparisons = size, np.array(comparisons, dtype=np.int32).reshape(-1, 3)

    def __len__(self) -> int:
        return self.size


def test_of_many_images_an_even_sample_is_taken() -> None:
    manifest: Any = Known(5200)
    rows = np.arange(100, 5100)
    sample = sample_rows(manifest, rows, 1000)
    assert len(sample) == len(set(sample.tolist())) == 1000
    assert (sample[0], sample[-1]) == (100, 5099)
    assert set(np.diff(sample)) <= {4, 5, 6}
    assert sample_rows(manifest, rows, 5000) is rows


def test_of_many_compared_images_whole_comparisons_are_taken() -> None:
    pairs = np.random.default_rng(1).permutation(np.arange(100, 5100)).reshape(-1, 2)
    manifest: Any = Known(5200, np.column_stack([pairs, np.ones(len(pairs))]))
    sample = sample_rows(manifest, np.arange(100, 5100), 1000)
    assert len(sample) == len(set(sample.tolist())) == 1000
    assert (np.diff(sample) > 0).all()
    assert np.isin(pairs, sample).all(axis=1).sum() == 500, "and 20 if images were chosen one by one"
    assert np.array_equal(sample, sample_rows(manifest, np.arange(100, 5100), 1000))
