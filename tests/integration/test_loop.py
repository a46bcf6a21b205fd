"""The loop on toy tasks: resume is bit-exact, micro-batches and workers change nothing but speed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from toy import ToyTask

from hai.checkpoint.find import load_reference
from hai.config.schema import RunConfig
from hai.context import Context
from hai.errors import CheckpointError
from hai.loop import train
from hai.types import STOP, Record


def toy_config(**sections: Record) -> RunConfig:
    """Build a config for the toy tasks: 96 examples, 6 steps an epoch."""
    base: dict[str, Record] = {
        "train": {"max_epochs": 5, "global_batch_size": 16, "ema_decay": 0.9},
        "optim": {"learning_rate": 0.02, "warmup_epochs": 1},
        "checkpoint": {"every_minutes": None, "keep": 100},
        "logging": {"tensorboard": False, "every_steps": 4},
    }
    for name, fields in sections.items():
        base[name] = {**base.get(name, {}), **fields}
    return RunConfig.model_validate(base)


def toy_run(
    storage: Path | str, config: RunConfig, task: ToyTask | None = None, *, stop_at: int | None = None, **context: Any
) -> Record:
    """Train a toy task in this process; `stop_at`: ask for the end after so many steps of this launch."""
    torch.set_num_threads(1)
    context = {"storage": str(storage), "name": "run", "request": _stop_after(stop_at), **context}
    return train(config, task or ToyTask(config), Context(**context))


def newest(storage: Path) -> Path:
    return max((storage / "run" / "checkpoints").glob("step_*"))


def tensors_of(storage: Path) -> tuple[bytes, bytes]:
    folder = newest(storage)
    return (folder / "model.safetensors").read_bytes(), (folder / "state.safetensors").read_bytes()


def losses_of(storage: Path) -> list[tuple[int, float]]:
    lines = (storage / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["step"], r["train/loss"]) for r in map(json.loads, lines) if "train/loss" in r]


def _deep(config: RunConfig) -> ToyTask:
    return ToyTask(config, dropout=0.3, batch_norm=True)


def test_a_toy_task_learns(tmp_path: Path) -> None:
    summary = toy_run(tmp_path, toy_config(train={"max_epochs": 7}))
    assert summary["status"] == "finished"
    assert summary["step"] == 42
    assert summary["best"]["value"] >= 0.85


@pytest.mark.parametrize("stops", [[7], [1, 6, 11], [12, 12]])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path: Path, stops: list[int]) -> None:
    config = toy_config()
    whole = _deep(config)
    toy_run(tmp_path / "a", config, whole)
    seen = []
    for stop in stops:
        part = _deep(config)
        assert toy_run(tmp_path / "b", config, part, stop_at=stop)["status"] == "interrupted"
        seen += part.training.seen
    part = _deep(config)
    assert toy_run(tmp_path / "b", config, part)["status"] == "finished"
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")
    assert seen + part.training.seen == whole.training.seen
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")


def test_killed_at_random_points_equals_unbroken(tmp_path: Path) -> None:
    config = toy_config(checkpoint={"every_minutes": 0.0005}, train={"max_epochs": 20})
    toy_run(tmp_path / "a", config, _deep(config))
    rng, kills = random.Random(5), 0
    while True:
        child = os.fork()
        if child == 0:
            status = toy_run(tmp_path / "b", config, _deep(config))["status"]
            os._exit(0 if status == "finished" else 1)
        deadline = time.monotonic() + rng.uniform(0.02, 0.25) * 1.03**kills  # a busy machine takes long for a step
        while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        try:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            break
        if os.waitstatus_to_exitcode(status) == 0:
            break
        kills += 1
        assert kills < 500, "no progress between kills"
    assert kills >= 3
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")
    steps = [step for step, _ in losses_of(tmp_path / "b")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("pairs", [False, True])
def test_micro_batches_do_not_change_the_objective(tmp_path: Path, pairs: bool) -> None:
    finals = []
    for micro in (None, 4, 5):
        config = toy_config(train={"micro_batch_size": micro, "max_epochs": 2})
        toy_run(tmp_path / str(micro), config, ToyTask(config, pairs=pairs))
        finals.append(losses_of(tmp_path / str(micro)))
    for other in finals[1:]:
        assert [step for step, _ in other] == [step for step, _ in finals[0]]
        for (_, one), (_, two) in zip(finals[0], other, strict=True):
            assert one == pytest.approx(two, abs=1e-5)


def test_cached_gradients_move_batch_norm_once_and_repeat_dropout(tmp_path: Path) -> None:
    config = toy_config(train={"micro_batch_size": 4, "max_steps": 3, "ema_decay": None})
    task = ToyTask(config, pairs=True, dropout=0.5, batch_norm=True)
    toy_run(tmp_path, config, task)
    from safetensors.torch import load_file

    assert int(load_file(newest(tmp_path) / "model.safetensors")["1.num_batches_tracked"]) == 3 * 4


def _stop_after(steps: int | None) -> Callable[[], int]:
    """Answer the loop's question before each step: go on for so many steps, then stop."""
    calls = iter(range(10**9))
    return lambda: STOP if steps is not None and next(calls) >= steps else 0


