"""Steps that are not finite, memory that runs out, steps that end the process: the run goes on and says so."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from test_loop import losses_of, newest, tensors_of, toy_config, toy_run
from torch import Tensor
from toy import ToyTask

from hai.config.schema import RunConfig
from hai.context import Context
from hai.errors import CheckpointError, NonFiniteError, OutOfMemoryError
from hai.loop import train
from hai.types import Batch, Record

SAVES = {"every_minutes": None, "every_epochs": 0.5, "keep": 100}  # every 3 steps


class Poisoned(ToyTask):
    """Some examples make the loss of their batch NaN, once each; `gradient`: the loss stays finite."""

    def __init__(self, config: RunConfig, examples: set[int], *, epoch: int | None = None, gradient: bool = False):
        super().__init__(config, dropout=0.3, batch_norm=True)
        self._examples, self._epoch, self._gradient = examples, epoch, gradient

    def loss(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        loss = super().loss(outputs, batch, epoch=epoch)
        if self._examples.isdisjoint(batch["index"].tolist()) or self._epoch not in (None, epoch):
            return loss
        if self._gradient:
            return loss + (outputs[0, 0] - outputs[0, 0].detach()).abs().sqrt()  # infinite slope at 0
        return loss * float("inf")


def summary_of(storage: Path) -> Record:
    return json.loads((storage / "run" / "summary.json").read_text(encoding="utf-8"))


def state_of(storage: Path) -> Record:
    return json.loads((newest(storage) / "state.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("gradient", [False, True])
def test_a_batch_that_is_not_finite_is_left_out_and_its_examples_are_named(tmp_path: Path, gradient: bool) -> None:
    config = toy_config(checkpoint=SAVES)
    said: list[str] = []
    poisoned = Poisoned(config, {7}, epoch=1, gradient=gradient)
    assert toy_run(tmp_path, config, poisoned, say=said.append)["status"] == "finished"
    (step,) = summary_of(tmp_path)["left_out_steps"]
    assert 6 <= step < 12
    (rollback,) = state_of(tmp_path)["rollbacks"]
    assert rollback["step"] == step
    assert "vector-7" in rollback["examples"]
    assert len(rollback["examples"]) == 16
    assert any(line.startswith(f"step {step}: loss or gradient = NaN or Inf; going back") for line in said)
    assert f"resuming from step_{step - step % 3:08d}" in "\n".join(said)
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert all(name in log for name in rollback["examples"])
    steps = [step for step, _ in losses_of(tmp_path)]
    assert steps == sorted(set(steps))


def test_a_rolled_back_run_stopped_anywhere_equals_one_that_was_not(tmp_path: Path) -> None:
    config = toy_config(checkpoint=SAVES)
    toy_run(tmp_path / "a", config, Poisoned(config, {7, 21}, epoch=1))
    for stop in (5, 4, 7, None):
        toy_run(tmp_path / "b", config, Poisoned(config, {7, 21}, epoch=1), stop_at=stop)
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")
    assert summary_of(tmp_path / "a")["left_out_steps"] == summary_of(tmp_path / "b")["left_out_steps"]
    assert len(summary_of(tmp_path / "a")["left_out_steps"]) == 2


def test_without_a_checkpoint_it_goes_back_to_the_start(tmp_path: Path) -> None:
    config = toy_config(train={"eval_every_epochs": 2})
    said: list[str] = []
    toy_run(tmp_path, config, Poisoned(config, {7}, epoch=0), say=said.append)
    assert sum(line.startswith("starting from step 0") for line in said) == 2
    assert len(summary_of(tmp_path)["left_out_steps"]) == 1


def test_after_three_rollbacks_it_stops_names_what_the_batches_share_and_keeps_the_last_good_state(
    tmp_path: Path,
) -> None:
    config = toy_config(train={"max_epochs": 8})
    with pytest.raises(NonFiniteError, match=r"rolled back 3 times; in all their batches: .*vector-7;") as caught:
        toy_run(tmp_path / "bad", config, Poisoned(config, {7}))
    assert summary_of(tmp_path / "bad")["status"] == "failed"
    assert caught.value.step >= 18
    rollbacks = state_of(tmp_path / "bad")["rollbacks"]
    assert [record["step"] // 6 for record in rollbacks] == [0, 1, 2]
    assert newest(tmp_path / "bad").name == "step_00000018"
    assert all(
        torch.isfinite(value).all() for value in load_file(newest(tmp_path / "bad") / "model.safetensors").values()
    )


def _poisoned_worker(rank: int, storage: str, port: int) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    config = toy_config(checkpoint=SAVES, logging={"every_steps": 1})  # a record for the step left out, too
    poisoned = Poisoned(config, {7}, epoch=1, gradient=rank == 1)  # one worker's loss, the other's gradient
    assert train(config, poisoned, Context(storage, "run", rank=rank, world_size=2))["status"] == "finished"
    dist.destroy_process_group()


def test_all_workers_roll_back_together(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(_poisoned_worker, (str(tmp_path), port), nprocs=2, start_method="fork")
    assert summary_of(tmp_path)["left_out_steps"] == [6]  # the step that the checkpoint gone back to stands before
    config = toy_config(checkpoint=SAVES)
    toy_run(tmp_path / "alone", config, Poisoned(config, {7}, epoch=1))
    assert summary_of(tmp_path / "alone")["left_out_steps"] == [6]


class Hungry(ToyTask):
    """From a step on, more than `most` examples at once do not fit; in evaluation never more than `evaluated`."""

    def __init__(
        self, config: RunConfig, *, most: int = 10**9, start: int = 0, evaluated: int = 10**9, noisy: bool = True
    ):
        super().__init__(config, batch_norm=noisy, dropout=0.3 * noisy, pairs=True)
        self._most, self._start, self._evaluated = most, start, evaluated
        self._seen = self.largest = 0

    def outputs(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        size = len(batch["index"])
        outputs = super().outputs(model, batch)  # memory runs out late: BatchNorm has moved by then
        if model.training:
            self._seen += size
        limit = self._most if model.training else self._evaluated
        if size > limit and self._seen > 16 * self._start:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.largest = max(self.largest, size if model.training else 0)
        return outputs


def test_memory_that_runs_out_halves_the_micro_batch_and_retries_the_step_bit_for_bit(tmp_path: Path) -> None:
    config = toy_config(logging={"tensorboard": False, "every_steps": 1})
    said: list[str] = []
    toy_run(tmp_path / "a", config, Hungry(config, most=4, start=7), say=said.append)
    assert [line for line in said if "memory has run out" in line] == [
        "memory has run out: from step 8 on, each worker forwards at most 4 examples at once; the global batch and the "
        "order of examples stay"
    ]
    toy_run(tmp_path / "b", config, Hungry(config), stop_at=7)
    smaller = toy_config(train={"micro_batch_size": 4}, logging={"tensorboard": False, "every_steps": 1})
    toy_run(tmp_path / "b", smaller, Hungry(config))
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")


def test_a_resume_remembers_the_micro_batch_until_another_is_asked_for(tmp_path: Path) -> None:
    config = toy_config()
    toy_run(tmp_path, config, Hungry(config, most=4), stop_at=8)
    assert state_of(tmp_path)["micro_batch_size"] == 4
    said: list[str] = []
    again = Hungry(config)
    toy_run(tmp_path, config, again, stop_at=3, say=said.append)
    assert again.largest == 4
    assert any("at most 4 examples at once" in line for line in said)
    larger = toy_config(train={"micro_batch_size": 8})
    more = Hungry(larger)
    toy_run(tmp_path, larger, more)
    assert more.largest == 8


def test_one_example_that_does_not_fit_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    config = toy_config()
    with pytest.raises(
        OutOfMemoryError,
        match=r"step 7: out of memory with 1 example at once .* data\.image_size .* allocate 2\.00 GiB",
    ):
        toy_run(tmp_path, config, Hungry(config, most=0, start=7, noisy=False))
    assert newest(tmp_path).name == "step_00000006"


def test_an_optimizer_that_does_not_fit_ends_the_run_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: torch.optim.Optimizer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(OutOfMemoryError, match=r"step 0: out of memory for .* optim\.name=sgd .* allocate 2\.00 GiB"):
        toy_run(tmp_path, toy_config())


def _hungry_worker(rank: int, storage: str, port: int, limit: int | None) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    config = toy_config(checkpoint=SAVES)
    task = ToyTask(config, pairs=True) if rank == 0 else Hungry(config, most=4, start=4, noisy=False)
    context = Context(storage, "run", rank=rank, world_size=2, micro_batch_limit=limit)
    try:
        train(config, task, context)
    except OutOfMemoryError as error:
        Path(storage, f"error-{rank}.txt").write_text(f"{error.micro_batch_size} {error}", encoding="utf-8")
        raise
    dist.destroy_process_group()


def test_workers_start_again_with_half_the_micro_batch(tmp_path: Path) -> None:
    storage = tmp_path / "two"
    storage.mkdir()
    for limit in (None, 4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = (str(storage), port, limit)
        if limit is None:
            with pytest.raises(torch.multiprocessing.ProcessRaisedException):
                torch.multiprocessing.start_processes(_hungry_worker, arguments, nprocs=2, start_method="fork")
            (found,) = storage.glob("error-*.txt")  # the other worker only lost its peer
            assert found.name == "error-1.txt"
            assert found.read_text(encoding="utf-8").startswith("8 step 8: out of memory with 8 examples at once")
        else:
            torch.multiprocessing.start_processes(_hungry_worker, arguments, nprocs=2, start_method="fork")
    assert summary_of(storage)["status"] == "finished"
    assert state_of(storage)["memory"]["micro_batch_size"] == 4
    config = toy_config(checkpoint=SAVES)
    toy_run(tmp_path / "one", config, ToyTask(config, pairs=True))
    for (step, one), (same, two) in zip(losses_of(tmp_path / "one"), losses_of(storage), strict=True):
        assert step == same
        assert one == pytest.approx(two, abs=1e-5)


def test_an_evaluation_that_does_not_fit_is_done_in_parts(tmp_path: Path) -> None:
    config = toy_config()
    whole, parts = toy_run(tmp_path / "a", config, Hungry(config)), Hungry(config, evaluated=3)
    assert toy_run(tmp_path / "b", config, parts)["best"] == whole["best"]
    assert tensors_of(tmp_path / "a") == tensors_of(tmp_path / "b")


def _die_in(storage: Path, config: RunConfig, step: int) -> list[str]:
    """Train in a child that is killed in a step; return what it said."""
    lines = storage / "said.txt"
    child = os.fork()
    if child == 0:

        class Fatal(ToyTask):
            def outputs(self, model: torch.nn.Module, batch: Batch) -> Tensor:
                flight = json.loads((storage / "run" / "in_flight.json").read_bytes())
                if model.training and flight[-1][1] == step:
                    for thread in threading.enumerate():  # the checkpoint on its way is to be whole
                        if thread.name == "hai-checkpoint":
                            thread.join()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().outputs(model, batch)

        def say(line: str) -> None:
            with open(lines, "a", encoding="utf-8") as stream:
                stream.write(line + "\n")

        try:
            toy_run(storage, config, Fatal(config), say=say)
        except CheckpointError as error:
            say(f"error: {error}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    said = lines.read_text(encoding="utf-8").splitlines()
    lines.unlink()
    return said


def test_a_step_that_ends_the_process_again_and_again_is_found_and_named(tmp_path: Path) -> None:
    config = toy_config(checkpoint=SAVES)
    assert "starting from step 0 on 1 worker" in _die_in(tmp_path, config, 8)
    for _ in range(2):
        assert any("resuming from step_00000006" in line for line in _die_in(tmp_path, config, 8))
    said = _die_in(tmp_path, config, 8)
    assert "step 8 has ended the process twice from step_00000006; going back one checkpoint" in said
    assert any("resuming from step_00000003" in line for line in said)
    assert any("resuming from step_00000003" in line for line in _die_in(tmp_path, config, 8))
    (error,) = [line for line in _die_in(tmp_path, config, 8) if line.startswith("error")]
    assert "step 8 has ended the process twice from step_00000006 and twice from step_00000003" in error
    toy_run(tmp_path / "unbroken", config)
    assert toy_run(tmp_path, config)["status"] == "finished"  # run again, it goes on
    assert tensors_of(tmp_path) == tensors_of(tmp_path / "unbroken")


def test_deaths_in_different_steps_cost_nothing(tmp_path: Path) -> None:
    config = toy_config(checkpoint=SAVES)
    for step in (7, 8, 7, 8):
        said = _die_in(tmp_path, config, step)
        assert not any("going back" in line for line in said)


def test_evaluations_that_metrics_has_lost_come_back_from_the_checkpoint(tmp_path: Path) -> None:
    config = toy_config()
    toy_run(tmp_path, config, stop_at=20)
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = [line for line in metrics.read_text(encoding="utf-8").splitlines() if "val/accuracy" in line]
    assert len(before) == 3
    metrics.unlink()
    toy_run(tmp_path, config)
    after = [line for line in metrics.read_text(encoding="utf-8").splitlines() if "val/accuracy" in line]
    assert [json.loads(line) for line in after][:3] == [json.loads(line) for line in before]
    assert len(after) == 5
