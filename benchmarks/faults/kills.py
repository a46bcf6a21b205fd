"""SIGKILL at any moment of training, inside saves too, and rot: the run must end as if nothing had happened.

Every attempt is a forked child that runs what `hai train` runs, in this process: config, data, owner, checkpoint, loop,
report. A child that is to die inside a save kills itself just before one of the calls by which the writer changes the
disk. The examples of each step are noted from outside the product, and compared with those of an unbroken run.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.pictures import draw_art, draw_faces

__all__ = [
    "KillCounts",
    "compare_examples",
    "compare_runs",
    "config_of",
    "damage_newest",
    "survive_kills",
    "train_unbroken",
]

STEPS = 60
NAME = "run"
_ROT_SHARE, _SAVE_SHARE = 0.3, 0.25
_DISK_CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
_CALLS_OF_A_SAVE = 40
_IMPORTS = (
    *("torch._dynamo", "matplotlib.backends.backend_svg", "matplotlib.pyplot", "rich.progress", "simplejpeg"),
    *("hai.launch.in_process", "hai.launch.train", "hai.report.training", "hai.tasks.detector", "hai.tasks.ranker"),
)
_DETECTOR: dict[str, Any] = {
    "model": {"name": "compact", "pretrained": False},
    "loss": {"cross_entropy": 0.6, "soft_f1": 0.4},
    "data": {"image_size": 32, "sampling": "balanced", "cache_decoded": "off", "num_threads": 2},
}
_RANKER: dict[str, Any] = {
    "model": {"name": "compact", "pretrained": False, "freeze_backbone": False, "head": "linear", "num_heads": 2},
    "pairs": {"ties": True, "gap_shares": [0.5, 0.3, 0.2], "max_per_image": 8},
    "data": {"image_size": 32, "geometry": "crop", "cache_decoded": "off", "num_threads": 2},
}
_COMMON: dict[str, Any] = {
    "augment": {"flip": 0.5, "jpeg_probability": 0.3, "noise_probability": 0.3},
    "optim": {"learning_rate": 2e-3, "warmup_epochs": 1},
    "train": {
        "max_epochs": None, "max_steps": STEPS, "global_batch_size": 16, "ema_decay": 0.9, "eval_every_epochs": 4,
        "micro_batch_size": 8,
    },
    "checkpoint": {"every_minutes": 0.002, "keep": 3},
    "scale": {"cpus_per_worker": 1, "use_gpu": False, "launcher": "in_process"},
    "logging": {"tensorboard": False, "every_steps": 1},
}  # fmt: skip


@dataclass
class KillCounts:
    """What happened to one task's runs.

    Args:
        task: detector or ranker.
        kills: deaths by SIGKILL, by what was killed: `forked`, or `driver`, `worker`, `head` of Ray.
        inside_save: of the forked ones, those just before a call of a save.
        rotten: newest checkpoints that were damaged between two attempts.
        unrefused: damaged checkpoints that no later attempt has set aside.
        lost: examples of the unbroken run that the surviving steps lack.
        repeated: examples that the surviving steps have beyond those of the unbroken run.
        runs: runs that were killed until the kills were used up.
        differing: files of the final checkpoints, and records of metrics.jsonl, that differ from the unbroken run's.
    """

    task: str
    kills: Counter[str]
    inside_save: int = 0
    rotten: int = 0
    unrefused: int = 0
    lost: int = 0
    repeated: int = 0
    runs: int = 0
    differing: int = 0

    @property
    def is_whole(self) -> bool:
        """Say whether nothing was lost, repeated, loaded silently or changed."""
        return not (self.unrefused or self.lost or self.repeated or self.differing)


def config_of(task: str, folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Describe a small run of a task as its YAML would; pictures are drawn into `folder` where there are none."""
    pictures = folder / f"{task}-pictures"
    if not pictures.exists():
        (draw_faces if task == "detector" else draw_art)(pictures)
    own = _DETECTOR if task == "detector" else _RANKER
    merged = {key: {**_COMMON.get(key, {}), **own.get(key, {})} for key in _COMMON | own}
    merged = {key: {**values, **sections.get(key, {})} for key, values in merged.items()}
    merged["data"] |= {"sources": [{"name": "pictures", "path": str(pictures)}]}
    return {"task": task, "name": NAME, **merged}


def survive_kills(task: str, *, kills: int, seed: int, folder: Path, say: Callable[[str], None] = print) -> KillCounts:
    """Kill training so many times, in as many runs as that takes, and compare each finished run with an unbroken one.

    Args:
        task: detector or ranker.
        kills: number of kills; a quarter inside a save, three in ten with rot after them.
        seed: of the moments, calls and bits.
        folder: scratch, on a local disk.
        say: takes a line on the way.
    """
    _import_everything()
    config = config_of(task, folder)
    start = time.monotonic()
    unbroken = train_unbroken(config, folder / task / "unbroken")
    whole = time.monotonic() - start
    rng, counts = random.Random(seed), KillCounts(task, Counter())
    while counts.kills["forked"] < kills:
        counts.runs += 1
        storage = folder / task / f"killed-{counts.runs}"
        _kill_until_finished(config, storage, kills, whole, rng, counts)
        compare_runs(unbroken / NAME, storage / NAME, counts)
        compare_examples(unbroken, storage, counts)
        say(f"{task}: {counts.kills['forked']} kills, {counts.runs} runs, {time.monotonic() - start:.0f} s")
    return counts


def train_unbroken(config: dict[str, Any], storage: Path) -> Path:
    """Train in a child that nobody disturbs; returns the storage."""
    if _wait(_start(config, storage)) != 0:
        raise RuntimeError(f"the unbroken run failed:\n{_output(storage)}")
    return storage


