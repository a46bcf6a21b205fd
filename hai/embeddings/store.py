"""The embedding store: rows by image content, in append-only shards on a local disk, a mount or a bucket."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hai.checkpoint.files import TEMPORARY, save_bytes, sync_folder
from hai.checkpoint.remote import local_folder, open_remote
from hai.embeddings.remote import REFUSED, RemoteShards
from hai.embeddings.shards import (
    LARGE,
    SUFFIX,
    Index,
    Keys,
    Shard,
    as_keys,
    open_shard,
    parse_shard,
    shard_bytes,
    shard_name,
)
from hai.errors import DataError, StorageError
from hai.paths import cache_folder, locked

__all__ = ["EmbeddingKey", "EmbeddingStore"]

_FORMAT: Final = 1
_MOST_SMALL: Final = 16
"""Shards smaller than half of that which may stand side by side: there are at most this many plus total / 32 MiB."""
_STALE_S: Final = 86_400.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingKey:
    """What embeddings depend on besides the image: equal keys and contents mean equal rows.

    Args:
        revision: what identifies the backbone's weights.
        image_size: height and width of the backbone's input, pixels.
        geometry: how an image becomes square.
        features: which outputs of the backbone.
        compute: number format of the forward pass.
        storage: number format of the kept rows.
    """

    revision: str
    image_size: int
    geometry: str
    features: str
    compute: str
    storage: Literal["float32", "float16"]

    @property
    def folder(self) -> str:
        """Name of the folder of such embeddings: what people recognise, and a hash of all of it."""
        fields = json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)
        model = re.sub(r"[^A-Za-z0-9]+", "-", self.revision).strip("-")[:40].rstrip("-")
        digest = hashlib.sha256(fields.encode()).hexdigest()[:16]
        return f"{model or 'model'}-{self.image_size}-{self.geometry}-{self.features}-{self.storage}-{digest}"


class EmbeddingStore:
    """Embeddings of one key, by content hash.

    Shards are only added, each under the hash of its bytes, so writers never disturb each other and what does not match
    its name is refused. Small shards are merged into new ones before they are deleted. On a bucket or a mount, every
    machine keeps a verified copy under HAI_CACHE. Not for several threads at once.

    Args:
        root: folder or URL of all embeddings; None: `HAI_CACHE/embeddings`.
        key: what the embeddings depend on.
        width: numbers in an embedding, D.
        say: told of every shard that is refused, and of trouble with the storage.
    """

    def __init__(
        self, root: str | None, key: EmbeddingKey, width: int, *, say: Callable[[str], None] = log.warning
    ) -> None:
        self.key, self.width = key, width
        self.dtype: np.dtype[Any] = np.dtype(key.storage)
        self.place = f"{str(cache_folder() / 'embeddings') if root is None else root.rstrip('/')}/{key.folder}"
        remote = None if root is None else open_remote(self.place)
        if remote is None:
            self.folder = local_folder(self.place)
        else:
            mirror = hashlib.sha256(remote.url.encode()).hexdigest()[:16]
            self.folder = cache_folder() / "embedding_mirrors" / f"{key.folder}-{mirror}"
        self._remote = None if remote is None else RemoteShards(remote, self.folder, self._parse, say)
        self._say = say
        self._shards: dict[str, Shard] = {}
        self._is_verified: set[str] = set()
        self._passed_over: set[str] = set()
        self._index: Index | None = None
        self._is_alone = False

    def refresh(self) -> None:
        """Take in what other processes and machines have added.

        Raises:
            StorageError: the storage does not answer.
        """
        if self._remote is not None:
            with self._alone():
                self._mirror(self._remote)
        self._scan()

    def missing(self, sha256: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Say whose embeddings are not there, [N]; every shard that holds one of the others is verified whole.

        Args:
            sha256: content hashes [N, 32].

        Raises:
            StorageError: the storage does not answer.
        """
        self.refresh()
        keys = as_keys(sha256)
        while True:
            is_there, shard, _ = self._find(keys)
            names = list(self._shards)
            needed = [names[number] for number in np.unique(shard[is_there]).tolist()]
            if all([name in self._is_verified or self._load(name) is not None for name in needed]):
                return ~is_there
            self.refresh()

    def add(self, sha256: NDArray[np.uint8], rows: NDArray[Any], *, upload: bool = True) -> None:
        """Keep embeddings durably.

        Args:
            sha256: content hashes [n, 32], each once.
            rows: [n, D], finite in the format of the storage.
            upload: send them to the bucket or mount as well, and what it lacks from earlier.

        Raises:
            DataError: some are not finite in that format.
            StorageError: the local folder cannot be written.
        """
        with np.errstate(over="ignore"):
            kept = rows.astype(self.dtype, copy=False)
        assert kept.shape == (len(sha256), self.width)
        if not np.isfinite(kept).all():
            raise DataError(f"embeddings: not finite in {self.dtype.name}; set data.embedding_precision=float32")
        with self._alone():
            if len(kept):
                self._write(as_keys(sha256), kept)
            self._scan()
            if self._remote is None or (upload and self._remote.send(self._shards, self._description())):
                self._merge_small()

    def send(self) -> None:
        """Send what the bucket or mount lacks; trouble is said, and what is kept here stays good."""
        if self._remote is not None:
            with self._alone():
                self._remote.send(self._shards, self._description())

    def read(self, sha256: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings as float32 [N, D].

        Raises:
            DataError: how many are missing.
        """
        return self.read_stored(sha256).astype(np.float32, copy=False)

    def read_stored(self, sha256: NDArray[np.uint8]) -> NDArray[Any]:
        """Return embeddings in the format of the storage, [N, D]; one shard at a time is held besides.

        Raises:
            DataError: how many are missing.
            StorageError: the storage does not answer.
        """
        keys = as_keys(sha256)
        for attempt in range(4):  # others may merge, or a shard turn out damaged, while it reads
            if attempt or not self._shards:
                self.refresh()
            is_there, shard, row = self._find(keys)
            if is_there.all() and (rows := self._gather(shard, row)) is not None:
                return rows
            if attempt and not is_there.all():
                break
        lost = int((~is_there).sum())
        raise DataError(f"{self.place}: {lost} of {len(keys)} embeddings are missing; run `hai embed` or train again")

    def _gather(self, shard: NDArray[np.int32], row: NDArray[np.int32]) -> NDArray[Any] | None:
        """Copy rows out of their shards; None if one of these cannot be used after all."""
        rows = np.empty((len(row), self.width), dtype=self.dtype)
        order = np.argsort(shard, kind="stable")
        numbers, starts = np.unique(shard[order], return_index=True)
        names = list(self._shards)
        for number, start, stop in zip(numbers.tolist(), starts, [*starts[1:], len(order)], strict=False):
            loaded, wanted = self._load(names[number]), order[start:stop]
            if loaded is None:
                return None
            rows[wanted] = loaded[1][row[wanted]]
        return rows

    def _find(self, keys: Keys) -> tuple[NDArray[np.bool_], NDArray[np.int32], NDArray[np.int32]]:
        if self._index is None:
            self._index = Index([shard.keys for shard in self._shards.values()])
        return self._index.find(keys)

    def _load(self, name: str) -> tuple[Keys, NDArray[Any]] | None:
        """Read and verify a shard; None if it is gone or had to be refused."""
        try:
            content = (self.folder / name).read_bytes()
            loaded = self._parse(content, name)
        except FileNotFoundError:
            return None
        except (DataError, OSError) as error:
            self._refuse(name, error)
            return None
        self._is_verified.add(name)
        return loaded

    def _scan(self) -> None:
        """Take in the shards that lie in the folder now."""
        shards: dict[str, Shard] = {}
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.folder)):
                if not name.endswith(SUFFIX) or name.startswith(TEMPORARY) or name in self._passed_over:
                    continue
                try:
                    shards[name] = self._shards.get(name) or open_shard(self.folder / name, self.width, self.dtype)
                except FileNotFoundError:
                    continue
                except (DataError, OSError) as error:
                    self._refuse(name, error)
        if shards.keys() != self._shards.keys():
            self._shards, self._index = shards, None
            self._is_verified &= shards.keys()

    def _refuse(self, name: str, reason: Exception) -> None:
        """Move a shard out of the way, so that its rows count as missing; nothing is done if another was faster."""
        path = self.folder / name
        if self._shards.pop(name, None) is not None:
            self._index = None
        self._is_verified.discard(name)
        try:
            with self._alone():
                with suppress(DataError):
                    self._parse(path.read_bytes(), name)
                    return  # written anew meanwhile
                (self.folder / REFUSED).mkdir(exist_ok=True)
                os.replace(path, self.folder / REFUSED / name)
        except FileNotFoundError:
            return
        except OSError:  # the folder is not ours to change
            self._passed_over.add(name)
        self._say(f"{path}: {reason}; refused, its embeddings count as missing")

    def _write(self, keys: Keys, rows: NDArray[Any]) -> str:
        content = shard_bytes(keys, rows)
        name = shard_name(content)
        path = self.folder / name
        self._passed_over.discard(name)
        try:
            if not (path.exists() and path.read_bytes() == content):  # or another worker of the machine was faster
                save_bytes(path, content)
            for other, text in self._description().items():
                if not (self.folder / other).exists():
                    save_bytes(self.folder / other, text)
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(
                f"embeddings: {path} cannot be written ({reason}); make room or name another folder with "
                "data.embedding_cache or HAI_CACHE"
            ) from error
        return name

    def _parse(self, content: bytes, name: str) -> tuple[Keys, NDArray[Any]]:
        return parse_shard(content, name, self.width, self.dtype)

    def _description(self) -> dict[str, bytes]:
        """Return the file that says to people what lies here."""
        return {"key.json": (json.dumps({**asdict(self.key), "width": self.width}, indent=2) + "\n").encode()}

    def _merge_small(self) -> None:
        """Merge the smallest shards if there are many; what a large one holds already is left out.

        Large shards are never deleted, and small ones only after their rows were written anew: neither a crash nor
        another machine that does the same costs anything.
        """
        small = sorted((shard.size, name) for name, shard in self._shards.items() if shard.size < LARGE // 2)
        if len(small) <= _MOST_SMALL:
            return
        total = np.cumsum([size for size, _ in small])
        group = [name for (_, name), end in zip(small, total.tolist(), strict=True) if end <= LARGE]
        parts = [loaded for name in group if (loaded := self._load(name)) is not None]
        if len(parts) < len(group):
            return
        keys, first = np.unique(np.concatenate([keys for keys, _ in parts]), return_index=True)
        rows = np.concatenate([rows for _, rows in parts])[first]
        held, _, _ = Index([shard.keys for shard in self._shards.values() if shard.size >= LARGE // 2]).find(keys)
        merged = self._write(keys[~held], rows[~held]) if not held.all() else None
        self._scan()
        if self._remote is not None and not self._remote.send(self._shards, self._description()):
            return
        for name in group:
            if name != merged:
                with suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
                if self._remote is not None:
                    self._remote.delete(name)
        self._drop_leftovers()
        sync_folder(self.folder)
        self._scan()

    def _drop_leftovers(self) -> None:
        """Delete what writers left behind that were killed a day ago or earlier."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()

    def _mirror(self, remote: RemoteShards) -> None:
        """Fetch the shards that this machine lacks, and drop its own that were merged on the storage meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        there = remote.names()
        for name in there:
            if not (self.folder / name).exists():
                remote.fetch(name)
        self._scan()
        old = self._shards.keys() - set(there)
        if old:
            held = Index([shard.keys for name, shard in self._shards.items() if name not in old])
            for name in old:
                if held.find(self._shards[name].keys)[0].all():
                    (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes of this machine from changing the folder; may be nested."""
        if self._is_alone:
            yield
            return
        with locked(f"embeddings {self.folder}"):
            self._is_alone = True
            try:
                yield
            finally:
                self._is_alone = False
