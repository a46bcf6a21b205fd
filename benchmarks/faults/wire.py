"""A wire between a client and a server on this machine that drops, stalls and cuts, by chance."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from types import TracebackType

__all__ = ["FaultyWire"]

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)


class FaultyWire:
    """A TCP proxy on loopback; a share of the requests through it goes wrong.

    A request that goes wrong is dropped before the server sees it, cut half-way, or stalls until the client or the wire
    gives up; or the server carries it out and the answer is lost or cut half-way.

    Args:
        port: the server's, on 127.0.0.1.
        rate: share of the requests that go wrong.
        seed: of the choice.
        stall_s: how long a stalled connection stays open.
    """

    kinds = ("drop", "stall", "cut request", "lose answer", "cut answer")

    def __init__(self, port: int, *, rate: float, seed: int = 0, stall_s: float = 1.0) -> None:
        self.rate, self.faults = rate, Counter[str]()
        self._server, self._stall_s = port, stall_s
        self._draw, self._lock = random.Random(seed), threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open = True

    def __enter__(self) -> FaultyWire:
        """Listen."""
        threading.Thread(target=self._accept, name="faulty-wire", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no more; connections end with their clients."""
        self._open = False
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def calm(self) -> None:
        """Let everything through from now on."""
        self.rate = 0.0

    def _accept(self) -> None:
        while self._open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), name="faulty-wire", daemon=True).start()

    def _fault(self) -> str | None:
        with self._lock:
            kind = self._draw.choice(self.kinds) if self._draw.random() < self.rate else None
            if kind is not None:
                self.faults[kind] += 1
        return kind

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            select.select([client], [], [])  # a server of one thread must not wait for who has nothing to ask
            with socket.create_connection(("127.0.0.1", self._server)) as server:
                if self._pump(client, server):
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _pump(self, client: socket.socket, server: socket.socket) -> bool:
        """Carry bytes both ways until one side ends, or a fault; what the client says after an answer is a request.

        Returns:
            Whether it was a fault.
        """
        fault, asking = None, False
        while self._open:
            for ready in select.select([client, server], [], [], 1.0)[0]:
                content = ready.recv(_CHUNK)
                if not content:
                    return False
                if ready is client:
                    if not asking:
                        asking, fault = True, self._fault()
                    if fault == "stall":
                        time.sleep(self._stall_s)
                    if fault in ("drop", "stall"):
                        return True
                    if fault == "cut request":
                        server.sendall(content[: len(content) // 2])
                        return True
                    server.sendall(content)
                else:
                    asking = False
                    if fault == "lose answer":
                        return True
                    if fault == "cut answer":
                        client.sendall(content[: len(content) // 2])
                        return True
                    client.sendall(content)
        return False
