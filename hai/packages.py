"""Packages for code beside those that a machine has: what is lacking is installed, what is there keeps its version.

Nothing but the standard library is loaded, because this is what installs the rest.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hai.errors import ConfigError
from hai.masking import without_secrets

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["KEPT", "install_missing", "installed_versions", "lacking", "pip_install", "requirements_of"]

KEPT: Final = ("torch", "torchvision", "torchaudio", "numpy", "pandas", "scipy", "pyarrow", "protobuf")
"""What never changes: Colab's own torch and what is built against it."""


def lacking(requirements: Iterable[Requirement], installed: Mapping[str, str]) -> list[Requirement]:
    """Choose the requirements that the installed versions do not meet.

    Args:
        requirements: what is needed.
        installed: {name in lower case with dashes: version}.
    """
    applying = [wish for wish in requirements if wish.marker is None or wish.marker.evaluate()]
    return [
        wish
        for wish in applying
        if (version := installed.get(_key(wish.name))) is None or not wish.specifier.contains(version, prereleases=True)
    ]


def install_missing(wanted: Sequence[Requirement], installed: Mapping[str, str]) -> None:
    """Install with everything else held as it is, and if that cannot be, with what torch and numpy stand for held."""
    renewed = {_key(wish.name) for wish in wanted}
    held = {name: version for name, version in installed.items() if name not in renewed}
    try:
        pip_install(*map(str, wanted), held=held)
    except ConfigError:
        pip_install(*map(str, wanted), held={name: held[name] for name in KEPT if name in held})


def pip_install(*words: str, held: Mapping[str, str] | None = None) -> None:
    """Run pip, which keeps the versions of what is held; raises ConfigError with what it said."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "held.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in (held or {}).items()), "utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "-c", str(constraints), *words], capture_output=True, text=True, encoding="utf-8", check=False
        )
    if done.returncode:
        raise ConfigError(f"pip install {shlex.join(words)}:\n{without_secrets(done.stderr.strip())[-2000:]}")


def requirements_of(root: Path, extras: Sequence[str]) -> list[Requirement]:
    """Read what the code in a folder needs, with optional parts of it."""
    from packaging.requirements import Requirement

    file = root / "pyproject.toml"
    if not file.is_file():
        return []  # an installed package has brought what it needs
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    optional = [wish for extra in extras for wish in project["optional-dependencies"][extra]]
    return [Requirement(wish) for wish in (*project["dependencies"], *optional)]


def installed_versions() -> dict[str, str]:
    """Return {name in lower case with dashes: version} of what is installed."""
    found: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        if name := package.metadata["Name"]:
            found.setdefault(_key(name), package.version)  # the first on the path is the one that is imported
    return found


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
