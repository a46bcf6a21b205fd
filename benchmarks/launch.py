"""A whole run through Ray Train against the bare loop, what its start-up is made of, and how long a resume takes.

Whole runs are the real command, `ray_jobs/train.py`, with one worker on this machine's cores: `compact` at 96 px,
batches of 32, 500 steps, one evaluation and one checkpoint at the end. The bare loop is a process of its own without
Ray: same model, same order of examples from the same loader, fused AdamW, clipping, then a pass over the validation
split and torch.save; it runs at the nice value that Ray gives its workers. The two run by turns.

- `run_ratio`: seconds from step 10 until the checkpoint is on the disk, over the same of the bare loop; at most 1.03.
- `kept_run_ratio`: the same over a bare loop that keeps freed memory for the next step, as ours does on CPUs: what is
  left is Ray and the loop. Left out with --quick.
- `run_cpu_ratio`: `run_ratio` in processor seconds of all processes of the command, Ray's among them.
- `ray_cpu_share`: what all processes but the one that trains took of these, over those of the bare loop.
- `steps_ratio`: seconds up to the last record of training before the evaluation.
- `start_ratio`: seconds from the command to the tenth new step when a run is resumed, over a fresh start; at most 1.2.
  Left out with --quick, like the next.
- `large_start_ratio`: the same to the first step of the 43.7 million parameters of `dual_branch`, whose checkpoint of
  523 MB is read, verified and put back; at most 1.2.
- `start: ...`: seconds of each part of a fresh start; `bare_start`: of the bare loop's.
- `end`: seconds from the checkpoint to the end of the command, the page with curves and examples included.

Run alone with `python -m benchmarks.launch [--quick]`. Ray's own processes come and go with each command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks._measure import TreeClock, interleaved, main, output_of, ratios, record

RUN_RATIO, START_RATIO = 1.03, 1.2
STEPS, QUICK_STEPS, WARM, BATCH = 500, 100, 10, 32  # multiples of WARM: the log has every tenth step
NICE = 15  # of Ray's workers
LAST = 10**6
SMALL = """
data: {{sources: [{{name: faces, path: "{faces}"}}], image_size: 96, cache_decoded: "off"}}
model: {{name: compact, pretrained: false}}
optim: {{learning_rate: 1e-3, schedule: constant}}
train: {{max_epochs: null, max_steps: {steps}, global_batch_size: 32, eval_every_epochs: 100000}}
checkpoint: {{every_minutes: null}}
logging: {{every_steps: 10}}
scale: {{num_workers: 1, use_gpu: false}}
"""
LARGE = """
data: {{sources: [{{name: faces, path: "{faces}"}}], image_size: 96, cache_decoded: "off"}}
model: {{name: dual_branch, pretrained: false}}
train: {{max_epochs: null, max_steps: 1000000, global_batch_size: 2, eval_every_epochs: 100000}}
checkpoint: {{every_minutes: null}}
logging: {{every_steps: 1}}
scale: {{num_workers: 1, use_gpu: false}}
"""
PARTS = {  # a part of the start, and the line of the command that ends it
    "command, config, data": "starting Ray on this machine",
    "Ray": "training on 1 worker",
    "worker, libraries, model": "starting from step 0",
}
_ROOT = Path(__file__).resolve().parent.parent
_PATIENCE = 300.0


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        folder = Path(scratch)
        from benchmarks.faults.pictures import draw_faces

        faces = draw_faces(folder / "faces", 300 if quick else 900)
        bench = _Bench(folder, faces, QUICK_STEPS if quick else STEPS)
        contestants: dict[str, Callable[[], Any]] = {"bare": bench.bare, "whole": bench.whole}
        if not quick:
            contestants |= {"kept": bench.kept, "resume": bench.resume}
        found = interleaved(contestants, 1 if quick else 3)
        large = {} if quick else interleaved({"resume": bench.large_resume, "fresh": bench.large_fresh}, 1)
    bare, whole = found["bare"], found["whole"]
    records = [
        record("run_ratio", ratios([one["run"] for one in whole], [one["run"] for one in bare]), most=RUN_RATIO),
        record("run_cpu_ratio", ratios([one["cpu"] for one in whole], [one["cpu"] for one in bare])),
        record("ray_cpu_share", ratios([one["others"] for one in whole], [one["cpu"] for one in bare])),
        record("steps_ratio", ratios([one["steps"] for one in whole], [one["steps"] for one in bare])),
    ]
    if not quick:
        kept = ratios([one["run"] for one in whole], [one["run"] for one in found["kept"]])
        records.append(record("kept_run_ratio", kept))
        records.append(
            record("start_ratio", ratios(found["resume"], [one["start"] for one in whole]), most=START_RATIO)
        )
        records.append(record("large_start_ratio", ratios(large["resume"], large["fresh"]), most=START_RATIO))
        records += [record(f"large_start: {name}, s", values) for name, values in large.items()]
    parts = whole[0]["parts"]
    records += [record(f"start: {part}, s", [one["parts"][part] for one in whole]) for part in parts]
    records.append(record("start: all until step 10, s", [one["start"] for one in whole]))
    records.append(record("bare_start: all until step 10, s", [one["start"] for one in bare]))
    records.append(record("step, ms", [1000 * one["steps"] / bench.num_timed for one in whole]))
    records.append(record("bare step, ms", [1000 * one["steps"] / bench.num_timed for one in bare]))
    records.append(record("end, s", [one["end"] for one in whole]))
    return records


class _Bench:
    """The commands that take turns.

    Args:
        folder: scratch.
        faces: the images.
        steps: of a run.
    """

    def __init__(self, folder: Path, faces: Path, steps: int) -> None:
        self._folder, self._steps, self._turn = folder, steps, 0
        self.num_timed = steps - 2 * WARM
        self._small, self._large = folder / "small.yaml", folder / "large.yaml"
        self._small.write_text(SMALL.format(faces=faces, steps=steps), encoding="utf-8")
        self._large.write_text(LARGE.format(faces=faces), encoding="utf-8")
        self._environment = {**os.environ, "HAI_CACHE": str(folder / "cache"), "RAY_ADDRESS": "local"}

    def kept(self) -> dict[str, float]:
        """Run the bare loop with the memory of the step before."""
        return self.bare("kept")

    def bare(self, how: str = "bare") -> dict[str, float]:
        """Run the bare loop."""
        command = [sys.executable, "-m", "benchmarks.launch", how, str(self._small), str(self._folder / "bare.pt")]
        began = time.time()
        with TreeClock() as clock:
            output = output_of(command, cwd=_ROOT, env=self._environment, patience=_PATIENCE)
        at = json.loads(output.splitlines()[-1])
        return {
            "start": at["warm"] - began,
            "steps": at["trained"] - at["warm"],
            "run": at["saved"] - at["warm"],
            "cpu": clock.seconds(at["saved"]) - clock.seconds(at["warm"]),
        }

    def whole(self) -> dict[str, Any]:
        """Run the real command from nothing to its end."""
        self._turn += 1
        storage = self._folder / f"storage-{self._turn}"
        with TreeClock() as clock, self._command(self._small, storage) as command:
            command.finish()
        run = storage / "small"
        at = {step: when for step, when in _records(run)}
        saved = (run / "checkpoints" / f"step_{self._steps:08}" / "MANIFEST.json").stat().st_mtime
        marks = [command.began, *(command.when(line) for line in PARTS.values()), at[WARM]]
        names = [*PARTS, "ten steps"]
        return {
            "parts": {name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)},
            "start": at[WARM] - command.began,
            "steps": at[self._steps - WARM] - at[WARM],
            "run": saved - at[WARM],
            "cpu": clock.seconds(saved) - clock.seconds(at[WARM]),
            "others": sum(clock.shares(at[WARM], saved)[1:]),
            "end": command.ended - saved,
        }

    def resume(self) -> float:
        """Go on with the newest finished run; return the seconds until ten new steps are done."""
        newest = self._folder / f"storage-{self._turn or 1}"
        if not newest.exists():
            self.whole()
        return self._until_first_record(self._small, newest, f"train.max_steps={LAST}")

    def large_fresh(self) -> float:
        """Start the large model; return the seconds until its first step is done."""
        self._turn += 1
        return self._until_first_record(self._large, self._folder / f"large-{self._turn}")

    def large_resume(self) -> float:
        """Go on with the large model."""
        storage = self._folder / "large-resumed"
        if not storage.exists():
            self._until_first_record(self._large, storage)
        return self._until_first_record(self._large, storage)

    def _until_first_record(self, config: Path, storage: Path, *settings: str) -> float:
        """Start a run, wait for its first record, stop it with SIGTERM; everything is saved then."""
        with self._command(config, storage, *settings) as command:
            while True:
                new = [when for _, when in _records(storage / config.stem) if when > command.began]
                if new:
                    break
                command.check()
                time.sleep(0.05)
            command.process.send_signal(signal.SIGTERM)
            command.finish(3)
        return new[0] - command.began

    @contextmanager
    def _command(self, config: Path, storage: Path, *settings: str) -> Iterator[_Command]:
        words = ["ray_jobs/train.py", "--config", str(config), "--storage", str(storage), *settings]
        command = _Command([sys.executable, *words], self._environment)
        try:
            yield command
        finally:
            from benchmarks.faults.ray_kills import kill_tree

            kill_tree(command.process)


class _Command:
    """A command, and when it said what."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.began = time.time()
        self.ended = 0.0
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=_ROOT, env=environment
        )
        self._said: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.append((time.time(), line))

    def when(self, start: str) -> float:
        """Return when a line that begins so was said."""
        return next(when for when, line in self._said if start in line)

    def check(self) -> None:
        """Raise if the command has ended or takes too long."""
        if self.process.poll() is not None or time.time() - self.began > _PATIENCE:
            raise RuntimeError("".join(line for _, line in self._said))

    def finish(self, status: int = 0) -> None:
        """Wait for the end."""
        if self.process.wait(_PATIENCE) != status:
            raise RuntimeError("".join(line for _, line in self._said))
        self.ended = time.time()
        self._reader.join()


