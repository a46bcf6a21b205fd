"""Our side of a contest: start the peers' scripts, let them measure by turns, stop them."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks._measure import interleaved
from benchmarks.peers.contestant import Job
from benchmarks.peers.environments import PeerError, environment

__all__ = ["Contestant", "measure_by_turns"]

_FOLDER = Path(__file__).resolve().parent
_ROOT = _FOLDER.parents[1]
_PATIENCE = 600.0  # seconds for a peer to prepare, or for one measurement
_LEAVE = 20.0  # seconds to clean up
_SETTINGS = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}


class Contestant:
    """A peer's script in a process of its own.

    Args:
        script: name of the file in this folder, without its suffix: what it does, `_`, the peer.
        job: what the script gets.
    """

    def __init__(self, script: str, job: Job) -> None:
        self.name = script.split("_", 1)[1]
        self._script, self._job = script, job
        self._log = job.scratch / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Install what it needs and let it prepare; the first answer says that it has.

        Raises:
            PeerError: it cannot be installed.
        """
        python = environment(self.name)
        temporary = self._job.scratch / "tmp"
        temporary.mkdir(parents=True)
        given = self._job._asdict() | {"folder": str(self._job.folder), "scratch": str(self._job.scratch)}
        places = {"PYTHONPATH": str(_ROOT), "PYTHONSAFEPATH": "1", "TMPDIR": str(temporary)}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [python, str(_FOLDER / f"{self._script}.py"), json.dumps(given)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=self._job.scratch,
                start_new_session=True, env=os.environ | _SETTINGS | places,
            )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """Wait for the next line of JSON.

        Raises:
            PeerError: it has ended, or does not answer.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        line, end = b"", time.monotonic() + _PATIENCE
        while not line.endswith(b"\n"):
            if not select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]:
                raise PeerError(f"{self.name} does not answer for {_PATIENCE:.0f} s")
            part = os.read(stream, 1 << 16)
            if not part:
                raise PeerError(f"{self.name} does not run: {self._last_words()}")
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self) -> dict[str, Any]:
        """Let it measure once; raises PeerError."""
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it and the workers that it leaves behind."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()  # which it takes for the end
        try:
            process.wait(_LEAVE)
            last = signal.SIGTERM  # resource trackers do not mind it and clean up
        except subprocess.TimeoutExpired:
            last = signal.SIGKILL
        with suppress(ProcessLookupError):
            os.killpg(process.pid, last)
        process.wait()
        process.stdout.close()

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no reason given"


def measure_by_turns(
    scripts: Sequence[str],
    job: Job,
    repeats: int,
    *,
    wrong: Callable[[dict[str, Any]], str] = lambda measured: "",
    say: Callable[[str], object] = lambda line: print(f"peers: {line}", file=sys.stderr),
) -> dict[str, list[dict[str, Any]]]:
    """Start scripts, which prepare at the same time, let each measure once to warm up, then by turns.

    Args:
        scripts: the first is ours, which must run; another one that fails, whenever, is told and left out.
        job: of each, in a scratch folder of its own.
        repeats: turns.
        wrong: says what is wrong with a measurement, nothing if it is right; one that is wrong fails.
        say: takes the line about one that fails; by default it goes to standard error.

    Returns:
        The measurements of each that runs to the end, by peer, one per turn.

    Raises:
        PeerError: ours does not run.
    """
    with ExitStack() as stack:
        running = [Contestant(script, job._replace(scratch=job.scratch / script)) for script in scripts]
        ours = running[0]
        for contestant in running:
            stack.callback(contestant.close)

        def carry_out(stage: Callable[[Contestant], Any], contestant: Contestant) -> Any:
            try:
                return stage(contestant) if contestant in running else None
            except PeerError as error:
                if contestant is ours:
                    raise
                say(str(error))
                contestant.close()
                running.remove(contestant)

        def measure(contestant: Contestant) -> dict[str, Any]:
            measured = contestant.measure()
            if problem := wrong(measured):
                raise PeerError(f"{contestant.name} {problem}")
            return measured

        for stage in (Contestant.start, Contestant.answer, measure):
            for contestant in list(running):
                carry_out(stage, contestant)
        turns = {contestant.name: functools.partial(carry_out, measure, contestant) for contestant in running}
        measurements = interleaved(turns, repeats)
        return {contestant.name: measurements[contestant.name] for contestant in running}
