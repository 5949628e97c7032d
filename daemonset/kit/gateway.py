"""An HTTP proxy in front of inference replicas: one that hangs, fails or leaves costs the clients little, or nothing.

Each replica has a breaker (5 failures open it, after 60 s one request tries it). A request that was not sent, was
refused unread, or may be repeated goes to another replica, as long as such retries stay under 20 % of the requests of
10 s. Each replica gets so many requests at once and no more: what is over is answered 503 with Retry-After, and nothing
queues. What a replica has no GPU memory for (507) goes to a smaller model. GET /status, /metrics, /healthz and /readyz
are the gateway's own; everything else is passed on, streams as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator

import aiohttp
import uvicorn
from prometheus_client import REGISTRY, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from replicas import FailedError, Limits, Pool, Replica
from retry_budget import RetryBudget
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send
from yarl import URL

_OUT_OF_MEMORY = 507
_LARGEST_BYTES = 16 << 20
_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}  # RFC 9110, 9.2.2
_HOP = {
    b"connection",
    b"keep-alive",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"proxy-connection",
    b"host",
    b"expect",
}
_log = logging.getLogger("gateway")


class Gateway(Collector):
    """The proxy and what it says about itself."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self.draining = options, False
        limits = Limits(options.breaker_failures, options.breaker_s, options.most_per_replica)
        self._pool, self._smaller = Pool(options.replicas, limits), Pool(options.smaller, limits)
        self._budget = RetryBudget(options.retry_share, options.retry_window_s)
        self._repeatable = tuple(path for path in options.repeatable.split(",") if path)
        self._session: aiohttp.ClientSession
        self.in_flight = 0
        REGISTRY.register(self)
        self._requests = Counter("gateway_requests", "Answers to clients.", ["code"])
        self._seconds = Histogram("gateway_request_seconds", "From the request to the end of its answer.")
        self._attempts = Counter("gateway_attempts", "Requests sent to replicas.", ["outcome"])
        self._retries = Counter("gateway_retries", "Requests sent again.")
        self._refused = Counter("gateway_retries_refused", "Retries that the budget forbade.")
        self._shed = Counter("gateway_shed", "Requests refused for want of room.")
        self._fallbacks = Counter("gateway_fallbacks", "Requests handed to the smaller model.")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Replicas come and go: their series go with them."""
        busy = GaugeMetricFamily("gateway_replica_in_flight", "Requests at a replica.", labels=["replica"])
        broken = GaugeMetricFamily("gateway_replica_breaker_open", "1: left alone; 0.5: on trial.", labels=["replica"])
        for replica in (*self._pool.replicas, *self._smaller.replicas):
            busy.add_metric([replica.name], replica.in_flight)
            broken.add_metric([replica.name], {"open": 1.0, "half_open": 0.5}.get(replica.state, 0.0))
        yield busy
        yield broken
        yield GaugeMetricFamily("gateway_in_flight", "Requests of clients under way.", self.in_flight)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)  # the replicas' own limit counts
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        ) as self._session:
            await self._resolve()
            looking = asyncio.create_task(self._look())
            yield
            looking.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._options.resolve_s)
            await self._resolve()

    async def _resolve(self) -> None:
        await self._pool.resolve()
        await self._smaller.resolve()

    async def proxy(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of a client."""
        if scope["type"] != "http":
            return
        began = time.monotonic()
        code = 499  # the client left before there was an answer

        async def counted(message: Message) -> None:
            nonlocal code
            code = message.get("status", code)
            await send(message)

        usable = sum(replica.usable() for replica in self._pool.replicas)
        if self.in_flight >= usable * self._options.most_per_replica:
            self._shed.inc()
            await self._say(503, "no replica has room", scope, receive, counted)
        else:
            self.in_flight += 1
            try:
                await self._forward(Request(scope, receive), counted, began + self._options.total_s)
            finally:
                self.in_flight -= 1
        self._requests.labels(code).inc()
        self._seconds.observe(time.monotonic() - began)

    async def _forward(self, request: Request, send: Send, deadline: float) -> None:
        """To a replica, and to others while that may help and is allowed."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._options.read_s):
                async for part in request.stream():
                    body += part
                    if len(body) > _LARGEST_BYTES:
                        return await self._say(
                            413, f"more than {_LARGEST_BYTES} bytes", request.scope, request.receive, send
                        )
        except ClientDisconnect:
            return None
        except TimeoutError:
            return await self._say(408, "the request's body did not come", request.scope, request.receive, send)
        self._budget.count()
        pool, tried = self._pool, list[Replica]()
        failure = FailedError(503, "no replica has room", True)
        repeatable = request.method in _IDEMPOTENT or request.url.path.startswith(self._repeatable)
        again = False
        while replica := pool.pick(tried):
            if again:
                if not self._budget.take():
                    self._refused.inc()
                    break
                self._retries.inc()
            tried.append(replica)
            try:
                if await self._attempt(replica, request, bytes(body), send, deadline, final=pool is self._smaller):
                    return None
                # Out of memory. The smaller model's replicas are others: no retry upon the same ones.
                self._fallbacks.inc()
                pool, tried, again = self._smaller, [], False
                failure = FailedError(_OUT_OF_MEMORY, "out of GPU memory, and no smaller model has room", True)
                continue
            except FailedError as error:
                failure = error
            if failure.code == 0:  # the answer had begun: the broken connection tells the client
                return None
            if not (failure.untouched or repeatable) or time.monotonic() >= deadline:
                break
            again = True
        return await self._say(failure.code, str(failure), request.scope, request.receive, send)

    async def _attempt(
        self, replica: Replica, request: Request, body: bytes, send: Send, deadline: float, final: bool
    ) -> bool:
        """True once the client has its answer, False if the replica is out of memory. FailedError."""
        begun = False
        options = self._options
        timeout = aiohttp.ClientTimeout(
            total=max(0.001, deadline - time.monotonic()), sock_connect=options.connect_s, sock_read=options.read_s
        )
        query = request.scope["query_string"]
        target = request.scope["raw_path"] + (b"?" + query if query else b"")
        url = URL(f"http://{replica.name}{target.decode('latin-1')}", encoded=True)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in passed(request.headers.raw)]
        headers = [(name, value) for name, value in headers if name != "content-length"]  # of the body we read
        headers.append(("x-forwarded-for", request.client.host if request.client else "unknown"))
        data = io.BytesIO(body) if body else None  # bytes would be sent in one go, and all others wait
        with replica.use():
            try:
                async with self._session.request(
                    request.method, url, headers=headers, data=data, timeout=timeout, allow_redirects=False
                ) as answer:
                    if answer.status == _OUT_OF_MEMORY and not final and self._smaller.replicas:
                        self._attempts.labels("out_of_memory").inc()
                        return False
                    if answer.status >= 500 and answer.status != _OUT_OF_MEMORY:
                        full = answer.status == 503 and "Retry-After" in answer.headers  # it has no room: no failure
                        raise FailedError(answer.status, f"the replica answered {answer.status}", full)
                    begun = True
                    await self._pass_on(answer, send, deadline)
            except FailedError as error:
                if error.untouched:
                    self._attempts.labels("full").inc()
                else:
                    self._note(replica, error, "error")
                raise
            except (aiohttp.ClientError, TimeoutError) as error:
                untouched = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
                code = 0 if begun else 504 if isinstance(error, TimeoutError) else 502
                failed = FailedError(code, f"the replica did not answer ({type(error).__name__})", untouched)
                if begun and time.monotonic() >= deadline:  # a long stream or a slow client: not the replica's failure
                    self._attempts.labels("cut").inc()
                else:
                    self._note(replica, failed, "timeout" if isinstance(error, TimeoutError) else "connection")
                raise failed from error
        self._note(replica, None, "ok")
        return True

    async def _pass_on(self, answer: aiohttp.ClientResponse, send: Send, deadline: float) -> None:
        """As it comes. A client that does not read holds its place until the deadline, no longer."""
        async with asyncio.timeout_at(deadline):  # the loop's clock is the monotonic one
            headers = passed(answer.raw_headers)
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    def _note(self, replica: Replica, failure: FailedError | None, outcome: str) -> None:
        replica.note(failure)
        self._attempts.labels(outcome).inc()

    async def _say(self, code: int, why: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"Retry-After": "1"} if code == 503 else {}
        await JSONResponse({"error": why}, code, headers)(scope, receive, send)

    async def healthz(self, _: Request) -> Response:
        return JSONResponse({})

    async def readyz(self, _: Request) -> Response:
        return JSONResponse({"draining": self.draining}, 503 if self.draining or not self._pool.replicas else 200)

    async def metrics(self, _: Request) -> Response:
        return Response(generate_latest(), media_type="text/plain; version=0.0.4")

    async def status(self, _: Request) -> Response:
        requests, retries = self._budget.totals()
        return JSONResponse(
            {
                "in_flight": self.in_flight,
                "window": {"requests": requests, "retries": retries},
                "replicas": {one.name: one.summary() for one in self._pool.replicas},
                "smaller": {one.name: one.summary() for one in self._smaller.replicas},
            }
        )


def passed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without those that concern one connection (RFC 9110, 7.6.1)."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {one.strip().lower() for name, value in pairs if name == b"connection" for one in value.split(b",")}
    return [(name, value) for name, value in pairs if name not in _HOP | named]


class Server(uvicorn.Server):
    """uvicorn, which on SIGTERM first lingers: not ready, but serving."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, linger_s: float) -> None:
        super().__init__(config)
        self._gateway, self._linger_s = gateway, linger_s

    def handle_exit(self, *_: object) -> None:
        self._gateway.draining = True
        asyncio.get_running_loop().call_later(self._linger_s, setattr, self, "should_exit", True)


