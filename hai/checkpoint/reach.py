"""Calling a storage that may hang, and saying in one line what is wrong with it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar, cast

from hai.errors import StorageError

__all__ = ["reach", "within"]

Result = TypeVar("Result")

_LIMIT_S: Final = 30.0
_INSTALL: Final = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_LOG_IN: Final = {
    "s3": "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
}


def reach(url: str, function: Callable[[], Result], limit_s: float | None = None) -> Result:
    """Call a storage within a time limit and turn its many kinds of error into one line.

    Args:
        url: where it is, for the line.
        function: the call.
        limit_s: after which it counts as hung; default: 30 s.

    Raises:
        StorageError: what is wrong and how to mend it.
    """
    try:
        return within(_LIMIT_S if limit_s is None else limit_s, function)
    except Exception as error:  # every backend has its own exceptions
        raise StorageError(f"storage: {url}: {_explain(url, error)}") from error


def _explain(url: str, error: Exception) -> str:
    protocol = url.partition("://")[0]
    text = (str(error).strip().splitlines() or [""])[0][:200]
    log_in = _LOG_IN.get(protocol, "check your credentials for it")
    if isinstance(error, ImportError):
        package = _INSTALL.get(protocol)
        return f"{text}; pip install {package}" if package else text
    if isinstance(error, ValueError) and "rotocol" in text:
        return f"no such scheme {protocol!r}; use a folder, s3://BUCKET/..., gs://BUCKET/... or another fsspec URL"
    if "redential" in type(error).__name__ + text or "DefaultCredentials" in type(error).__name__:
        return f"no credentials ({text}); {log_in}"
    if isinstance(error, PermissionError) or any(mark in text for mark in ("403", "401", "Forbidden", "Access Denied")):
        return f"access refused ({text}); {log_in}"
    if isinstance(error, FileNotFoundError):
        return f"no such bucket or folder ({text}); create it, or check its name"
    if isinstance(error, TimeoutError):
        return f"{text}; check the network"
    return f"{type(error).__name__}: {text}"


def within(limit_s: float, function: Callable[[], Result]) -> Result:
    """Call a function in a thread of its own and wait only so long; a call that hangs is left behind.

    Raises:
        TimeoutError: there was no answer in time.
    """
    answer: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            answer.put((function(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=call, name="hai-storage", daemon=True).start()
    try:
        result, error = answer.get(timeout=limit_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {limit_s:.0f} s") from None
    if error is not None:
        raise error
    return cast("Result", result)
