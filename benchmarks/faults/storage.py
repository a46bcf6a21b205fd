"""A storage that fails, hangs, half-writes and writes wrong bytes, on purpose and by chance."""

import io
import random
import threading
import time

import fsspec
from fsspec.spec import AbstractFileSystem

FAULTS = ("fail", "hang", "half then fail", "half", "wrong")


class FaultyFileSystem(AbstractFileSystem):
    """A bucket in memory; `rate` of its calls go wrong, all of them while it is `down`."""

    protocol = "faulty"
    objects: dict[str, bytes] = {}  # noqa: RUF012  (one bucket, whatever the instance)
    writes: list[str] = []  # noqa: RUF012
    deletes: list[str] = []  # noqa: RUF012
    faults: list[str] = []  # noqa: RUF012
    rate = 0.0
    down = False
    hang_s = 0.5
    draw = random.Random(0)
    lock = threading.Lock()

    @classmethod
    def reset(cls, rate: float = 0.0, seed: int = 0) -> None:
        for part in (cls.objects, cls.writes, cls.deletes, cls.faults):
            part.clear()
        cls.rate, cls.down, cls.draw = rate, False, random.Random(seed)

    @classmethod
    def _fault(cls, kinds: tuple[str, ...] = ("fail", "hang")) -> str | None:
        if cls.down:
            raise ConnectionError("the network is down")
        with cls.lock:
            kind = cls.draw.choice(kinds) if cls.draw.random() < cls.rate else None
            if kind is not None:
                cls.faults.append(kind)
        if kind == "fail":
            raise ConnectionError("connection reset by peer")
        if kind == "hang":
            time.sleep(cls.hang_s)
        return kind

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        kind = self._fault(FAULTS)
        if kind in ("half", "half then fail"):
            value = value[: len(value) // 2]
        elif kind == "wrong" and value:
            value = bytes([value[0] ^ 4]) + value[1:]
        self.objects[self._strip_protocol(path)] = bytes(value)
        self.writes.append(self._strip_protocol(path))
        if kind == "half then fail":
            raise ConnectionError("broken pipe")

    def put_file(self, lpath, rpath, **kwargs):
        with open(lpath, "rb") as stream:
            self.pipe_file(rpath, stream.read())

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._fault()
        try:
            return self.objects[self._strip_protocol(path)][start:end]
        except KeyError:
            raise FileNotFoundError(path) from None

    def get_file(self, rpath, lpath, **kwargs):
        content = self.cat_file(rpath)
        with open(lpath, "wb") as stream:
            stream.write(content)

    def _open(self, path, mode="rb", **kwargs):
        assert mode == "rb"
        return io.BytesIO(self.cat_file(path))

    def info(self, path, **kwargs):
        self._fault()
        path = self._strip_protocol(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.objects[path]), "type": "file"}

    def ls(self, path, detail=True, **kwargs):
        assert not detail
        self._fault()
        start = self._strip_protocol(path) + "/"
        found = {start + name[len(start) :].split("/")[0] for name in list(self.objects) if name.startswith(start)}
        if not found:
            raise FileNotFoundError(path)
        return sorted(found)

    def rm_file(self, path):
        self._fault()
        path = self._strip_protocol(path)
        if self.objects.pop(path, None) is None:
            raise FileNotFoundError(path)
        self.deletes.append(path)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
