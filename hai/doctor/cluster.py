"""Checks of Ray: its version, who may ask it, whether the cluster that is meant answers, and the ports it wants."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hai.doctor.findings import Finding, fine, private, problem, tilde, warning
from hai.launch.cluster import TOO_SLOW, wrong_address
from hai.launch.room import Machine, machines_of
from hai.masking import without_secrets
from hai.types import Record

__all__ = ["check_authentication", "check_ports", "check_ray", "join_cluster", "print_machines"]

PORTS: Final = {"`ray start --head`": 6379, "the dashboard and `ray job submit`": 8265, "TensorBoard": 6006}
_MODES: Final = ("token", "disabled")
_ANSWER_SECONDS: Final = 2.0
_JOIN_SECONDS: Final = 120.0


def check_ray() -> Iterator[Finding]:
    """Check what can be known without starting Ray: version, authentication, whether RAY_ADDRESS answers, ports."""
    try:
        yield fine("Ray", importlib.metadata.version("ray"))
    except importlib.metadata.PackageNotFoundError:
        yield problem("Ray", "is not installed", 'pip install "ray[train,tune]"')
        return
    yield from check_authentication()
    address = os.environ.get("RAY_ADDRESS")
    if address and (reason := wrong_address(address)):
        text, _, mend = reason.partition("; ")
        yield problem("Ray", text, mend)
    elif address and _place(address) is not None and not _answers(address):
        yield problem(
            "Ray", f"RAY_ADDRESS = {address}: nothing answers there",
            "start that cluster, or unset RAY_ADDRESS for one on this machine",
        )  # fmt: skip
    yield from check_ports(PORTS)


def check_authentication() -> Iterator[Finding]:
    """Check RAY_AUTH_MODE and the token: that there is one where it is asked for, for the user's eyes only."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode and mode.lower() not in _MODES:
        yield problem("Ray's token", f"RAY_AUTH_MODE = {mode}; must be token or disabled", "export RAY_AUTH_MODE=token")
        return
    if mode.lower() == "disabled":
        if os.environ.get("RAY_ADDRESS", "local") == "local":
            yield fine("Ray's token", "not asked for (RAY_AUTH_MODE=disabled); a Ray of one machine listens there only")
        else:
            text = "RAY_AUTH_MODE=disabled: whoever reaches the cluster's ports runs code on it"
            yield warning("Ray's token", text, "set RAY_AUTH_MODE=token for the cluster, its jobs and its drivers")
        return
    if os.environ.get("RAY_AUTH_TOKEN"):
        yield fine("Ray's token", "in RAY_AUTH_TOKEN")
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        bits, is_empty = (
            stat.S_IMODE(file.stat().st_mode),
            not file.read_text(encoding="utf-8", errors="replace").strip(),
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if named or (mode and os.environ.get("RAY_ADDRESS", "local") != "local"):
            yield problem("Ray's token", f"{tilde(file)}: {reason}", "put the cluster's token there, chmod 600")
        elif isinstance(error, FileNotFoundError):
            yield fine("Ray's token", "none yet; the first run on this machine makes one for this user's eyes only")
        else:
            yield problem("Ray's token", f"{tilde(file)}: {reason}", private(file))
        return
    if is_empty:
        yield problem("Ray's token", f"{tilde(file)} is empty", "ray get-auth-token --generate > /dev/null")
    elif bits & 0o077:
        yield warning("Ray's token", f"{tilde(file)} can be read by others ({bits:04o})", private(file))
    else:
        yield fine("Ray's token", f"{tilde(file)}, {bits:04o}")


def check_ports(ports: Mapping[str, int]) -> Iterator[Finding]:
    """Check the ports that people use beside a run; a run on one machine needs none of them."""
    taken = {purpose: port for purpose, port in ports.items() if _is_taken(port)}
    for purpose, port in taken.items():
        mend = f"choose another port for it, such as --port={port + 1}, if that program is not its own"
        yield warning("ports", f"{port}, which {purpose} takes, is in use by another program", mend)
    free = [str(port) for port in ports.values() if port not in taken.values()]
    if free:
        yield fine("ports", f"{', '.join(free)} free")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just been left is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _place(address: str) -> tuple[str, int] | None:
    """Return host and port of an address; None where it has none, such as `auto` and `local`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else None


def _answers(address: str) -> bool:
    place = _place(address)
    assert place is not None
    with contextlib.suppress(OSError), socket.create_connection(place, timeout=_ANSWER_SECONDS):
        return True
    return False


def join_cluster(limit_s: float = _JOIN_SECONDS) -> tuple[list[Finding], list[Machine]]:
    """Join the cluster that `train` would use, or start and end one here, in a process of its own.

    Returns:
        What was found, and the machines that the cluster has or can start; none where it cannot be joined.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    try:
        said, trouble = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        text = f"did not start or answer within {limit_s:.0f} s"
        if os.environ.get("RAY_ADDRESS", "local") == "local":
            return [_slow(text)], []
        return [problem("Ray", text, "look whether that cluster is well, or unset RAY_ADDRESS for one here")], []
    answer = _parse(said)
    if "machines" in answer:
        seconds = time.monotonic() - started
        machines = [Machine(*sizes) for sizes in answer["machines"]]
        has = f"{sum(machine.cpus for machine in machines)} CPUs, {sum(machine.gpus for machine in machines)} GPUs"
        told = "; ".join([*answer["said"], f"has {has}, took {seconds:.0f} s"])
        return [fine("Ray", told)], machines
    text = answer.get("error") or (trouble.strip().splitlines() or ["it ended without a word"])[-1]
    if TOO_SLOW in str(text):
        return [_slow(str(text).partition("; ")[0])], []
    text, _, mend = without_secrets(str(text)).rpartition("; ")
    return [problem("Ray", text or mend, mend if text else "see what Ray says: python -c 'import ray; ray.init()'")], []


def _slow(text: str) -> Finding:
    """Report that Ray took too long here, which a machine that is busy now need not do again."""
    mend = "end other programs; if a run fails in the same way, look into /tmp/ray/session_latest/logs"
    return warning("Ray", text, mend)


def _parse(said: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(said.splitlines()[-1])
        return answer if isinstance(answer, dict) else {}
    return {}


def print_machines() -> None:
    """Print, as JSON, what the cluster that `train` would use has, or what is in the way."""
    from hai.errors import HaiError
    from hai.launch.cluster import connected

    told: list[str] = []
    try:
        with connected(told.append) as ray:
            answer: Record = {"machines": machines_of(ray.nodes(), os.environ), "said": told}
    except (HaiError, RuntimeError, OSError, ValueError) as error:
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    print_machines()