def _kill_until_finished(
    config: dict[str, Any], storage: Path, kills: int, whole: float, rng: random.Random, counts: KillCounts
) -> None:
    attempts, damaged = 0, set[int]()
    while True:
        attempts += 1
        if attempts > 4 * kills + 20:
            raise RuntimeError(f"no progress between kills:\n{_output(storage)[-3000:]}")
        left = kills - counts.kills["forked"]
        dead = counts.kills["forked"]
        inside = left > 0 and counts.inside_save < _SAVE_SHARE * (dead + 1)
        child = _start(config, storage, die_at=rng.randrange(3 * _CALLS_OF_A_SAVE) if inside else None)
        status = _wait(child, kill_after=rng.uniform(0.0, whole / 2) if left > 0 and not inside else None)
        if status == 0:
            refused = {path.stat().st_ino for path in (storage / NAME / "checkpoints").glob("refused/*")}
            counts.rotten += len(damaged)
            counts.unrefused += len(damaged - refused)
            return
        if status != -signal.SIGKILL:
            raise RuntimeError(f"an attempt ended with status {status}:\n{_output(storage)[-3000:]}")
        counts.kills["forked"] += 1
        counts.inside_save += inside
        if counts.rotten + len(damaged) < _ROT_SHARE * (dead + 1):
            damage_newest(storage / NAME, rng, damaged)


def damage_newest(run: Path, rng: random.Random, damaged: set[int]) -> None:
    """Damage one file of the newest checkpoint: one bit, a cut, or a hole.

    Args:
        run: the run folder.
        rng: chooses file, kind and place.
        damaged: inodes of the folders that are damaged; a new one is added, one of them is left as it is.
    """
    folders = sorted((run / "checkpoints").glob("step_*"))
    if not folders or folders[-1].stat().st_ino in damaged:
        return
    damaged.add(folders[-1].stat().st_ino)
    path = rng.choice(sorted(folders[-1].iterdir()))
    content = bytearray(path.read_bytes())
    kind, place = rng.choice(("bit", "cut", "hole")), rng.randrange(len(content))
    if kind == "bit":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[place:]
    else:
        content[place : place + 64] = bytes(byte ^ 0xFF for byte in content[place : place + 64])
    path.write_bytes(content)


def compare_runs(unbroken: Path, killed: Path, counts: KillCounts) -> None:
    """Compare the last checkpoints byte by byte, and the steps and losses of metrics.jsonl."""
    for name in ("model.safetensors", "state.safetensors"):
        one, two = (max((run / "checkpoints").glob("step_*")) / name for run in (unbroken, killed))
        counts.differing += one.parent.name != two.parent.name or one.read_bytes() != two.read_bytes()
    one_records, two_records = (_losses(run) for run in (unbroken, killed))
    counts.differing += sum((Counter(one_records) - Counter(two_records)).values())
    counts.differing += sum((Counter(two_records) - Counter(one_records)).values())


def _losses(run: Path) -> list[tuple[int, Any, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["step"], record.get("train/loss"), record.get("val/roc_auc")) for record in records]


def compare_examples(unbroken: Path, storage: Path, counts: KillCounts) -> None:
    """Compare the examples of the steps that survived: each step's last execution."""
    expected, found = _examples(unbroken), _examples(storage)
    for step in expected.keys() | found.keys():
        one, two = Counter(expected.get(step, ())), Counter(found.get(step, ()))
        counts.lost += sum((one - two).values())
        counts.repeated += sum((two - one).values())
        counts.differing += expected.get(step) != found.get(step)


def _examples(storage: Path) -> dict[int, list[int]]:
    steps: dict[int, list[int]] = {}
    for line in (storage / "examples.txt").read_text(encoding="utf-8").splitlines():
        step, *examples = map(int, line.split())
        steps[step] = examples
    return steps


def _output(storage: Path) -> str:
    return (storage / "output.txt").read_text(encoding="utf-8", errors="replace")


def _import_everything() -> None:
    """Import once what every child needs, so that a fork is all that an attempt costs."""
    for name in _IMPORTS:
        importlib.import_module(name)
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)


def _start(config: dict[str, Any], storage: Path, die_at: int | None = None) -> int:
    """Start an attempt; `die_at`: kill itself just before that call of the writer which changes the disk."""
    storage.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = _attempt({**config, "storage": str(storage)}, storage, die_at)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _attempt(config: dict[str, Any], storage: Path, die_at: int | None) -> int:
    from hai.config.schema import RunConfig
    from hai.launch.train import run_training
    from hai.step import Stepper

    output = open(storage / "output.txt", "a", encoding="utf-8", buffering=1)  # noqa: SIM115  (the child's, to its end)
    sys.stdout = sys.stderr = output
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    examples = os.open(storage / "examples.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    learn = Stepper.step

    def step_and_note(self: Stepper, batch: Any, *, step: int, **rest: Any) -> None:
        learn(self, batch, step=step, **rest)
        os.write(examples, f"{step} {' '.join(map(str, batch['index'].tolist()))}\n".encode())

    Stepper.step = step_and_note  # type: ignore[method-assign]
    if die_at is not None:
        _die_before_call(die_at)
    return run_training(RunConfig.model_validate(config))


def _die_before_call(number: int) -> None:
    """Arm the calls by which the checkpoint writer changes the disk."""
    count = 0

    def armed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if threading.current_thread().name == "hai-checkpoint":
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
            return original(*arguments, **options)

        return call

    for name in _DISK_CALLS:
        setattr(os, name, armed(getattr(os, name)))


def _wait(child: int, kill_after: float | None = None) -> int:
    """Wait for a child; kill it after so many seconds. Returns its exit status, negative for a signal."""
    deadline = float("inf") if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)
