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
    "pinned_lines",
    "python_version",
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

_LEAST: Final = {"torch": "2.5", "torchvision": "0.20", "numpy": "1.26"}
_LEAST_PYTHON: Final = (3, 10)
"""What scoring is known to run with, older than what training needs: machines of contests have drivers of their own."""

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


def requirement_lines(packages: list[str], *, exact: bool, torch: str | None = None) -> str:
    """Write a requirements.txt.

    Args:
        packages: names, perhaps with extras.
        exact: the versions of this environment; else nothing older than what scoring is known to run with, or hai asks
            for.
        torch: version of torch; torchvision's follows from it.

    Raises:
        ConfigError: one of them is not installed here.
    """
    least = {_name(line): line.split(";")[0] for line in importlib.metadata.requires("hai") or []}
    lines = []
    for package in packages:
        name = _name(package)
        try:
            version = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(f"submit: {package} is not installed here; the package could not be proven") from None
        found = re.search(r">=([\w.]+)", least.get(name, ""))
        floor = _LEAST.get(name) or (found[1] if found else version)
        if torch is not None and name in ("torch", "torchvision"):
            lines.append(f"torch=={torch}" if name == "torch" else package)
        else:
            lines.append(f"{package}=={version}" if exact else f"{package}>={floor}")
    return "".join(f"{line}\n" for line in lines)


def python_version(python: str) -> tuple[int, int]:
    """Return the version of an interpreter.

    Raises:
        ConfigError: it cannot be run, or is older than the code can be.
    """
    try:
        said = run_command([python, "-c", "import sys; print(*sys.version_info[:2])"], dict(os.environ))[1]
        major, minor = map(int, said.split())
    except (OSError, ValueError):
        raise ConfigError(f"--python = {python}; is no Python that runs here; name one such as python3.10") from None
    if (major, minor) < _LEAST_PYTHON:
        raise ConfigError(
            f"--python = {python}; is Python {major}.{minor}; scoring needs 3.{_LEAST_PYTHON[1]} or newer"
        )
    return major, minor


def pinned_lines(python: Path, text: str) -> str:
    """Give each line of a requirements.txt the version that an environment has."""
    names = [_name(line) for line in text.splitlines()]
    code = "import sys, importlib.metadata as m; print(*(m.version(name).split('+')[0] for name in sys.argv[1:]))"
    status, said = run_command([str(python), "-c", code, *names], bare_environment(python.parent))
    assert status == 0, said
    return "".join(f"{name}=={version}\n" for name, version in zip(names, said.split(), strict=True))


def build_environment(folder: Path, requirements: Path, *more: str, python: str | None = None) -> Path:
    """Make a new virtual environment with what a requirements.txt names and nothing else.

    Args:
        folder: where to; must not exist.
        requirements: the file.
        more: packages besides.
        python: interpreter; None: this one.

    Returns:
        Its Python.

    Raises:
        ConfigError: it cannot be made; the installer's own words are in the message.
    """
    own, base = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), python or sys.executable
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        _installed([uv, "venv", "--quiet", "--seed", "--python", base, str(folder)])
        _installed([uv, "pip", "install", "--quiet", "--python", str(own), "-r", str(requirements), *more])
    else:
        _installed([base, "-m", "venv", str(folder)])
        _installed([str(own), "-m", "pip", "install", "--quiet", "-r", str(requirements), *more])
    return own


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
