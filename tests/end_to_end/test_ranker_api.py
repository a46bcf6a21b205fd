"""The Python of docs/ranker.md, run as it stands there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import hai
from hai.errors import ConfigError

ROOT = Path(hai.__file__).resolve().parents[1]

SMALL = [
    "data.image_size=48",
    "data.cache_decoded=off",
    "train.max_epochs=3",
    "train.global_batch_size=16",
    "scale.launcher=in_process",
    "scale.use_gpu=false",
    "scale.cpus_per_worker=1",
    "logging.tensorboard=false",
]


def test_the_documented_code_runs(
    small_art: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_art, tmp_path / "art")
    images = sorted((tmp_path / "art" / "images").iterdir())
    for image, name in zip(images, ("a.jpg", "b.jpg"), strict=False):
        shutil.copy(image, image.with_name(name))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "ranker.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    extra = ", ".join(repr(setting) for setting in SMALL)
    code = code.replace("configs/ranker/quick.yaml", str(ROOT / "configs/ranker/quick.yaml"))
    code = code.replace('"data.sources.0.image_dir=art/images")', f'"data.sources.0.image_dir=art/images", {extra})')
    names: dict[str, object] = {}
    exec(code, names)  # the page's own words
    printed = capsys.readouterr().out.splitlines()
    result, run, found = names["result"], names["run"], names["found"]
    assert isinstance(result, dict)
    assert isinstance(run, hai.Run)
    assert run.status == "finished"
    assert run.best is not None
    assert run.best["metric"] == "pair_accuracy"
    written = json.loads((Path(run.folder) / "evaluation/test/evaluation.json").read_text(encoding="utf-8"))
    assert result == written
    assert str(result["metrics"]["pair_accuracy"]) in printed
    assert any(line.startswith(str(found.winner)) for line in printed)  # type: ignore[attr-defined]
    again = hai.train(ROOT / "configs/ranker/quick.yaml", *SMALL, "data.sources.0.path=art/split.csv",
                      "data.sources.0.image_dir=art/images")  # fmt: skip
    assert again == run


def test_mistakes_are_raised_as_the_verbs_say_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        hai.train(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="--split = all"):
        hai.evaluate(tmp_path, tmp_path, split="all")
    with pytest.raises(AttributeError, match="no attribute 'trains'"):
        _ = hai.trains
