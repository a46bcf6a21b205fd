"""The measurements of GPUs: importable where torch, torchvision, timm and transformers are, with little beside them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.device import Setting, record_of, turns_of

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


def test_who_runs_out_of_memory_has_no_turns_and_misses_nothing() -> None:
    setting = Setting(torch.device("cpu"), 0.001, 3, True)

    def hungry() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    turns = turns_of(setting, {"works": lambda: lambda: 2, "hungry": lambda: hungry}, warm_up=1)
    assert len(turns["works"]) == 3
    assert all(turn.rate > 0 for turn in turns["works"])
    assert turns["hungry"] == []
    assert record_of("speed", []) == {
        "name": "speed: out of memory", "value": None, "low": None, "high": None, "floor": None, "holds": True,
    }  # fmt: skip


def test_there_is_no_measuring_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu"):
        Setting.of("cuda", quick=True)
