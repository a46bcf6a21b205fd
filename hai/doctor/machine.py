"""Checks of the machine itself: Python and packages, memory, CPUs, disks, limits."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import hai
from hai.console import shown_bytes
from hai.doctor.findings import Finding, fine, problem, tilde, warning
from hai.paths import cache_folder
from hai.provenance import describe_hardware

__all__ = ["check_compiled", "check_folders", "check_machine", "check_packages", "free_memory", "write_error"]

_LEAST_MEMORY: Final = 3e9  # Ray, its workers' Python and torch, before any model
_LEAST_SHARED: Final = 1e9
_LEAST_FILES: Final = 4096
_LEAST_ROOM: Final = 2e9
_PROBE_BYTES: Final = 1 << 20
_CGROUPS: Final = (  # (limit, use) of version 2 and version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def check_packages(package: str = "hai") -> Iterator[Finding]:
    """Check Python and that everything the package declares is installed, and new enough."""
    from packaging.requirements import Requirement

    yield fine("Python", f"{platform.python_version()} in {tilde(sys.prefix)}, hai {hai.__version__}")
    try:
        declared = [Requirement(line) for line in importlib.metadata.requires(package) or []]
    except importlib.metadata.PackageNotFoundError:
        declared = []
        yield warning(
            "packages",
            f"{package} is not installed, so its needs are unknown",
            "pip install -e . where it is checked out",
        )
    lacking = []
    for wish in declared:
        if wish.marker is not None and not wish.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wish.name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append((str(wish), f"{wish.name} is missing"))
            continue
        if not wish.specifier.contains(found, prereleases=True):
            lacking.append((str(wish), f"{wish.name} {found} is too old"))
    if lacking:
        wishes = " ".join(f'"{wish}"' for wish, _ in lacking)
        yield problem("packages", ", ".join(text for _, text in lacking), f"pip install {wishes}")
    elif declared:
        yield fine("packages", f"all that {package} needs are here")


def check_compiled(package: str = "torch") -> Iterator[Finding]:
    """Check that a package is compiled, or that Python may keep what it compiles at the first import."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        return
    kept, site = Path(importlib.util.cache_from_source(spec.origin)), Path(spec.origin).parent.parent
    place = next(one for one in kept.parents if one.exists())
    if kept.exists() or (os.access(place, os.W_OK) and not sys.dont_write_bytecode):
        return
    reason = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else f"{tilde(place)} is read-only"
    yield warning(
        "packages",
        f"{package} and others are not compiled and Python may not keep what it compiles ({reason}), so every process "
        "starts 5 to 10 s later",
        f"once: {tilde(sys.executable)} -m compileall -q {tilde(site)}",
    )


def check_machine() -> Iterator[Finding]:
    """Check processors, memory, shared memory and the number of files that may be open."""
    hardware = describe_hardware()
    free = free_memory()
    text = f"{hardware['cpu']}, {hardware['num_cpus']} CPUs, {hardware['system']}"
    yield fine("machine", text)
    if free is not None:
        text = f"{shown_bytes(free)} free of {shown_bytes(hardware['memory_gb'] * 2**30)}"
        if free < _LEAST_MEMORY:
            yield warning("memory", f"{text}; Ray and a worker take 3 GB before any model", "end other programs")
        else:
            yield fine("memory", text)
    yield from check_shared_memory()
    yield from _open_files()


def free_memory(groups: Path = Path("/sys/fs/cgroup"), table: Path = Path("/proc/meminfo")) -> float | None:
    """Return the memory that is left to this process, bytes: the machine's, or the container's where that is less."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", table.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    rooms = [int(found[1]) * 1024.0] if found else []
    for limit, use in _CGROUPS:
        try:
            most = int((groups / limit).read_text(encoding="ascii"))  # "max": there is no limit
            rooms.append(max(0.0, float(most - int((groups / use).read_text(encoding="ascii")))))
        except (OSError, ValueError):
            continue
    return min(rooms, default=None)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Check the room where processes of one machine exchange data: Ray's objects, NCCL's buffers."""
    if not folder.is_dir():
        return
    reason = write_error(folder)
    size = shutil.disk_usage(folder)
    text = f"{shown_bytes(size.free)} free of {shown_bytes(size.total)} in {folder}"
    if reason:
        yield warning("shared memory", f"{folder} cannot be written ({reason}): Ray falls back to files in its "
                      "temporary folder, several GPUs may fail to talk to each other",
                      f"empty {folder}, or start the container with --shm-size=8g")  # fmt: skip
    elif size.free < _LEAST_SHARED:
        yield warning("shared memory", f"{text}: Ray falls back to files, several GPUs may fail to talk to each other",
                      f"empty {folder}, or start the container with --shm-size=8g")  # fmt: skip
    else:
        yield fine("shared memory", text)


def _open_files() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
        most = "65536" if hard == resource.RLIM_INFINITY or hard >= 65536 else str(hard)
        yield warning("open files", f"{soft} at most, which Ray may use up", f"run: ulimit -n {most}")


def check_folders() -> Iterator[Finding]:
    """Check the folders that every run writes to besides its storage: the cache, and where Ray keeps its sessions."""
    cache, ray = cache_folder(), Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    for check, folder, variable in (("cache", cache, "HAI_CACHE"), ("Ray's folder", ray, "RAY_TMPDIR")):
        place = next(one for one in (folder, *folder.parents) if one.exists())
        reason = write_error(place)
        free = shutil.disk_usage(place).free
        if reason:
            yield problem(
                check, f"{tilde(folder)} cannot be written ({reason})", f"set {variable} to a folder that can"
            )
        elif free < _LEAST_ROOM:
            mend = f"make room, or set {variable} to a folder on another disk"
            yield warning(check, f"{shown_bytes(free)} free at {tilde(folder)}", mend)
        else:
            yield fine(check, f"{tilde(folder)}, {shown_bytes(free)} free")


def write_error(folder: Path) -> str:
    """Write a megabyte into a folder and take it away again; return what was in the way, nothing if it went well."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".hai-doctor-") as file:
            file.write(os.urandom(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""
