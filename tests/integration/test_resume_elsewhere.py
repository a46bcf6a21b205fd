"""`--resume URL`: a run here goes on from another one, if the two would be the same run."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from benchmarks.faults.kills import config_of
from hai.checkpoint.find import load_reference
from hai.checkpoint.remote import locate
from hai.config.schema import RunConfig
from hai.errors import ConfigError
from hai.launch.train import run_training


def test_another_run_is_gone_on_with_unless_its_config_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**config_of("detector", tmp_path, train={"max_steps": 3}), "storage": str(tmp_path / "old")}
    assert run_training(RunConfig.model_validate(values)) == 0
    checkpoints = tmp_path / "old" / "run" / "checkpoints"
    other = {**values, "storage": str(tmp_path / "new"), "optim": {**values["optim"], "learning_rate": 0.1}}
    for reference in (checkpoints.parent, max(checkpoints.glob("step_*"))):
        with pytest.raises(ConfigError, match=r"optim\.learning_rate: run run has 0\.002, given 0\.1"):
            run_training(RunConfig.model_validate(other), resume=str(reference))
    longer = {**values, "storage": str(tmp_path / "new"), "train": {**values["train"], "max_steps": 5}}
    capsys.readouterr()
    assert run_training(RunConfig.model_validate(longer), resume=str(checkpoints.parent)) == 0
    said = "".join(capsys.readouterr())
    assert f"apart from {checkpoints.parent} where it comes from; add --storage {tmp_path / 'old'} to go on" in said
    assert max((tmp_path / "new" / "run" / "checkpoints").glob("step_*")).name == "step_00000005"
    assert run_training(RunConfig.model_validate(longer), resume=str(tmp_path / "new" / "run")) == 0
    assert "apart from" not in "".join(capsys.readouterr()), "the run itself"


def test_a_finished_run_is_whole_in_the_place_where_it_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**config_of("detector", tmp_path, train={"max_steps": 3}), "storage": str(tmp_path / "old")}
    assert run_training(RunConfig.model_validate(values)) == 0
    there = {**values, "storage": str(tmp_path / "new")}
    for _ in range(2):
        assert run_training(RunConfig.model_validate(there), resume=str(tmp_path / "old" / "run")) == 0
    said = "".join(capsys.readouterr())
    assert "could not be saved" not in said
    assert "run run is finished" in said
    old, new = (load_reference(str(tmp_path / name / "run"), report=print)[0] for name in ("old", "new"))
    assert (new.step, new.path.parents[1]) == (3, tmp_path / "new" / "run")
    assert (new.path / "model.safetensors").read_bytes() == (old.path / "model.safetensors").read_bytes()


def test_a_run_that_was_deleted_on_the_storage_neither_comes_back_nor_refuses_a_new_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    storage = f"memory://{tmp_path.name}"
    values = {**config_of("detector", tmp_path, train={"max_steps": 3}), "storage": storage}
    assert run_training(RunConfig.model_validate(values)) == 0
    old = locate(storage, "run").path
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)
    other = {**values, "train": {**values["train"], "max_steps": 2}, "optim": {"learning_rate": 0.1}}
    capsys.readouterr()
    assert run_training(RunConfig.model_validate(other)) == 0
    said = "".join(capsys.readouterr())
    assert "starting from step 0" in said
    assert f"stays in {old}" in said.replace("\n", " ")
    assert (old / "checkpoints" / "step_00000003").is_dir()
    assert load_reference(f"{storage}/run", report=print)[0].step == 2
