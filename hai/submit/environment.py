"""What a package needs to run, and a fresh environment that has just that."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hai.errors import ConfigError

if TYPE_CHECKING:
    from hai.config.schema import ModelConfig

__all__ = [
    "bare_environment",
    "build_environment",
    "packages_for",
    "requirement_lines",
    "run_command",
    "training_packages",
]

_ALWAYS: Final = (
    "torch",
    "numpy",
    "pillow",
    "simplejpeg",
    "av",
    "pydantic",
    "pyyaml",
    "safetensors",
    "tenacity",
    "rich",
)
"""What reading files and scoring pictures imports."""

_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SYSTEMROOT")
_MOST_SECONDS: Final = 3600


def packages_for(model: ModelConfig) -> list[str]:
    """Name the packages that scoring with a model imports."""
    names = list(_ALWAYS)
    if model.name.startswith(("timm:", "dual_branch")):
        names += ["timm", "torchvision"]
    if model.name.startswith("hf:"):
        names += ["transformers"]
    return names


def training_packages() -> list[str]:
    """Name the packages that training imports besides."""
    found = importlib.metadata.requires("hai") or []
    return sorted({_name(line) + _extra(line) for line in found if "extra ==" not in line})


def requirement_lines(packages: list[str], *, exact: bool) -> str:
    """Write a requirements.txt.

    Args:
        packages: names, perhaps with extras.
        exact: the versions of this environment; else nothing older than what hai asks for.

    Raises:
        ConfigError: one of them is not installed here.
    """
    least = {_name(line): line.split(";")[0] for line in importlib.metadata.requires("hai") or []}
    lines = []
    for package in packages:
        try:
            version = importlib.metadata.version(_name(package)).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(f"submit: {package} is not installed here; the package could not be proven") from None
        found = re.search(r">=[\w.]+", least.get(_name(package), ""))
        lines.append(f"{package}=={version}" if exact else f"{package}{found[0] if found else f'>={version}'}")
    return "".join(f"{line}\n" for line in lines)


def build_environment(folder: Path, requirements: Path, *more: str) -> Path:
    """Make a new virtual environment with what a requirements.txt names and nothing else.

    Args:
        folder: where to; must not exist.
        requirements: the file.
        more: packages besides.

    Returns:
        Its Python.

    Raises:
        ConfigError: it cannot be made; the installer's own words are in the message.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        _installed([uv, "venv", "--quiet", "--seed", "--python", sys.executable, str(folder)])
        _installed([uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(requirements), *more])
    else:
        _installed([sys.executable, "-m", "venv", str(folder)])
        _installed([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements), *more])
    return python


def _installed(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["UV_PYTHON_DOWNLOADS"] = "never"
    status, said = run_command(command, environment)
    if status:
        raise ConfigError(
            f"submit: the fresh environment cannot be made ({' '.join(command[:3])}): {said[-2000:]}; --no-proof "
            "writes the package without it"
        )


def run_command(command: list[str], environment: dict[str, str], folder: Path | None = None) -> tuple[int, str]:
    """Run a command to its end; returns its exit status and all that it said.

    Raises:
        ConfigError: it takes more than an hour.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            text=True, encoding="utf-8", errors="replace", timeout=_MOST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"submit: {' '.join(command[:3])} ... has not ended within an hour; try the package on fewer files with "
            "--input, or write it without with --no-proof"
        ) from None
    return done.returncode, done.stdout.strip()


def bare_environment(home: Path) -> dict[str, str]:
    """Return the variables that a package is run with: nothing of the user's that could help it."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "HOME": str(home), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def _name(line: str) -> str:
    return re.split(r"[\[><=!~; ]", line)[0].lower().replace("_", "-")


def _extra(line: str) -> str:
    found = re.match(r"[\w.-]+(\[[^\]]*\])", line)
    return found[1] if found else ""
