"""The whole time of one request. When it is over we cut the connection, whatever we still wait for on it.

urllib3's own timeouts hold for each read alone: a server that sends a byte now and then, or ``100 Continue`` without
end, would hold its caller for ever. Only looking up a name takes its own time; in a pod the server is an address.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any, Self

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

_thread = threading.local()  # its deadline, while it makes a request


class Deadline:
    """The time of the one request that a thread makes inside it, over a ``bound`` pool's connections. TimeoutError."""

    def __init__(self, whole_s: float) -> None:
        self._whole_s, self._over = whole_s, False
        self.end = time.monotonic() + whole_s
        self._lock = threading.Lock()
        self._line: socket.socket | None = None

    def __enter__(self) -> Self:
        _thread.deadline = self
        _CUTTER.begins(self)
        return self

    def __exit__(self, *_: object) -> None:
        _CUTTER.ends(self)
        self._hold(None)
        del _thread.deadline
        if self._over:  # an answer that ends with its connection looks whole when that was cut
            raise TimeoutError(f"the whole answer did not come within {self._whole_s:g} s")

    @property
    def left_s(self) -> float:
        return max(0.001, self.end - time.monotonic())

    def holds(self, line: int) -> None:
        """``line`` is the file number of what is to be cut. We keep one of our own: TLS may take that one over."""
        self._hold(socket.fromfd(line, socket.AF_INET, socket.SOCK_STREAM))

    def _hold(self, line: socket.socket | None) -> None:
        with self._lock:
            if self._line:
                self._line.close()
            self._line = line
        if self._over:
            self.cut()

    def cut(self) -> None:
        self._over = True
        with self._lock, suppress(OSError):  # it may be cut already
            if self._line:
                self._line.shutdown(socket.SHUT_RDWR)


class _Cutter:
    """One thread for all requests. Another one for each takes a millisecond on a busy node, seven times before a taint.

    It sleeps until the first of their ends, and is woken only for one that ends before that.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way: set[Deadline] = set()
        self._wakes = float("inf")
        self._thread: threading.Thread | None = None

    def begins(self, one: Deadline) -> None:
        with self._changed:
            self._under_way.add(one)
            if self._thread is None:
                thread = threading.Thread(target=self._loop, name="deadlines", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the machine has no more: no request is made, and the next one tries
                    raise OSError("no thread could be started to end the request in its time") from error
                self._thread = thread
            if one.end < self._wakes:
                self._changed.notify()

    def ends(self, one: Deadline) -> None:
        with self._changed:
            self._under_way.discard(one)

    def _loop(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                over = {one for one in self._under_way if one.end <= now}
                self._under_way -= over
                for one in over:
                    one.cut()
                self._wakes = min((one.end for one in self._under_way), default=float("inf"))
                self._changed.wait(None if self._wakes == float("inf") else self._wakes - now)


_CUTTER = _Cutter()


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        """Connect to the first of the host's addresses that answers. OSError."""
        deadline, trouble = _thread.deadline, OSError("its name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self._dns_host, self.port, 0, socket.SOCK_STREAM):
            line = socket.socket(family, kind, protocol)
            try:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                line.settimeout(deadline.left_s)
                line.connect(address)
            except OSError as error:
                line.close()
                trouble = error
            else:
                line.settimeout(None)  # from here on it is cut
                deadline.holds(line.fileno())
                return line
        raise trouble

    def request(self, *arguments: Any, **more: Any) -> None:
        if self.sock is not None:  # one that served a request before
            _thread.deadline.holds(self.sock.fileno())
        super().request(*arguments, **more)


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def bound(pools: PoolManager) -> PoolManager:
    """The same pools, whose connections end with the ``Deadline`` that every request then needs around it."""
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pools
