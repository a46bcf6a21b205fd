"""An environment for each peer, because they need versions that exclude each other.

An environment holds what its requirements file lists, and nothing of what that depends on; the rest, torch,
torchvision, NumPy and Pillow above all, comes from the environment that runs the benchmark: so all contestants have the
same torch, and an environment takes seconds, not gigabytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from hai.paths import cache_folder, locked

__all__ = ["PeerError", "environment"]

_REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
_PATIENCE = 900.0  # seconds to install one


class PeerError(Exception):
    """A peer cannot be installed or does not run here; the message says why."""


def environment(peer: str) -> str:
    """Return the interpreter of a peer's environment, made if need be; ours for one without requirements.

    Raises:
        PeerError: it cannot be installed.
    """
    listed = _REQUIREMENTS / f"{peer}.txt"
    if not listed.exists():
        return sys.executable
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    key = hashlib.sha256("\n".join([listed.read_text(encoding="utf-8"), sys.executable, sys.version, *shared]).encode())
    folder = cache_folder() / "benchmarks" / "peers" / f"{peer}-{key.hexdigest()[:12]}"
    python, done = folder / "bin" / "python", folder / "installed"
    with locked(f"benchmark {folder}"):
        if not done.exists():
            print(f"peers: installing {peer}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            _call([sys.executable, "-m", "venv", "--without-pip", str(folder)], peer)
            _call([*_installer(python), "--no-deps", "-r", str(listed)], peer)
            (packages,) = folder.glob("lib/python*/site-packages")
            (packages / "of_the_benchmark.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
            done.touch()
    return str(python)


def _installer(python: Path) -> list[str]:
    uv = [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else [shutil.which("uv") or ""]
    if uv != [""]:
        return [*uv, "pip", "install", "--quiet", "--python", str(python)]
    return [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]


def _call(command: list[str], peer: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.CalledProcessError as error:
        lines = [line.strip(" ╰─▶│├") for line in (error.stderr or error.stdout).splitlines()]
        told = [line for line in lines if "Error" in line] or [line for line in lines if line] or ["no reason given"]
        raise PeerError(f"{peer} cannot be installed: {told[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{peer} cannot be installed: it took more than {_PATIENCE:.0f} s") from error
