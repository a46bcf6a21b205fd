import contextlib
import csv
import hashlib
import io
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from trained_run import save_image, save_run

from hai.checkpoint.store import RunFolder
from hai.errors import CheckpointError, ConfigError, DataError
from hai.evaluation import run_evaluation
from hai.export import run_export
from hai.metrics import detector_metrics
from hai.predict import run_prediction

FILES = ["evaluation.json", "predictions.csv", "report.html"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"), threshold=0.505, temperature=0.25)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("evaluation")
    return Path(shutil.copytree(trained, tmp_path / "runs" / "bright", ignore=ignored))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 24 test images in two sources and groups of two, and 6 validation images."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(30):
        save_image(root / "images" / f"{i:02d}.png", i, size=(30 + i, 40))
        split, source = ("val", "web") if i >= 24 else ("test", "phone" if i % 3 else "web")
        rows.append([f"images/{i:02d}.png", "fake" if i % 4 < 2 else "real", f"g{i // 2}", split, source])
    with open(root / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "label", "group", "split", "source"], *rows])
    return root


@pytest.fixture(scope="module")
def evaluated(trained: Path, data: Path) -> tuple[Path, str]:
    """The folder of an evaluation, and what was printed."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert run_evaluation(str(trained), str(data / "labels.csv")) == 0
    return trained / "evaluation" / "test", told.getvalue()


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_agree_with_each_other(evaluated: tuple[Path, str], data: Path) -> None:
    folder, told = evaluated
    assert sorted(path.name for path in folder.iterdir()) == FILES
    record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    rows = table(folder / "predictions.csv")
    assert list(rows[0]) == ["path", "label", "probability_fake", "prediction", "group", "source"]

    assert record["n"] == len(rows) == 24
    assert record["num_groups"] == 12
    assert "num_pairs" not in record
    label = np.array([int(row["label"] == "fake") for row in rows])
    probability = np.array([float(row["probability_fake"]) for row in rows])
    called = np.array([int(row["prediction"] == "fake") for row in rows])
    assert called.tolist() == (probability >= 0.505).astype(int).tolist()
    assert 0 < called.sum() < 24
    matrix = [[int(((label == a) & (called == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    assert record["confusion_matrix"] == matrix
    assert record["num_correct"] == int((label == called).sum())
    expected = detector_metrics(label, probability, [row["group"] for row in rows], 0.505, seed=1)
    assert set(record["metrics"]) == set(expected)
    for name, metric in expected.items():
        for part in ("value", "low", "high"):
            assert record["metrics"][name][part] == pytest.approx(metric[part], abs=1e-5), name
    assert [(part["source"], part["n"]) for part in record["per_source"]] == [
        (f"{data.name}/phone", 16),
        (f"{data.name}/web", 8),
    ]
    assert sum(part["num_correct"] for part in record["per_source"]) == record["num_correct"]

    assert record["threshold"] == 0.505
    assert record["temperature"] == 0.25
    assert record["checkpoint"]["step"] == 3
    content = (folder.parents[1] / "checkpoints" / "step_00000003" / "MANIFEST.json").read_bytes()
    assert record["checkpoint"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["data"]["split"] == "test"
    assert record["data"]["path"] == str(data / "labels.csv")
    assert {"commit", "hardware", "versions", "command"} <= set(record)
    assert [row["path"] for row in rows if row["source"] == rows[0]["source"]][:2] == ["images/01.png", "images/02.png"]

    assert "split test: 24 images (12 real, 12 fake) in 12 groups, checkpoint of step 3, threshold 0.505" in told
    value = record["metrics"]["f1_macro"]
    assert f"{value['low']:.3f} to {value['high']:.3f}" in told
    assert all(str(folder / name) in told for name in FILES)


def test_scores_are_those_of_predict(trained: Path, evaluated: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    run_prediction([str(trained)], [str(data)], str(tmp_path / "scores.csv"))
    scores = {row["filename"]: float(row["probability_fake"]) for row in table(tmp_path / "scores.csv")}
    rows = table(evaluated[0] / "predictions.csv")
    assert len(rows) == 24
    for row in rows:
        assert float(row["probability_fake"]) == pytest.approx(scores[row["path"]], abs=1e-6)


def test_page_shows_evaluation_and_training(evaluated: tuple[Path, str]) -> None:
    html = (evaluated[0] / "report.html").read_text(encoding="utf-8")
    for text in (
        "bright",
        "24 images in 12 independent groups",
        "step_00000003",
        "Worst mistakes",
        "Loss",
        "image_size",
    ):
        assert text in html, text
    assert "data:image/jpeg;base64," in html


def test_checkpoint_folder_means_that_checkpoint_and_its_run(run: Path, data: Path) -> None:
    run_evaluation(str(run / "checkpoints" / "step_00000003"), str(data / "labels.csv"), split="val")
    record = json.loads((run / "evaluation" / "val" / "evaluation.json").read_text(encoding="utf-8"))
    assert record["n"] == 6


def test_absent_split_names_those_present(run: Path, data: Path) -> None:
    with pytest.raises(DataError, match=r"no image in the split train; present: val \(6\), test \(24\); choose with"):
        run_evaluation(str(run), str(data / "labels.csv"), split="train")
    assert not (run / "evaluation").exists()


@pytest.mark.parametrize("is_zip", [False, True])
def test_data_without_splits_are_measured_whole(run: Path, tmp_path: Path, is_zip: bool) -> None:
    for i in range(10):
        save_image(tmp_path / "plain" / ("real" if i % 2 else "fake") / f"{i}.png", i)
    (tmp_path / "plain" / "real" / "broken.png").write_bytes(b"x")
    data = shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "plain") if is_zip else str(tmp_path / "plain")
    with pytest.raises(DataError, match=r"broken\.png"):
        run_evaluation(str(run), data)
    run_evaluation(str(run), data, output=str(tmp_path / "out"), overrides=["data.max_bad_fraction=0.2"])
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert record["n"] == len(table(tmp_path / "out" / "predictions.csv")) == 10
    assert record["data"]["num_unreadable"] == 1
    assert "broken.png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not (run / "evaluation").exists()


def test_wrong_arguments_are_named_at_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_evaluation(
            str(run), str(tmp_path / "gone"), split="dev", overrides=["model.name=compact", "data.sources=[]"]
        )
    lines = str(caught.value).split("\n")
    assert [line.split(";")[0].split(" = ")[0] for line in lines] == [
        "--split",
        "--data",
        "command line: model.name",
        "command line: data.sources",
    ]


def test_output_that_cannot_be_written_is_refused_before_the_work(run: Path, data: Path) -> None:
    (run / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--output = .*; .*file is not a folder that can be written"):
        run_evaluation(str(run), str(data / "labels.csv"), output=str(run / "file" / "out"))


def test_weights_of_another_model_are_refused(run: Path, data: Path) -> None:
    odd = RunFolder(str(run.parent), "odd")
    odd.save({"other": torch.zeros(2)}, {}, {"step": 3}, step=3, wait=True)
    odd.close()
    shutil.copy(run / "run.yaml", odd.path)
    with pytest.raises(CheckpointError, match=r"tensors do not fit the model of its run\.yaml, first"):
        run_evaluation(str(odd.path), str(data / "labels.csv"))


def test_checkpoint_without_its_config_is_refused(run: Path, data: Path) -> None:
    (run / "run.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"has no run\.yaml"):
        run_evaluation(str(run), str(data / "labels.csv"))


def test_damaged_checkpoint_is_refused(run: Path, data: Path) -> None:
    weights = run / "checkpoints" / "step_00000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="no checkpoint that is whole"):
        run_evaluation(str(run), str(data / "labels.csv"))


def test_run_on_a_bucket_is_read_and_written_there(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.put(str(run), "/store/bright", recursive=True)
    assert run_evaluation("memory://store/bright", str(data / "labels.csv"), split="val") == 0
    names = sorted(name.rpartition("/")[2] for name in bucket.ls("/store/bright/evaluation/val", detail=False))
    assert names == FILES
    record = json.loads(bucket.cat("/store/bright/evaluation/val/evaluation.json"))
    assert record["n"] == 6
    assert "memory://store/bright/evaluation/val/report.html" in capsys.readouterr().out
    assert b"Loss" in bucket.cat("/store/bright/evaluation/val/report.html")


def test_exports_side_by_side_keep_their_own_evaluations(run: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_export(str(run), "safetensors", str(tmp_path / name))
        run_evaluation(str(tmp_path / name), str(data / "labels.csv"), split="val")
    for name in ("a", "b"):
        record = json.loads((tmp_path / name / "evaluation" / "val" / "evaluation.json").read_text(encoding="utf-8"))
        assert record["checkpoint"]["path"] == str(tmp_path / name)
        assert "image_size" in (tmp_path / name / "evaluation" / "val" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "evaluation").exists()


def test_what_was_never_fitted_is_called_the_default(trained: Path, data: Path, tmp_path: Path) -> None:
    chosen = "It was chosen in training and is stored with the checkpoint."
    default = (
        "The threshold 0.500 is the default: nothing was fitted, as the checkpoint was saved before any evaluation."
    )
    for run, said, unsaid in ((save_run(tmp_path), default, chosen), (trained, chosen, default)):
        run_evaluation(str(run), str(data / "labels.csv"), split="val", output=str(tmp_path / "out"))
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert said in page
        assert unsaid not in page
