"""Notices that this machine will be taken away, from Google's and Amazon's metadata servers or from a file."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from hai.types import SAVE

__all__ = ["NOTICE_FILE", "PATIENCE_SECONDS", "Notice", "NoticeWatch", "find_source", "saving"]

NOTICE_FILE = "HAI_NOTICE_FILE"
PATIENCE_SECONDS = 20.0
"""Most that a checkpoint may take before the machine is left without."""
_SERVER = "169.254.169.254"  # of both clouds; by its number, because a name could wait for a DNS server
_TRIES, _ANSWER_SECONDS, _EVERY_SECONDS = 2, 1.0, 2.0
_GOOGLE_SECONDS = 30.0  # what Google gives; it names no time
_FILE_SECONDS = 15.0  # what Kubernetes leaves a pod of Google's
_MOST_BYTES = 4096
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Notice(NamedTuple):
    """Somebody's word that this machine will be taken away, in so many seconds."""

    cloud: str
    seconds: float

    @property
    def text(self) -> str:
        """Return a line for people."""
        return f"{self.cloud}: this machine will be taken away in {self.seconds:.0f} s: saving a checkpoint"


class NoticeWatch(threading.Thread):
    """Wait for a notice in the background; off a cloud the thread ends by itself within seconds.

    Args:
        take: called once, in this thread, with the notice.
    """

    def __init__(self, take: Callable[[Notice], None]) -> None:
        super().__init__(name="hai-notices", daemon=True)
        self._take, self._ended = take, threading.Event()

    def run(self) -> None:
        """Find out which cloud this is, then ask its server now and then."""
        source = find_source(os.environ)
        while source is not None and not self._ended.is_set():
            with contextlib.suppress(OSError, HTTPException, ValueError):  # a server that fails is asked again
                notice = source()
                if notice is not None:
                    self._take(notice)
                    return
            self._ended.wait(_EVERY_SECONDS)

    def end(self) -> None:
        """Stop asking; does not wait."""
        self._ended.set()


@contextlib.contextmanager
def saving(
    request: Callable[[], int],
    say: Callable[[str], None],
    *,
    is_first: bool = True,
    leave: Callable[[float], None] = lambda _: None,
) -> Iterator[Callable[[], int]]:
    """For the length of the block answer a notice with a checkpoint of what trains in this process.

    Args:
        request: asked between steps: 0 or STOP.
        say: takes a line for people.
        is_first: whether to look for notices; one process of a group does.
        leave: called once the checkpoint is whole, or it is too late for one, with the time when the machine goes.

    Yields:
        What the loop is to ask: the request, and SAVE once after a notice.
    """
    noticed, asked, saved = threading.Event(), threading.Event(), threading.Event()

    def take(notice: Notice) -> None:
        gone = time.time() + notice.seconds
        say(notice.text)
        noticed.set()
        saved.wait(min(notice.seconds, PATIENCE_SECONDS))
        leave(gone)

    def ask() -> int:
        if asked.is_set():  # the loop comes back when that checkpoint is whole
            saved.set()
        wanted = request()
        if wanted or asked.is_set() or not noticed.is_set():
            return wanted
        asked.set()
        return SAVE

    watch = NoticeWatch(take)
    if is_first:
        watch.start()
    try:
        yield ask
    finally:
        watch.end()
        saved.set()


def find_source(environment: Mapping[str, str]) -> Callable[[], Notice | None] | None:
    """Return what looks for a notice to this machine; None where nobody gives any.

    Args:
        environment: GCE_METADATA_HOST and AWS_EC2_METADATA_SERVICE_ENDPOINT name other servers, NO_GCE_CHECK and
            AWS_EC2_METADATA_DISABLED switch the question off, as in the clouds' own libraries. HAI_NOTICE_FILE names a
            file instead, which appears when the machine must go: a pod cannot ask the clouds, but is told to stop.
    """
    if environment.get(NOTICE_FILE):
        path = Path(environment[NOTICE_FILE])
        return lambda: Notice("the cluster", _FILE_SECONDS) if path.exists() else None
    google = f"http://{environment.get('GCE_METADATA_HOST') or _SERVER}"
    amazon = (environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or f"http://{_SERVER}").rstrip("/")
    sources: list[Callable[[], Notice | None]] = []
    if environment.get("NO_GCE_CHECK", "").lower() != "true":
        sources.append(lambda: _google_notice(google))
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        sources.append(lambda: _amazon_notice(amazon))
    for source in sources * _TRIES:
        with contextlib.suppress(OSError, HTTPException, ValueError):
            source()
            return source
    return None


def _google_notice(server: str) -> Notice | None:
    """Raises OSError or ValueError when this is no server of Google's."""
    flavor = {"Metadata-Flavor": "Google"}
    request = urllib.request.Request(f"{server}/computeMetadata/v1/instance/preempted", headers=flavor)
    with _DIRECT.open(request, timeout=_ANSWER_SECONDS) as answer:
        if answer.headers.get("Metadata-Flavor") != "Google":
            raise ValueError("not Google's metadata server")
        return Notice("Google Cloud", _GOOGLE_SECONDS) if answer.read(_MOST_BYTES).strip() == b"TRUE" else None


def _amazon_notice(server: str) -> Notice | None:
    """Raises OSError or ValueError when this is no server of Amazon's."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    request = urllib.request.Request(f"{server}/latest/api/token", headers=lifetime, method="PUT")
    with _DIRECT.open(request, timeout=_ANSWER_SECONDS) as answer:
        token = answer.read(_MOST_BYTES).decode("ascii").strip()
    request = urllib.request.Request(
        f"{server}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with _DIRECT.open(request, timeout=_ANSWER_SECONDS) as answer:
            action = json.loads(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:  # Amazon's way to say that nothing is planned
            return None
        raise
    then = datetime.datetime.fromisoformat(str(action["time"]))
    left = then - datetime.datetime.now(then.tzinfo)
    return Notice("Amazon EC2", max(0.0, left.total_seconds()))