def _worker(
    rank: int, world_size: int, storage: str, port: int, pairs: bool, stop_at: int | None, fields: Record
) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    config = toy_config(train={"max_epochs": 2, **fields})
    task = ToyTask(config, pairs=pairs)
    request = _stop_after(stop_at)
    train(config, task, Context(storage, "run", rank=rank, world_size=world_size, request=request))
    Path(storage, f"seen-{rank}.json").write_text(json.dumps(task.training.seen), encoding="utf-8")
    dist.destroy_process_group()


def _workers(storage: Path, world_size: int, *, pairs: bool = False, stop_at: int | None = None, **fields: Any) -> None:
    storage.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (world_size, str(storage), port, pairs, stop_at, fields)
    torch.multiprocessing.start_processes(_worker, arguments, nprocs=world_size, start_method="fork")


@pytest.mark.parametrize("pairs", [False, True])
def test_workers_change_neither_order_nor_objective(tmp_path: Path, pairs: bool) -> None:
    config = toy_config(train={"max_epochs": 2})
    alone = ToyTask(config, pairs=pairs)
    toy_run(tmp_path / "one", config, alone)
    _workers(tmp_path / "two", 2, pairs=pairs)
    _workers(tmp_path / "three", 3, pairs=pairs, micro_batch_size=2)
    for other in ("two", "three"):
        for (step, one), (same, two) in zip(losses_of(tmp_path / "one"), losses_of(tmp_path / other), strict=True):
            assert step == same
            assert one == pytest.approx(two, abs=1e-5)
    both = [json.loads((tmp_path / "two" / f"seen-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    merged = [tuple(pair) for s in range(12) for half in both for pair in half[s * 8 : s * 8 + 8]]
    assert merged == alone.training.seen


def test_the_order_of_examples_survives_every_change_of_the_number_of_workers(tmp_path: Path) -> None:
    config = toy_config(train={"max_epochs": 3})
    whole = ToyTask(config)
    toy_run(tmp_path / "one", config, whole)
    storage = tmp_path / "changing"
    seen: list[tuple[int, int]] = []
    for world_size, steps in ((1, 5), (2, 4), (4, 5), (1, 4)):
        _workers(storage, world_size, max_epochs=3, stop_at=steps)
        files = [storage / f"seen-{rank}.json" for rank in range(world_size)]
        own = [[tuple(pair) for pair in json.loads(file.read_text(encoding="utf-8"))] for file in files]
        share = 16 // world_size
        for step in range(steps):
            seen += [pair for part in own for pair in part[step * share : (step + 1) * share]]
    assert seen == whole.training.seen
    for (step, one), (same, two) in zip(losses_of(tmp_path / "one"), losses_of(storage), strict=True):
        assert step == same
        assert one == pytest.approx(two, abs=1e-5)


def test_early_stopping_ends_and_more_patience_goes_on(tmp_path: Path) -> None:
    config = toy_config(train={"max_epochs": 30, "early_stopping_patience": 2, "early_stopping_min_delta": 0.5})
    first = toy_run(tmp_path, config)
    assert (first["status"], first["step"]) == ("finished", 3 * 6)
    again = toy_run(tmp_path, config)
    assert again["step"] == first["step"]
    more = toy_run(
        tmp_path, toy_config(train={"max_epochs": 30, "early_stopping_patience": 4, "early_stopping_min_delta": 0.5})
    )
    assert more["step"] == 5 * 6


def test_raising_the_limit_of_a_finished_run_goes_on(tmp_path: Path) -> None:
    assert toy_run(tmp_path, toy_config(train={"max_epochs": 2}))["step"] == 12
    assert toy_run(tmp_path, toy_config(train={"max_epochs": 3}))["step"] == 18
    assert toy_run(tmp_path, toy_config(train={"max_epochs": 9, "max_steps": 20}))["step"] == 20


def test_sgd_begins_late_for_a_backbone_that_learns_late(tmp_path: Path) -> None:
    """Fused SGD fails where some momentum begins before the other."""
    config = toy_config(
        model={"freeze_backbone": True, "unfreeze_after_epochs": 1}, optim={"name": "sgd", "learning_rate": 0.1}
    )
    assert toy_run(tmp_path / "whole", config)["status"] == "finished"
    for stop in (4, 5, None):
        toy_run(tmp_path / "stopped", config, stop_at=stop)
    assert tensors_of(tmp_path / "whole") == tensors_of(tmp_path / "stopped")


def test_other_data_is_refused(tmp_path: Path) -> None:
    config = toy_config()
    toy_run(tmp_path, config, stop_at=3)

    class Other(ToyTask):
        def build_datasets(self, *, progress: Any = None) -> Any:
            from dataclasses import replace

            return replace(super().build_datasets(), identity="another")

    with pytest.raises(CheckpointError, match="--restart"):
        toy_run(tmp_path, config, Other(config))


def test_a_run_on_a_bucket_goes_on_from_there_when_this_machine_is_lost(tmp_path: Path) -> None:
    from hai.checkpoint.remote import locate

    config = toy_config(logging={"tensorboard": True})
    toy_run(tmp_path / "a", config, _deep(config))
    storage = f"memory://{tmp_path.name}"
    said: list[str] = []
    toy_run(storage, config, _deep(config), stop_at=11, wait_for_upload=True, say=said.append)
    location = locate(storage, "run")
    work, remote = location.path, location.remote
    assert remote is not None
    assert len(remote.names("tensorboard")) == 1
    shutil.rmtree(work)
    toy_run(storage, config, _deep(config), wait_for_upload=True, say=said.append)
    assert any("resuming from step_00000011" in line for line in said)
    assert not any("not confirmed" in line for line in said)
    work.parent.joinpath("b").mkdir()
    work.rename(work.parent / "b" / "run")
    assert tensors_of(tmp_path / "a") == tensors_of(work.parent / "b")
    assert losses_of(tmp_path / "a") == losses_of(work.parent / "b")


def test_resume_elsewhere_takes_over_a_checkpoint_of_another_run(tmp_path: Path) -> None:
    config = toy_config()
    toy_run(tmp_path / "a", config, _deep(config))
    toy_run(tmp_path / "old", config, _deep(config), stop_at=9)
    for reference in ("old/run", "old/run/checkpoints/step_00000009"):
        storage = tmp_path / reference.replace("/", "-")
        toy_run(storage, config, _deep(config), resume=str(tmp_path / reference))
        assert tensors_of(tmp_path / "a") == tensors_of(storage)


def test_a_checkpoint_of_another_run_is_kept_here_from_the_start(tmp_path: Path) -> None:
    """Stopped before its first step the new run has all it needs, and the best checkpoint that it names is its own."""
    config = toy_config(train={"early_stopping_min_delta": 1.0})  # the first evaluation stays the best
    whole, old, rest = _deep(config), _deep(config), _deep(config)
    toy_run(tmp_path / "a", config, whole)
    toy_run(tmp_path / "old", config, old, stop_at=6)
    summary = toy_run(tmp_path / "new", config, resume=str(tmp_path / "old" / "run"), stop_at=0, task=_deep(config))
    assert (summary["status"], summary["step"], summary["saved_step"]) == ("interrupted", 6, 6)
    assert tensors_of(tmp_path / "old") == tensors_of(tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    summary = toy_run(tmp_path / "new", config, rest)
    assert (summary["status"], summary["best"]["step"]) == ("finished", 6)
    assert old.training.seen + rest.training.seen == whole.training.seen
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "new")
    best = [json.loads((tmp_path / name / "run" / "best.json").read_bytes()) for name in ("a", "new")]
    assert [(record["step"], record["checkpoint"]) for record in best] == [(6, "checkpoints/step_00000006")] * 2
    checkpoint, _, refusals = load_reference(str(tmp_path / "new" / "run"), report=print)
    assert (checkpoint.step, checkpoint.sha256, refusals) == (6, best[1]["sha256"], [])


@pytest.mark.timeout(120)
def test_records_go_to_tensorboard_and_weights_and_biases_costs_nothing_when_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logging = {"tensorboard": True, "wandb": {"enabled": True}}
    said: list[str] = []
    summary = toy_run(tmp_path, toy_config(logging=logging), say=said.append)
    assert summary["status"] == "finished"
    assert any("Weights & Biases" in line for line in said)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    written = {scalar.step: scalar.value for scalar in events.Scalars("train/loss")}
    for step, loss in losses_of(tmp_path):
        assert written[step] == pytest.approx(loss, rel=1e-6)


def test_an_attempt_that_lost_the_run_ends_and_writes_nothing_more(tmp_path: Path) -> None:
    from hai.checkpoint.owner import Owner
    from hai.checkpoint.records import save_json
    from hai.checkpoint.remote import locate

    owner = Owner(locate(str(tmp_path), "run"), report=lambda line: None)
    attempt = owner.acquire()
    path = tmp_path / "run" / "owner.json"

    def request() -> int:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["attempt"] == attempt and list((tmp_path / "run" / "checkpoints").glob("step_*")):
            save_json(path, {**record, "attempt": "another"})
        return 0

    config = toy_config(train={"max_epochs": 1000})
    with pytest.raises(CheckpointError, match="another attempt"):
        toy_run(tmp_path, config, attempt=attempt, request=request)
    owner.release()
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 1
