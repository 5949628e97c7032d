"""One attempt of one request at one replica: asked, the answer judged, and passed to the client as it comes."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from bodies import Body, RefusedError
from multidict import CIMultiDict
from yarl import URL

OUT_OF_MEMORY = 507
GPU_LOST = "X-GPU-Lost"  # a replica's header: the request may be what killed its GPU
LEFT = 499  # a client that went away, as nginx counts it; nobody gets this answer
_SMALL_BYTES = 64 << 10  # an answer up to here is whole before any of it goes out, so that a torn one can be repeated
_HOP = {
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-connection",
    "host",
    "expect",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a replica, as far as it is known before any of it goes out."""

    status: int
    reason: str | None
    headers: CIMultiDict[str]
    begin: bytes
    whole: bool


class AttemptError(Exception):
    """The client has seen nothing of this attempt. ``kind`` is what the metrics call it."""

    def __init__(self, kind: str, code: int, why: str, answer: Answer | None = None) -> None:
        super().__init__(why)
        self.kind, self.code, self.answer = kind, code, answer
        self.untaken = kind in ("refused", "full")  # the replica did nothing about it


class CutError(Exception):
    """The answer broke off on its way to the client: the replica's doing, or its own if it is LEFT."""

    def __init__(self, kind: str, code: int) -> None:
        super().__init__(kind)
        self.kind, self.code = kind, code


class Attempts:
    """How a replica is asked. ``session`` is set once a loop runs."""

    session: aiohttp.ClientSession

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self.draining = options, False
        self._full = set(options.full_codes.split(","))

    async def run(
        self,
        name: str,
        request: web.BaseRequest,
        body: Body,
        deadline: float,
        last_resort: bool,
        begins: Callable[[], object],
    ) -> web.StreamResponse:
        """The answer of the replica of that name, sent. AttemptError until its first byte goes out, then CutError.

        ``deadline`` is when it must have begun at the latest; ``begins`` hears that it has, however long it lasts. The
        last resort hands nothing on for want of memory.
        """
        options, begun = self._options, False
        begins_by = min(deadline, time.monotonic() + options.read_s)  # one that comes drop by drop is as good as none
        asked = self.session.request(
            request.method,
            URL(f"http://{name}{request.raw_path}", encoded=True),
            headers=_inward(request),
            data=body if body.size else None,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.connect_s, sock_read=options.read_s),
            allow_redirects=False,
        )
        try:
            async with asyncio.timeout_at(begins_by) as clock, asked as got:
                answer = await _begin(got)
                if answer.whole:
                    self._judge(answer, last_resort)
                begun = True
                begins()
                clock.reschedule(time.monotonic() + options.stream_s)
                return await self.send(request, answer, got.content)
        except (aiohttp.ClientError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            if begun:
                stalls = isinstance(error, aiohttp.ServerTimeoutError)  # else it came, and lasted too long
                kind = "stream" if stalls else "long" if late else "connection"
                raise CutError(kind, 504 if late else 502) from error
            why = f"the replica did not answer ({type(error).__name__})"
            if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                raise AttemptError("refused", 502, why) from error
            raise AttemptError("timeout" if late else "connection", 504 if late else 502, why) from error
        except ValueError as error:
            raise RefusedError(400, f"the request can't be passed on: {error}") from error

    async def send(
        self, request: web.BaseRequest, answer: Answer, rest: aiohttp.StreamReader = aiohttp.EMPTY_PAYLOAD
    ) -> web.StreamResponse:
        """To the client, as it comes. CutError if that does not take it."""
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=answer.headers)
        if self.draining:
            response.force_close()
        await self._taken(response.prepare(request))
        if answer.whole:
            await self._taken(response.write_eof(answer.begin))
            return response
        if answer.begin:
            await self._taken(response.write(answer.begin))
        async for part in rest.iter_any():
            await self._taken(response.write(part))
        await self._taken(response.write_eof())
        return response

    async def _taken(self, writing: Coroutine[Any, Any, object]) -> None:
        """A client that takes nothing for as long as a replica may give nothing has left."""
        try:
            async with asyncio.timeout(self._options.read_s):
                await writing
        except (TimeoutError, ConnectionError) as error:
            raise CutError("left", LEFT) from error

    def _judge(self, answer: Answer, last_resort: bool) -> None:
        """Of a whole answer; what is longer than that is no mere word of failure."""
        if answer.status == OUT_OF_MEMORY:
            if not last_resort:
                raise AttemptError("out_of_memory", answer.status, "out of GPU memory", answer)
        elif str(answer.status) in self._full or (answer.status == 503 and "Retry-After" in answer.headers):
            raise AttemptError("full", answer.status, "the replica has no room", answer)
        elif answer.status >= 500:
            kind = "gpu_lost" if GPU_LOST in answer.headers else "error"
            raise AttemptError(kind, answer.status, f"the replica answered {answer.status}", answer)


async def _begin(got: aiohttp.ClientResponse) -> Answer:
    """All of an answer that is short, and of one that says that something went wrong; else its head."""
    headers, held, length = passed(got.raw_headers), bytearray(), got.content_length
    whole = got.status >= 500 or (length is not None and length <= _SMALL_BYTES)
    while whole and (part := await got.content.readany()):
        held += part
        whole = len(held) <= _SMALL_BYTES
    return Answer(got.status, got.reason, headers, bytes(held), whole)


def passed(headers: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    """Without those that concern one connection (RFC 9110, 7.6.1)."""
    pairs = [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in headers]
    named = {one.strip().lower() for name, value in pairs if name.lower() == "connection" for one in value.split(",")}
    return CIMultiDict((name, value) for name, value in pairs if name.lower() not in _HOP | named)


def _inward(request: web.BaseRequest) -> CIMultiDict[str]:
    headers = passed(request.raw_headers)
    headers.popall("Content-Length", None)  # of the body that we hold
    before = headers.popall("X-Forwarded-For", [])
    headers["X-Forwarded-For"] = ", ".join((*before, request.remote or "unknown"))
    return headers
