"""The measurements of GPUs: importable where torch, torchvision, timm and transformers are, with little beside them."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import PARTS, __main__, run
from benchmarks.gpu.device import Setting, Turn, record_of, turns_of
from benchmarks.gpu.training import TINY, _records
from hai.errors import ConfigError, OutOfMemoryError

ROOT = Path(__file__).resolve().parents[2]
ABSENT = (
    "av", "gcsfs", "kaggle", "kagglesdk", "matplotlib", "pandas", "psutil", "pyarrow", "pytest", "ray", "requests",
    "sklearn", "six", "tenacity", "tensorboard", "wandb",
)  # fmt: skip
IMPORTS = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import benchmarks.gpu.__main__, hai.loop, hai.tasks.ranker
from benchmarks.gpu import PARTS, embedding, feeding, pairs, stall, training
assert PARTS == ("training", "feeding", "embedding", "pairs", "stall")
"""


def test_little_is_needed() -> None:
    subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        OutOfMemoryError("step 0: out of memory with 1 example"),
    ],
)
def test_who_runs_out_of_memory_has_no_turns(error: Exception) -> None:
    setting = Setting(torch.device("cpu"), 0.001, 3, True)

    def hungry() -> int:
        raise error

    turns = turns_of(setting, {"works": lambda: lambda: 2, "hungry": lambda: hungry}, warm_up=1)
    assert len(turns["works"]) == 3
    assert all(turn.rate > 0 for turn in turns["works"])
    assert turns["hungry"] == []


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ConfigError("model.name = none")])
def test_another_error_is_no_lack_of_memory(error: Exception) -> None:
    def wrong() -> int:
        raise error

    with pytest.raises(type(error), match=str(error)):
        turns_of(Setting(torch.device("cpu"), 0.001, 1, True), {"wrong": lambda: wrong}, warm_up=1)


@pytest.mark.parametrize("without", [None, False])
def test_what_was_not_measured_does_not_hold(without: bool | None) -> None:
    assert record_of("memory", [], most=12, without=without) == {
        "name": "memory: out of memory", "value": None, "low": None, "high": None, "floor": 12, "holds": without,
    }  # fmt: skip
    assert record_of("memory", [])["holds"] is None
    assert record_of("memory", [11.0], most=12, without=without)["holds"] is True
    assert record_of("memory", [13.0], most=12, without=without)["holds"] is False


@pytest.mark.parametrize(
    ("usual", "ours", "holds"),
    [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, None, False), (None, 2.0, None), (None, None, None)],
)
def test_ours_misses_where_it_runs_out_of_memory_alone(
    usual: float | None, ours: float | None, holds: bool | None
) -> None:
    rates = {"usual": usual, "mixed": 1.0, "ours": ours, "searched": 1.0}
    turns = {name: [] if rate is None else [Turn(rate, 1.0)] for name, rate in rates.items()}
    ratio = next(record for record in _records(TINY[0], turns) if "step_ratio" in record["name"])
    assert ratio["holds"] is holds


def test_what_was_measured_is_kept_and_false_alone_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "gpu.json"
    parts = {
        "training": [record_of("fast", [1.2], floor=1.15), record_of("large", [], floor=1.15)],
        "feeding": [record_of("slow", [0.5], floor=0.9)],
    }

    def measured(quick: bool, *, device: str, only: list[str]) -> list[dict[str, Any]]:
        if only == ["stall"]:
            raise KeyboardInterrupt
        return parts[only[0]]

    monkeypatch.setattr(__main__, "run", measured)
    command = ["--json", str(path), "--only"]
    assert __main__.main([*command, "training"]) == 0
    assert "MISSED" not in capsys.readouterr().out
    assert __main__.main([*command, "training", "feeding"]) == 1
    said = capsys.readouterr()
    assert "slow: 0.5 (0.5 to 0.5), limit 0.9: MISSED" in said.out
    assert said.err == "beyond their limits: slow\n"
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        __main__.main([*command, "training", "stall", "feeding"])
    assert json.loads(path.read_text(encoding="utf-8"))["results"] == parts["training"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_each_part_runs_at_a_tiny_size(part: str) -> None:
    records = run(True, device="cpu", only=[part])
    assert len(records) >= 3
    for record in records:
        assert record["name"].startswith(f"{part}: ")
        assert all(math.isfinite(record[field]) and record[field] > 0 for field in ("value", "low", "high")), record
        assert record["holds"] is None


def test_there_is_no_measuring_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu"):
        Setting.of("cuda", quick=True)
