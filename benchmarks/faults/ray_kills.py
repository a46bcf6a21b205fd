"""SIGKILL through Ray, of the driver, of the worker that trains, of the head with all it runs: the same end is owed.

Every attempt is the real command on a cluster of this machine's own: `python ray_jobs/train.py`, or the same under
`ray job submit --working-dir .` where the head is to die. The workers' examples are noted from outside the product.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.kills import (
    NAME,
    KillCounts,
    compare_examples,
    compare_runs,
    config_of,
    damage_newest,
    train_unbroken,
)

__all__ = ["Head", "free_port", "kill_tree", "start_head", "survive_ray_kills"]

_STEPS_FOR_A_KILL = 20
_ROT_SHARE = 0.3
_MOST_DELAY = 0.2  # seconds from the checkpoint that was waited for to the kill: a few steps and saves
_PATIENCE = 240.0
_STARTS = 3
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Head:
    """A Ray head on loopback, as `ray start --head --block` makes it.

    Args:
        process: all of the cluster descends from it.
        address: where drivers join.
        dashboard: where jobs are submitted.
        environment: what drivers and job clients need to be let in, with what the head was given.
    """

    process: subprocess.Popen[bytes]
    address: str
    dashboard: str
    environment: dict[str, str]

    def workers(self) -> list[psutil.Process]:
        """Find the processes in which Ray Train's workers train."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process] if "RayTrainWorker" in process.name() else []
        return found


def survive_ray_kills(
    task: str, *, drivers: int, workers: int, heads: int, seed: int, folder: Path, say: Callable[[str], None] = print
) -> KillCounts:
    """Kill training on Ray so many times, as few runs as that takes, and compare with a run without Ray or kills.

    Args:
        task: detector or ranker.
        drivers: kills of the command's own process; it is started again.
        workers: kills of the process that trains, under a driver that lives on; Ray starts another.
        heads: kills of the whole cluster under a submitted job; another cluster is started and the job submitted again.
        seed: of the order and moments of the kills and of the rot that follows three in ten of them.
        folder: scratch, on a local disk.
        say: takes a line on the way.
    """
    start, rng, counts = time.monotonic(), random.Random(seed), KillCounts(task, Counter())
    planned = ["driver"] * drivers + ["worker"] * workers + ["head"] * heads
    rng.shuffle(planned)
    end = _STEPS_FOR_A_KILL * len(planned)
    config = config_of(task, folder, train={"max_steps": end})
    unbroken = train_unbroken(config, folder / f"{task}-ray" / "unbroken")
    config["scale"] |= {"launcher": "ray", "max_failures": -1}
    while planned:
        counts.runs += 1
        storage = folder / f"{task}-ray" / f"killed-{counts.runs}"
        storage.mkdir(parents=True)
        (storage / "run.yaml").write_text(json.dumps({**config, "storage": str(storage)}), encoding="utf-8")
        with _clusters(storage) as build_head:
            _kill_until_finished(storage, end, planned, build_head, rng, counts, say)
        compare_runs(unbroken / NAME, storage / NAME, counts)
        compare_examples(unbroken, storage, counts)
        say(f"{task} on Ray: {counts.kills.total()} kills, {counts.runs} runs, {time.monotonic() - start:.0f} s")
    return counts


def _kill_until_finished(
    storage: Path,
    end: int,
    planned: list[str],
    build_head: Callable[[], Head],
    rng: random.Random,
    counts: KillCounts,
    say: Callable[[str], None],
) -> None:
    run, damaged, head = storage / NAME, set[int](), build_head()
    while True:
        last = next((kind for kind in planned if kind != "worker"), "driver")
        with _launched(head, storage, as_job=last == "head") as process:
            while planned and _reaches(_target(run, end, len(planned), rng), process, storage):
                time.sleep(rng.uniform(0, _MOST_DELAY))
                if not _kill(planned[0], head, process, storage):
                    continue
                kind = planned.pop(0)
                counts.kills[kind] += 1
                say(f"  killed a {kind} at step {_newest_step(run)}")
                if rng.random() < _ROT_SHARE:
                    damage_newest(run, rng, damaged)
                if kind == "head":
                    head = build_head()
                if kind != "worker":
                    break
            else:
                if _ends(process, storage) != 0:
                    raise RuntimeError(f"a launch failed:\n{_output(storage)}")
                refused = {path.stat().st_ino for path in (run / "checkpoints").glob("refused/*")}
                counts.rotten += len(damaged)
                counts.unrefused += len(damaged - refused)
                return


