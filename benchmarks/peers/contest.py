"""Our side of a contest: start the peers' scripts, let them measure by turns, stop them."""

from __future__ import annotations

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
from types import TracebackType
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
    """A peer's script, running.

    Args:
        script: name of the file in this folder, without its suffix: what it does, `_`, the peer.
        job: what the script gets.

    Raises:
        PeerError: it cannot be installed or fails.
    """

    def __init__(self, script: str, job: Job) -> None:
        self.name = script.split("_", 1)[1]
        self._log = job.scratch / "log.txt"
        temporary = job.scratch / "tmp"
        temporary.mkdir(parents=True)
        python = environment(self.name)
        given = job._asdict() | {"folder": str(job.folder), "scratch": str(job.scratch)}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [python, str(_FOLDER / f"{script}.py"), json.dumps(given)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=job.scratch, start_new_session=True,
                env=os.environ
                | _SETTINGS
                | {"PYTHONPATH": str(_ROOT), "PYTHONSAFEPATH": "1", "TMPDIR": str(temporary)},
            )  # fmt: skip

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()  # which it takes for the end
        try:
            process.wait(0.0 if error else _LEAVE)
            last = signal.SIGTERM  # to workers it has left behind
        except subprocess.TimeoutExpired:
            last = signal.SIGKILL
        with suppress(ProcessLookupError):
            os.killpg(process.pid, last)
        process.wait()
        process.stdout.close()

    def answer(self) -> dict[str, Any]:
        """Wait for the next line of JSON."""
        stream = self._process.stdout
        assert stream is not None
        line, end = b"", time.monotonic() + _PATIENCE
        while not line.endswith(b"\n"):
            if not select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]:
                raise PeerError(f"{self.name} does not answer for {_PATIENCE:.0f} s")
            part = os.read(stream.fileno(), 1 << 16)
            if not part:
                raise PeerError(f"{self.name} does not run: {self._last_words()}")
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self) -> dict[str, Any]:
        """Let it measure once."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"{self.name} does not run: {self._last_words()}") from None
        return self.answer()

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no reason given"


def measure_by_turns(
    scripts: Sequence[str], job: Job, repeats: int, say: Callable[[str], object] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Start scripts, let each measure once to warm up, then by turns.

    Args:
        scripts: the first is ours, which must run; another one that fails is told and left out.
        job: of each, in a scratch folder of its own.
        repeats: turns.
        say: takes the line about one that fails; by default it goes to standard error.

    Returns:
        The measurements of each that runs, by peer, one per turn.

    Raises:
        PeerError: ours does not run.
    """
    say = say or (lambda line: print(f"peers: {line}", file=sys.stderr))
    with ExitStack() as stack:
        running: list[Contestant] = []
        for script in scripts:
            try:
                contestant = stack.enter_context(Contestant(script, job._replace(scratch=job.scratch / script)))
                contestant.answer()
                contestant.measure()
            except PeerError as error:
                if script == scripts[0]:
                    raise
                say(str(error))
            else:
                running.append(contestant)
        return interleaved({contestant.name: contestant.measure for contestant in running}, repeats)
