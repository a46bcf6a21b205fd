"""Finding or starting a Ray cluster: the one that RAY_ADDRESS names, a live one here, or an own one on loopback."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hai.errors import ConfigError

__all__ = [
    "TOO_SLOW",
    "connected",
    "forwarded",
    "is_on_loopback",
    "is_own",
    "keep_token",
    "live_address",
    "start_local",
    "wrong_address",
]

TOO_SLOW = "Ray did not start"
"""How the error begins that says that this machine was too slow."""

_FORWARDED = ("HAI_CACHE", "HAI_STORAGE", "HAI_TEST_DATA", "HF_HOME", "HF_HUB_OFFLINE")
_CHECK_SECONDS = 2.0
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": loopback is the only address, which is Ray's way on a Mac
_SILENT: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
_own_node: Any = None  # of the cluster that this process has started


def live_address(say: Callable[[str], None]) -> str | None:
    """Return the address of this user's cluster that answers on this machine; a stale record gets a line."""
    record = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        if record.stat().st_uid != os.getuid():
            return None
        address = record.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_CHECK_SECONDS):
            return address
    except (OSError, ValueError):
        say(f"no Ray cluster answers at {address} any more; starting an own one")
        return None


def forwarded() -> dict[str, str]:
    """Return those of the driver's environment variables that its workers get, wherever they run."""
    return {name: os.environ[name] for name in _FORWARDED if name in os.environ}


@contextlib.contextmanager
def connected(say: Callable[[str], None]) -> Iterator[Any]:
    """Connect to Ray for the length of the block; an own cluster ends with it.

    Raises:
        ConfigError: RAY_ADDRESS names a cluster that cannot be reached, or one that runs here cannot be joined.
    """
    ray = _import_ray()
    if ray.is_initialized():  # a notebook or a test session has its own
        yield ray
        return
    named = os.environ.get("RAY_ADDRESS")
    if named and (reason := wrong_address(named)):
        raise ConfigError(reason)
    address = named if named and named != "local" else None if named else live_address(say)
    if address:
        say(f"using the Ray cluster at {address}")
        try:
            ray.init(address=address, **_SILENT)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                f"RAY_ADDRESS = {address}; the cluster cannot be joined ({reason}); "
                "start it, unset RAY_ADDRESS, or set RAY_AUTH_MODE as the cluster has it"
                if named
                else f"a Ray cluster runs here at {address} and cannot be joined ({reason}); "
                "RAY_ADDRESS=local starts an own one, RAY_AUTH_MODE as the cluster has it may let this one be joined"
            ) from error
    else:
        say("starting Ray on this machine")
        start_local(say)
    try:
        yield ray
    finally:
        ray.shutdown()


def wrong_address(address: str) -> str:
    """Say why a value of RAY_ADDRESS names no cluster that can be joined; "" where nothing is known against it."""
    if not address.startswith(("http://", "https://")):
        return ""
    return (
        f"RAY_ADDRESS = {address}: is where `ray job submit` sends jobs, no cluster to join; unset RAY_ADDRESS to "
        "compute on this machine, or submit: ray job submit --working-dir . -- python ray_jobs/train.py ..."
    )


def start_local(say: Callable[[str], None], num_cpus: int | None = None) -> None:
    """Start a cluster of this machine's own and connect to it; it ends with this process or `ray.shutdown`.

    It listens on loopback only, and asks for the token in `~/.ray/auth_token` unless RAY_AUTH_MODE says otherwise.

    Raises:
        ConfigError: the machine is too busy.
    """
    global _own_node
    ray = _import_ray()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # it would have nowhere to go
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # nobody else will make room
    keep_token()
    for tries_left in (2, 1, 0):
        try:
            with _on_loopback():
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **_SILENT)
            _own_node = _node_of(ray)
            break
        except Exception as error:  # Ray waits 30 s for its own processes, which a busy small machine exceeds
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if not tries_left:
                raise ConfigError(
                    f"{TOO_SLOW} within its 30 s, three times; end other programs on this machine and run the command "
                    "again; scale.launcher=in_process does without Ray"
                ) from error
            say(f"{TOO_SLOW} within its 30 s; trying again")


def is_own() -> bool:
    """Say whether the cluster we are connected to was started by `start_local` here; a notebook may have its own."""
    return _own_node is not None and _node_of(_import_ray()) is _own_node


def _node_of(ray: Any) -> Any:
    return getattr(ray._private.worker, "_global_node", None)


def is_on_loopback() -> bool:
    """Say whether the cluster we are connected to is this machine's own, which nothing outside can reach."""
    return ipaddress.ip_address(_import_ray().util.get_node_ip_address()).is_loopback


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a cluster that starts in the block listen on loopback only.

    Ray's own arguments do not: `_node_ip_address="127.0.0.1"` is replaced by the address that others see.
    """
    from ray._private import ray_constants

    enabled, before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_CLUSTERS)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[_CLUSTERS] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        if before is None:
            del os.environ[_CLUSTERS]
        else:
            os.environ[_CLUSTERS] = before


def keep_token() -> None:
    """Make the token of this user's own clusters, for this user's eyes only; Ray would let everyone read it."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(
        os.environ
    ):
        return
    token = Path.home() / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not token.exists():
        own = token.with_name(f"{token.name}.{secrets.token_hex(8)}")
        with open(os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process was faster: its token holds
            os.link(own, token)
        own.unlink()
    token.chmod(0o600)


def _import_ray() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    return ray