def _target(run: Path, end: int, kills: int, rng: random.Random) -> int:
    """Choose the step to wait for, so that the rest of the run suffices for the kills that are left."""
    newest = _newest_step(run)
    return newest + 1 + rng.randrange(max(1, (end - newest) // (kills + 1)))


@contextlib.contextmanager
def _launched(head: Head, storage: Path, *, as_job: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command, or a job of it; it does not outlive the block."""
    command = ["ray_jobs/train.py", "--config", str(storage / "run.yaml")]
    environment = {**head.environment, "RAY_ADDRESS": head.dashboard if as_job else head.address}
    if as_job:
        submit = [_ray(), "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--"]
        command = [*submit, Path(sys.executable).name, *command]
    else:
        command = [sys.executable, *command]
    log = storage / "output.txt"
    for _ in range(_STARTS):
        with open(log, "ab") as output:
            began = output.tell()
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=_REPOSITORY,
            )
        if not as_job or _is_taken(process, log, began):
            break
    try:
        yield process
    finally:
        kill_tree(process)


def _is_taken(process: subprocess.Popen[bytes], log: Path, began: int) -> bool:
    """Wait for the answer to a submitted job; False where the head was not ready to take it and says try again."""
    while b"submitted successfully" not in (said := log.read_bytes()[began:]) and process.poll() is None:
        time.sleep(0.2)
    return b"No available agent to submit job" not in said + log.read_bytes()[began:]


def _kill(kind: str, head: Head, process: subprocess.Popen[bytes], storage: Path) -> bool:
    """Kill, and wait until nothing of it writes any more; False when there was nothing left to kill."""
    if kind == "head":
        if process.poll() is not None:
            return False
        kill_tree(head.process)
        return True
    deadline = time.monotonic() + _PATIENCE
    while not (workers := head.workers()):
        if process.poll() is not None:
            return False
        _in_time(deadline, storage)
    if kind == "worker":
        workers[0].kill()
    else:
        process.kill()
        if process.wait() != -signal.SIGKILL:
            return False
    if psutil.wait_procs(workers, timeout=_PATIENCE)[1]:
        raise RuntimeError(f"a worker outlived the {kind} by {_PATIENCE:.0f} s")
    return True


def _reaches(step: int, process: subprocess.Popen[bytes], storage: Path) -> bool:
    """Wait for a checkpoint of a step; False when the process ended before."""
    deadline = time.monotonic() + _PATIENCE
    while _newest_step(storage / NAME) < step:
        if process.poll() is not None:
            return False
        _in_time(deadline, storage)
    return True


def _ends(process: subprocess.Popen[bytes], storage: Path) -> int:
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None:
        _in_time(deadline, storage)
    return process.returncode


def _in_time(deadline: float, storage: Path) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"nothing happened for {_PATIENCE:.0f} s:\n{_output(storage)}")
    time.sleep(0.05)


def _newest_step(run: Path) -> int:
    names = (path.name for path in (run / "checkpoints").glob("step_*"))
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def _output(storage: Path) -> str:
    return (storage / "output.txt").read_text(encoding="utf-8", errors="replace")[-3000:]


@contextlib.contextmanager
def _clusters(storage: Path) -> Iterator[Callable[[], Head]]:
    """Give a function that starts a head whose workers note their examples; the last one ends with the block."""
    heads: list[Head] = []
    temporary = tempfile.mkdtemp(prefix="hai-chaos-")  # short: the paths of Ray's sockets may have 107 characters
    paths = [str(Path(__file__).parent / "noting"), os.environ.get("PYTHONPATH", "")]
    environment = {
        "CHAOS_EXAMPLES": str(storage / "examples.txt"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "TMPDIR": temporary,  # drivers that die leave theirs behind
    }

    def build_head() -> Head:
        heads.append(start_head(storage / "head.txt", f"--temp-dir={temporary}", **environment))
        return heads[-1]

    try:
        yield build_head
    finally:
        for head in heads:
            kill_tree(head.process)
        shutil.rmtree(temporary, ignore_errors=True)


def start_head(log: Path, *options: str, port: int = 0, **environment: str) -> Head:
    """Start a head of two CPUs on loopback.

    Args:
        log: takes what it prints.
        options: further ones of `ray start`.
        port: of the head; default: a free one.
        environment: further variables of it, its workers, and drivers.

    Raises:
        RuntimeError: it does not start.
    """
    bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    everything = {**os.environ, "PATH": bin_first, "RAY_USAGE_STATS_ENABLED": "0", **environment}
    for _ in range(_STARTS):  # Ray gives its own processes 30 s, which a busy machine can exceed
        here, dashboard = port or free_port(), free_port()
        command = [_ray(), "start", "--head", "--block", "--num-cpus=2", f"--port={here}", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]  # else a second head here takes no jobs
        with open(log, "ab") as output:
            began = output.tell()
            process = subprocess.Popen([*command, *options], stdout=output, stderr=subprocess.STDOUT, env=everything)
        while process.poll() is None:
            if b"Ray runtime started" in log.read_bytes()[began:]:
                return Head(process, f"127.0.0.1:{here}", f"http://127.0.0.1:{dashboard}", everything)
            time.sleep(0.1)
    raise RuntimeError(f"Ray's head does not start:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """SIGKILL a process that still runs with all that it has started, itself first, so that it starts nothing new."""
    if process.poll() is not None:
        return
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=_PATIENCE)


def free_port() -> int:
    """Find a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ray() -> str:
    return str(Path(sys.executable).parent / "ray")