def _records(run: Path) -> list[tuple[int, float]]:
    """Return step and time of the records of training so far."""
    from hai.checkpoint.records import METRICS, load_records

    return [(entry["step"], entry["time"]) for entry in load_records(run / METRICS) if "train/loss" in entry]


def train_bare(config_file: str, file: str) -> dict[str, float]:
    """Train without Ray and without the loop; return when the tenth step, training and saving were done."""
    os.nice(NICE)
    import torch
    from torch.nn.functional import cross_entropy

    from hai.config import load_config
    from hai.cpus import num_cpus
    from hai.order import Order
    from hai.tasks import build_task

    torch.set_num_threads(num_cpus())
    config = load_config(config_file)
    task = build_task(config)
    splits = task.build_datasets().splits
    training, validation = splits["train"], splits["val"]
    model = task.build_model().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    order = Order(*training.strata(), batch_size=BATCH, seed=config.seed)
    end = config.train.max_steps or 0
    requests = order.requests(0, end, rank=0, world_size=1)
    at: dict[str, float] = {}
    with closing(training.batches(requests, device=torch.device("cpu"), training=True)) as batches:
        for step, batch in enumerate(batches, 1):
            inputs = training.prepare(batch, epoch=order.epoch_of(step - 1), training=True)
            loss = cross_entropy(model(inputs["image"]), inputs["label"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step == WARM:
                at["warm"] = time.time()
            elif step == end - WARM:
                at["trained"] = time.time()
    model.eval()
    every = ((0, rows.numpy()) for rows in torch.arange(len(validation)).split(BATCH))
    loaded = validation.batches(every, device=torch.device("cpu"), training=False)
    with torch.inference_mode(), closing(loaded) as batches:
        logits = [model(validation.prepare(batch, epoch=0, training=False)["image"]) for batch in batches]
    assert sum(map(len, logits)) == len(validation)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    at["saved"] = time.time()
    return at


if __name__ == "__main__":
    if sys.argv[1:2] in (["bare"], ["kept"]):
        from torch import device

        from hai.memory import freed_memory_kept

        with freed_memory_kept(device("cpu")) if sys.argv[1] == "kept" else nullcontext():
            print(json.dumps(train_bare(*sys.argv[2:4])))
    else:
        main(run)
