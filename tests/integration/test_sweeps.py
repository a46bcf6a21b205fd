"""Sweeps of small heads without Ray: killed, stopped, resumed, measured."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hai
from hai.errors import ConfigError
from hai.sweep.records import TrialRecord, parse_trials

pytestmark = pytest.mark.timeout(1500)  # a start is fifteen CPU-seconds of imports

HEADS = """
task: ranker
data: {{sources: [{{name: art, path: "{art}"}}], image_size: 48, embedding_cache: "{cache}"}}
model: {{name: "timm:test_vit", pretrained: false}}
train: {{max_epochs: 9, global_batch_size: 16}}
logging: {{tensorboard: false}}
scale: {{launcher: in_process, cpus_per_worker: 1, use_gpu: false}}
space:
  optim.learning_rate: {{loguniform: [1e-4, 1e-1]}}
  model.head: {{choice: [linear, mlp]}}
  model.dropout: {{uniform: [0.0, 0.5], when: {{model.head: mlp}}}}
sweep: {{num_trials: 4, evaluate_test: false}}
"""


@pytest.fixture(scope="module")
def heads(small_art: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    path = folder / "heads.yaml"
    path.write_text(HEADS.format(art=small_art, cache=folder / "features"), encoding="utf-8")
    return path


def start(config: Path, storage: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "ray_jobs/tune.py", "--config", str(config), "--storage", str(storage), *settings]
    with open(storage / "output.txt", "a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))


def trials_of(sweep: Path) -> list[TrialRecord]:
    path = sweep / "trials.csv"
    return parse_trials(path.read_text(encoding="utf-8")) if path.exists() else []


def outcome(trial: TrialRecord) -> tuple[object, ...]:
    return trial.number, trial.id, trial.status, trial.value, trial.step, trial.history, trial.rungs


@pytest.mark.slow
def test_a_sweep_of_three_lines_measures_best_and_base_on_test(heads: Path, tmp_path: Path) -> None:
    sweep = hai.tune(heads, "sweep.evaluate_test=true", storage=tmp_path)
    assert sweep.status == "finished"
    assert [trial.number for trial in sweep.trials] == [0, 1, 2, 3, 4]
    best = max(sweep.trials, key=lambda trial: trial.value or 0.0)
    assert sweep.best == best.params
    assert sweep.best_checkpoint == f"{tmp_path}/heads/trials/{best.id}"
    folder = tmp_path / "heads"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["best"]["value"] == best.value
    assert summary["test"]["best"]["checkpoint"]["path"].startswith(sweep.best_checkpoint)
    assert summary["test"]["default"]["trial"][0] == sweep.trials[0].id
    assert summary["test"]["best"]["data"]["split"] == "test"
    assert summary["commit"]
    with open(folder / "trials.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    assert all((row["model.head"] == "mlp") == bool(row["model.dropout"]) for row in rows[1:])
    assert sum(path.is_file() for path in folder.rglob("*")) < 100
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert best.id in text
    again = hai.train(folder / "best.yaml", name="again", storage=tmp_path)
    assert again.best is not None
    assert again.best["value"] == best.value
    assert hai.tune(heads, "sweep.evaluate_test=true", storage=tmp_path).trials == sweep.trials
    more = hai.tune(heads, "sweep.evaluate_test=true", "sweep.num_trials=6", storage=tmp_path)
    assert [trial.id for trial in more.trials[:5]] == [trial.id for trial in sweep.trials]
    assert len(more.trials) == 7


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="asha"),
        pytest.param(["sweep.scheduler=pbt", "sweep.interval_epochs=3", "space.model.head=null"], id="pbt"),
    ],
)
@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_repeats_nothing(heads: Path, tmp_path: Path, settings: list[str]) -> None:
    if settings:
        settings = [*settings, "space.model.dropout={uniform: [0.0, 0.5]}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert start(heads, whole, *settings).wait(timeout=600) == 0, (whole / "output.txt").read_text(encoding="utf-8")
    for seen in (2, 4):
        process = start(heads, broken, *settings)
        deadline = time.monotonic() + 500
        while len(trials_of(broken / "heads")) < seen and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()
    lines = {path.parent.name: path.read_text(encoding="utf-8").splitlines()
             for path in (broken / "heads" / "trials").glob("*/metrics.jsonl")}  # fmt: skip
    assert start(heads, broken, *settings).wait(timeout=600) == 0
    assert [outcome(t) for t in trials_of(broken / "heads")] == [outcome(t) for t in trials_of(whole / "heads")]
    for trial, before in lines.items():
        after = (broken / "heads" / "trials" / trial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line)["step"] for line in after]
        assert steps == sorted(set(steps))
        assert after[: len(before) - 1] == before[: len(before) - 1]


@pytest.mark.slow
def test_a_signal_saves_everything_and_says_3(heads: Path, tmp_path: Path) -> None:
    process = start(heads, tmp_path, "train.max_epochs=2000", "sweep.scheduler=none")
    trials = tmp_path / "heads" / "trials"
    deadline = time.monotonic() + 400
    while not list(trials.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = tmp_path / "output.txt"
    assert process.wait(timeout=200) == 3, output.read_text(encoding="utf-8")
    (trial,) = trials_of(tmp_path / "heads")
    assert trial.status == "pending"
    assert trial.step > 0
    assert (trials / trial.id / "checkpoints" / f"step_{trial.step:08d}" / "MANIFEST.json").exists()
    assert json.loads((tmp_path / "heads" / "summary.json").read_text(encoding="utf-8"))["status"] == "interrupted"
    assert "run the same command to go on" in output.read_text(encoding="utf-8")


def test_a_trial_that_fails_is_listed_and_the_sweep_goes_on(heads: Path, tmp_path: Path) -> None:
    models = 'space.model.name={choice: ["timm:test_vit", "timm:no_such_model"]}'
    sweep = hai.tune(heads, models, "train.max_epochs=2", "sweep.metric=srcc", storage=tmp_path)
    failed = [trial for trial in sweep.trials if trial.status == "failed"]
    assert len(sweep.trials) == 5
    assert 0 < len(failed) < 4
    assert all("no_such_model" in trial.error and trial.params["model.name"] in trial.error for trial in failed)
    assert sweep.best["model.name"] == "timm:test_vit"
    with pytest.raises(ConfigError, match=r"sweep.metric = srrc; evaluations have .*pair_accuracy"):
        hai.tune(heads, "sweep.metric=srrc", "train.max_epochs=2", name="wrong", storage=tmp_path)


def test_what_a_sweep_keeps_is_refused_line_by_line(heads: Path, tmp_path: Path) -> None:
    few = ["sweep.num_trials=1", "train.max_epochs=1"]
    hai.tune(heads, *few, storage=tmp_path)
    with pytest.raises(ConfigError) as caught:
        hai.tune(heads, "sweep.num_trials=1", "train.max_epochs=2", "sweep.seed=4", "optim.weight_decay=0.3",
                 storage=tmp_path)  # fmt: skip
    said = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in said[:3]] == ["optim.weight_decay", "train.max_epochs", "sweep.seed"]
    assert "--name NAME starts another sweep" in said[-1]


def test_values_that_do_not_go_together_are_refused_before_anything_starts(heads: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must not exceed learning_rate"):
        hai.tune(heads, "space.optim.min_learning_rate={choice: [0.0, 0.09]}", "sweep.num_trials=20", storage=tmp_path)
    assert not (tmp_path / "heads").exists()
