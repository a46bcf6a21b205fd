"""The ranker in the loop: features kept or computed anew, workers and micro-batches change nothing but speed."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from hai.config.load import config_from_yaml_text, show_config
from hai.config.schema import RunConfig
from hai.errors import ConfigError
from hai.launch.in_process import train_in_process
from hai.launch.plan import Plan
from hai.launch.worker import run_worker
from hai.tasks.ranker import RankerTask, keeps_embeddings
from hai.types import STOP, Record

torch.set_num_threads(1)

FROZEN = """
task: ranker
data: {{sources: [{{name: art, path: "{data}"}}], image_size: 42, score_column: quality, cache_decoded: "off"}}
model: {{name: "hf:{backbone}", pretrained: false, dropout: 0.1, num_heads: 2}}
optim: {{learning_rate: 3e-3}}
train: {{max_epochs: 4, global_batch_size: 16, ema_decay: 0.9}}
checkpoint: {{every_minutes: null, keep: 100}}
scale: {{launcher: in_process, use_gpu: false, cpus_per_worker: 1}}
logging: {{tensorboard: false, every_steps: 1}}
"""

EXACT = ["model.dropout=0", "optim.name=sgd", "optim.learning_rate=0.3"]
"""AdamW's first steps turn a gradient's last bit into a step of full length where the gradient is nearly 0."""

LEARNT = """
task: ranker
data: {{sources: [{{name: art, path: "{data}"}}], image_size: 48, geometry: crop, cache_decoded: "off"}}
augment: {{flip: 0.5}}
model: {{name: compact, pretrained: false, freeze_backbone: false, head: linear, normalize_features: false, dropout: 0}}
optim: {{learning_rate: 2e-3}}
train: {{max_epochs: 8, global_batch_size: 16}}
checkpoint: {{every_minutes: null, keep: 100}}
scale: {{launcher: in_process, use_gpu: false, cpus_per_worker: 1}}
logging: {{tensorboard: false, every_steps: 1}}
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the description of a tiny DINOv2; its weights are random."""
    folder = tmp_path_factory.mktemp("backbone")
    description = {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def plan_of(config: RunConfig, storage: Path, **fields: Any) -> Plan:
    return Plan(config=config.model_dump_json(), storage=str(storage), name="run", attempt="a", **fields)


def run(config: RunConfig, storage: Path, **fields: Any) -> Record:
    lines: list[str] = []
    outcome = train_in_process(plan_of(config, storage, **fields), use_gpu=False, say=lines.append, show=lambda _: None)
    return {**outcome.summary, "lines": lines}


def newest(storage: Path) -> Path:
    return max((storage / "run" / "checkpoints").glob("step_*"))


def tensors_of(storage: Path) -> tuple[bytes, bytes]:
    folder = newest(storage)
    return (folder / "model.safetensors").read_bytes(), (folder / "state.safetensors").read_bytes()


def losses_of(storage: Path) -> list[float]:
    lines = (storage / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record]


def frozen(small_art: Path, backbone: Path, *settings: str) -> RunConfig:
    return config_from_yaml_text(FROZEN.format(data=small_art, backbone=backbone), "test", settings)


def learnt(data: Path, *settings: str) -> RunConfig:
    return config_from_yaml_text(LEARNT.format(data=data), "test", settings)


def test_kept_features_train_bit_for_bit_as_encoding_anew_does(small_art: Path, backbone: Path, tmp_path: Path) -> None:
    kept = run(frozen(small_art, backbone, f"data.embedding_cache={tmp_path}/kept"), tmp_path / "a")
    anew = run(frozen(small_art, backbone, "data.cache_embeddings=off"), tmp_path / "b")
    assert kept["best"] == anew["best"]
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    encoded = [line for line in kept["lines"] if "features" in line or "encod" in line]
    assert encoded
    again = run(frozen(small_art, backbone, f"data.embedding_cache={tmp_path}/kept", "seed=43"), tmp_path / "c")
    assert again["status"] == "finished"


def test_a_checkpoint_of_a_frozen_backbone_holds_the_head_only(small_art: Path, backbone: Path, tmp_path: Path) -> None:
    run(frozen(small_art, backbone, "train.max_epochs=1"), tmp_path)
    from safetensors import safe_open

    with safe_open(newest(tmp_path) / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names
    assert all("head" in name for name in names)


def test_features_are_computed_once_for_all_runs_and_survive_a_stop(
    small_art: Path, backbone: Path, tmp_path: Path
) -> None:
    config = frozen(small_art, backbone, f"data.embedding_cache={tmp_path}/kept")
    spoken: list[str] = []
    say, nothing = spoken.append, lambda _: None
    arguments: dict[str, Any] = {"device": torch.device("cpu"), "report": nothing, "show": nothing, "say": say}
    stopped = run_worker(plan_of(config, tmp_path, only_prepare=True), request=lambda: STOP, **arguments)
    assert stopped["status"] == "interrupted"
    assert run_worker(plan_of(config, tmp_path, only_prepare=True), request=lambda: 0, **arguments) == {
        "status": "finished",
        "step": 0,
    }
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}
    assert shards
    run(config, tmp_path / "one")
    run(frozen(small_art, backbone, f"data.embedding_cache={tmp_path}/kept", "pairs.loss=margin"), tmp_path / "two")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")} == shards


@pytest.mark.parametrize("settings", [["pairs.loss=margin"], ["pairs.loss=coral"], ["pairs.ties=true"], []])
def test_it_learns_the_order_of_small_pictures(small_art: Path, tmp_path: Path, settings: list[str]) -> None:
    summary = run(learnt(small_art, *settings), tmp_path)
    assert summary["best"]["metric"] == "pair_accuracy"
    assert summary["best"]["value"] > 0.8


def test_micro_batches_do_not_change_the_objective(small_art: Path, backbone: Path, tmp_path: Path) -> None:
    one = frozen(small_art, backbone, *EXACT, "data.cache_embeddings=off")
    run(one, tmp_path / "whole")
    run(one.model_copy(update={"train": one.train.model_copy(update={"micro_batch_size": 5})}), tmp_path / "parts")
    assert losses_of(tmp_path / "parts") == pytest.approx(losses_of(tmp_path / "whole"), abs=1e-5)


def _worker(rank: int, plan: Plan, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    nothing = lambda _: None  # noqa: E731
    arguments: dict[str, Any] = {"say": nothing, "show": nothing, "report": nothing, "request": lambda: 0}
    run_worker(plan, device=torch.device("cpu"), rank=rank, world_size=2, local_world_size=2, **arguments)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_learn_what_one_does(small_art: Path, backbone: Path, tmp_path: Path) -> None:
    config = frozen(small_art, backbone, *EXACT, f"data.embedding_cache={tmp_path}/kept")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (plan_of(config, tmp_path / "two"), port), nprocs=2)
    shards = {path.name for path in (tmp_path / "kept").rglob("*.safetensors")}
    run(config, tmp_path / "one")
    assert {path.name for path in (tmp_path / "kept").rglob("*.safetensors")} == shards
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=1e-5)


def test_comparisons_are_learned_and_judged_by_comparisons(small_art: Path, tmp_path: Path) -> None:
    rows = [line.split(",") for line in (small_art / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:]]
    lines = ["left,right,preference,split"]
    for split in ("train", "val", "test"):
        members = [(row[1], "SABC".index(row[2])) for row in rows if row[4] == split]
        for at, (left, tier) in enumerate(members):
            for right, other in members[at + 1 : at + 7]:
                preference = "tie" if tier == other else "left" if tier < other else "right"
                lines.append(f"{left},{right},{preference},{split}")
    table = tmp_path / "comparisons.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = learnt(table, f"data.sources.0.image_dir={small_art / 'images'}", "pairs.ties=true", "train.max_epochs=4")
    summary = run(config, tmp_path)
    assert summary["best"]["value"] > 0.8
    assert set(summary["metrics"]) >= {"pair_accuracy"}


def test_an_image_size_that_cuts_patches_is_rounded_and_said(small_art: Path, backbone: Path, tmp_path: Path) -> None:
    config = frozen(small_art, backbone, "data.image_size=48")
    (note,) = (note for note in RankerTask(config).build_datasets().notes if "image_size" in note)
    assert note.startswith("data.image_size = 48: ")
    assert " 42 " in note


def test_features_that_change_cannot_be_kept(small_art: Path, backbone: Path) -> None:
    config = frozen(small_art, backbone, "augment.flip=0.5", "data.geometry=crop")
    assert not keeps_embeddings(config)
    with pytest.raises(ConfigError) as caught:
        keeps_embeddings(frozen(small_art, backbone, "augment.flip=0.5", "data.cache_embeddings=on"))
    assert str(caught.value).startswith("data.cache_embeddings = on; augment changes the images")
    assert show_config(config)
