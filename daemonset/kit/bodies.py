"""Bodies of requests, held so that they can be sent again: bounded each, in sum and in time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from aiohttp import Payload, web
from aiohttp.abc import AbstractStreamWriter

_LEAST_BYTES = 64 << 10  # what a request costs at least: its connection's buffers


class RefusedError(Exception):
    """A request that is not passed on, with the status that says why."""

    def __init__(self, code: int, why: str, retry_after_s: int = 0) -> None:
        super().__init__(why)
        self.code, self.retry_after_s = code, retry_after_s


class Body(Payload):
    """In the parts in which it came: never copied, and sent as often as it takes."""

    def __init__(self) -> None:
        super().__init__(None)
        self._parts: list[bytes] = []
        self.bytes = 0

    @property
    def size(self) -> int:
        return self.bytes

    def append(self, part: bytes) -> None:
        self._parts.append(part)
        self.bytes += len(part)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._parts).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for part in self._parts:
            await writer.write(part)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002
        await self.write(writer)


class Bodies:
    """All bodies that are held now. What would be too much is refused before the memory is gone."""

    def __init__(self, largest_bytes: int, most_bytes: int, wait_s: float) -> None:
        self._largest_bytes, self._most_bytes, self._wait_s = largest_bytes, most_bytes, wait_s
        self.held_bytes = 0

    @contextlib.asynccontextmanager
    async def of(self, request: web.BaseRequest, deadline: float) -> AsyncIterator[Body]:
        """The whole of it, held until the block ends. RefusedError, also where it is not there by the deadline."""
        body, counted = Body(), 0
        try:
            counted += self._hold(_LEAST_BYTES)
            async with self._in_time(deadline) as clock:
                async for part in request.content.iter_any():
                    clock.reschedule(min(deadline, time.monotonic() + self._wait_s))
                    body.append(part)
                    if body.bytes > self._largest_bytes:
                        raise RefusedError(413, f"the body has more than {self._largest_bytes} bytes")
                    if body.bytes > counted:
                        counted += self._hold(body.bytes - counted)
            yield body
        finally:
            self.held_bytes -= counted

    @contextlib.asynccontextmanager
    async def _in_time(self, deadline: float) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with asyncio.timeout_at(min(deadline, time.monotonic() + self._wait_s)) as clock:
                yield clock
        except TimeoutError:
            late = time.monotonic() >= deadline
            why = "was not whole in time" if late else f"stood still for {self._wait_s:g} s"
            raise RefusedError(408, f"the request's body {why}") from None
        except web.RequestPayloadError as error:
            raise RefusedError(400, f"the request's body can't be read: {error}") from None

    def _hold(self, size: int) -> int:
        if self.held_bytes + size > self._most_bytes:
            raise RefusedError(503, "the gateway holds as many bodies as it has memory for", retry_after_s=1)
        self.held_bytes += size
        return size
