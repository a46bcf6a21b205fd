"""Where a number comes from: versions, commit, hardware and the command that makes it again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hai
from hai.cpus import num_cpus
from hai.masking import SECRET_NAMES, without_secrets
from hai.types import Record

__all__ = ["command_line", "describe_hardware", "git_commit", "hardware_text", "provenance"]

_PACKAGES = ("torch", "torchvision", "ray", "timm", "transformers", "numpy", "pillow", "simplejpeg")
_SECRET_OPTION = re.compile(rf"--[\w.-]*{SECRET_NAMES}", re.IGNORECASE)
_SECRET_WORD = re.compile(rf"([\w.-]*{SECRET_NAMES})=.*", re.IGNORECASE | re.DOTALL)


def provenance(command: Sequence[str] | None = None) -> Record:
    """Describe this process for a record that people will want to reproduce.

    Args:
        command: the user's command line; default: this process's own, which in a Ray worker is not the user's.

    Returns:
        `versions` {package: version}, `commit` (str or None), `hardware` (see `describe_hardware`), `command` (one
        shell line without secrets).
    """
    return {
        "versions": _versions(),
        "commit": git_commit(),
        "hardware": describe_hardware(),
        "command": command_line(command),
    }


def _versions() -> dict[str, str]:
    found = {"hai": hai.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Name the commit of the checkout that this package runs from, with `+changes` when files differ from it.

    Returns:
        None where the package is installed, not checked out, or git is missing.
    """
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=10,
            check=True,
        )
        return result.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed inside somebody else's checkout
        commit = git("rev-parse", "HEAD")
        return commit + "+changes" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def describe_hardware() -> Record:
    """Describe the machine: `system`, `cpu`, `num_cpus` (usable by this process), `memory_gb`, `gpus` (names)."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "num_cpus": num_cpus(),
        "memory_gb": _memory_gb(),
        "gpus": _gpu_names(),
    }


def hardware_text(hardware: Record) -> str:
    """Write a record of `describe_hardware` as one line."""
    gpus = [f"{hardware['gpus'].count(name)} x {name}" for name in dict.fromkeys(hardware["gpus"])]
    parts = [*gpus, hardware["cpu"], f"{hardware['num_cpus']} CPUs"]
    if hardware["memory_gb"] is not None:
        parts.append(f"{hardware['memory_gb']:g} GB memory")
    return ", ".join([*parts, hardware["system"]])


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu_names() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    try:  # asking torch would take memory on the GPU, and may be the first to load it
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, encoding="utf-8", timeout=10, check=True)
        return [line.strip() for line in result.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError):
        return ["Apple GPU"] if torch is not None and torch.backends.mps.is_available() else []


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Write a command line as one shell line that holds no secret and no home folder.

    Values of options and keys whose name says token, password, key and the like become `***`, as do user names and
    signatures inside URLs.
    """
    words = list(sys.argv if arguments is None else arguments)
    if not words:
        return ""
    shown, is_secret = [_program(words[0])], False
    for word in words[1:]:
        shown.append("***" if is_secret else _shown(word))
        is_secret = _SECRET_OPTION.fullmatch(word) is not None
    return " ".join(shown)


def _program(path: str) -> str:
    name = Path(path).name
    if name == "__main__.py":
        return f"python -m {Path(path).parent.name}"
    if not name.endswith(".py"):
        return shlex.quote(name)
    parent = Path(path).parent.name
    return f"python {parent}/{name}" if parent == "ray_jobs" else f"python {shlex.quote(name)}"


def _shown(word: str) -> str:
    secret = _SECRET_WORD.fullmatch(word)
    if secret:
        return f"{secret[1]}=***"
    word = without_secrets(word)
    home = str(Path.home())
    if len(home) > 1 and word.startswith(home + os.sep):
        return "~/" + shlex.quote(word[len(home) + 1 :])
    return shlex.quote(word)
