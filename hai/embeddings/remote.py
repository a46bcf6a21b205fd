"""Shards on a bucket or a mount: fetched and verified, sent and read back."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from hai.checkpoint.files import TEMPORARY
from hai.checkpoint.remote import Mount, Remote
from hai.checkpoint.transfer import persist, push_bytes, push_file, time_limit
from hai.embeddings.shards import LARGE, SUFFIX, Shard, is_shard
from hai.errors import DataError, StorageError

__all__ = ["REFUSED", "RemoteShards"]

Result = TypeVar("Result")

REFUSED: Final = "refused"
"""Folder that damaged shards are moved to; on a bucket they are deleted."""


class RemoteShards:
    """The storage's side of a store whose local folder is a copy.

    Args:
        remote: folder on the storage.
        folder: local folder.
        parse: takes content and name of a shard; raises DataError if it is damaged.
        say: told of what is refused, and of trouble.
    """

    def __init__(
        self, remote: Remote, folder: Path, parse: Callable[[bytes, str], object], say: Callable[[str], None]
    ) -> None:
        self._remote, self._folder, self._parse, self._say = remote, folder, parse, say
        self._passed_over: set[str] = set()

    def names(self) -> list[str]:
        """List the shards; a file with another name is not ours to touch.

        Raises:
            StorageError: the storage does not answer.
        """
        names = [name for name in self._call(lambda: self._remote.names("")) if name.endswith(SUFFIX)]
        for name in names:
            if not (is_shard(name) or name.startswith(TEMPORARY) or name in self._passed_over):
                self._say(f"{self._remote.url}/{name}: its name is not the hash of its content; refused")
                self._passed_over.add(name)
        return [name for name in names if is_shard(name) and name not in self._passed_over]

    def fetch(self, name: str) -> None:
        """Fetch and verify a shard; one that arrives damaged is fetched again before it is blamed and refused.

        Raises:
            StorageError: the storage does not answer.
        """
        temporary = self._folder / f"{TEMPORARY}{name}-{uuid.uuid4().hex[:12]}"
        fault: DataError | None = None
        try:
            for _ in range(2):
                if not self._call(partial(_fetched, self._remote, name, temporary)):
                    return
                try:
                    self._parse(temporary.read_bytes(), name)
                except DataError as error:
                    fault = error
                else:
                    os.replace(temporary, self._folder / name)
                    return
        finally:
            temporary.unlink(missing_ok=True)
        try:
            persist(self._remote, partial(_refuse, self._remote, name))
        except Exception:  # it may not be ours to change
            self._passed_over.add(name)
        self._say(f"{self._remote.url}/{name}: {fault}; refused, its embeddings count as missing")

    def send(self, shards: Mapping[str, Shard], others: Mapping[str, bytes]) -> bool:
        """Send what the storage lacks and read it back; trouble is said and costs nothing, for the local copy is whole.

        Args:
            shards: names in the local folder, and their sizes.
            others: small files.

        Returns:
            Whether all of it is there.
        """
        remote = self._remote
        try:
            there = set(persist(remote, lambda: remote.names("")))
            for name, shard in shards.items():
                if name not in there:
                    send = partial(push_file, remote, self._folder / name, name, None, name.removesuffix(SUFFIX))
                    persist(remote, send, limit_s=time_limit(2 * shard.size))
            for name, content in others.items():
                if name not in there:
                    persist(remote, partial(push_bytes, remote, content, name))
        except Exception as error:
            self._say(
                f"{remote.url}: {type(error).__name__}: {error}; new embeddings are in {self._folder} only, "
                "the next run sends them"
            )
            return False
        return True

    def delete(self, name: str) -> None:
        """Delete a shard whose rows are in another one; if that fails, it only takes room."""
        with suppress(Exception):
            persist(self._remote, partial(self._remote.delete, name))

    def _call(self, function: Callable[[], Result]) -> Result:
        try:
            return persist(self._remote, function, limit_s=time_limit(2 * LARGE))
        except Exception as error:
            raise StorageError(
                f"data.embedding_cache: {self._remote.url}: {type(error).__name__}: {error}; "
                "run again when the storage answers"
            ) from error


def _fetched(remote: Remote, name: str, target: Path) -> bool:
    """Fetch a file; False if it is gone, merged into another one."""
    try:
        remote.fetch(name, target)
    except FileNotFoundError:
        return False
    return True


def _refuse(remote: Remote, name: str) -> None:
    """Move a damaged shard on a mount aside; delete it on a bucket."""
    if isinstance(remote, Mount):
        (remote.folder / REFUSED).mkdir(exist_ok=True)
        os.replace(remote.folder / name, remote.folder / REFUSED / name)
    else:
        remote.delete(name)