def listening(port: int) -> socket.socket:
    """A listener whose connections send at once. asyncio sees to that itself only for sockets that it has made."""
    listener = socket.create_server(("", port), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it
    return listener


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--replicas", required=True, help="host:port, of a headless Service or several by comma")
    add("--smaller", default="", help="the same for a smaller model, which is asked when GPU memory is out")
    add("--port", type=int, default=8080, help="0: any free one")
    add("--connect-s", type=float, default=1, help="to a replica")
    add("--read-s", type=float, default=10, help="between two parts of an answer, and for the first")
    add("--total-s", type=float, default=60, help="for a request, retries and stream included")
    add("--breaker-failures", type=int, default=5, help="in a row, which open a replica's breaker")
    add("--breaker-s", type=int, default=60, help="until one request tries it again")
    add("--retry-share", type=float, default=0.2, help="extra requests at most, as a share of those of the window")
    add("--retry-window-s", type=float, default=10)
    add("--repeatable", default="/infer", help="paths, by comma, whose POSTs may be repeated: a model has no memory")
    add("--most-per-replica", type=int, default=16, help="requests at once; more are answered 503")
    add("--resolve-s", type=float, default=2, help="between two look-ups of the replicas")
    add("--linger-s", type=float, default=3, help="served after SIGTERM, while clients learn of it")
    add("--drain-s", type=int, default=60, help="for the last requests; within the grace period")
    return parser.parse_args()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    options = arguments()
    gateway = Gateway(options)
    own = [Route(f"/{name}", getattr(gateway, name)) for name in ("healthz", "readyz", "metrics", "status")]
    app = Starlette(routes=[*own, Mount("/", gateway.proxy)], lifespan=gateway.lifespan)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=options.drain_s
    )
    listener = listening(options.port)
    _log.info("listening on port %d", listener.getsockname()[1])
    Server(config, gateway, options.linger_s).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
