"""An HTTP proxy in front of inference replicas: one that hangs, fails or leaves costs the clients little, or nothing.

Each replica has a breaker (5 failures open it, after 60 s one request tries it). A request that was not sent, was
refused unread, or may be repeated goes to another replica (forwarding.py says when). Each replica gets so many requests
at once and no more: what is over is answered 503 with Retry-After, and nothing queues. What a replica has no GPU memory
for (507) goes to a smaller model, and everything while all large replicas are left alone. GET /status, /metrics,
/healthz and /readyz are the gateway's own; everything else is passed on, streams as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from attempt import LEFT, CutError
from bodies import RefusedError
from forwarding import Forwarder
from prometheus_client import generate_latest
from replicas import Limits, Pool

_log = logging.getLogger("gateway")


class Gateway:
    """The server, its own pages, and what it counts of each request."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self.draining = options, False
        share = options.most_open or (1 if options.smaller else 0.67)
        limits = Limits(options.breaker_failures, options.breaker_s, options.most_per_replica, share)
        self._large, self._smaller = Pool(options.replicas, limits), Pool(options.smaller, limits)
        self._forwarder = Forwarder(options, self._large, self._smaller)
        self._metrics = self._forwarder.metrics

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._strange])
        for page in (self.healthz, self.readyz, self.metrics, self.status):
            app.router.add_get(f"/{page.__name__}", page)
        app.router.add_route("*", "/{path:.*}", self.proxy)
        app.cleanup_ctx.append(self._reach_replicas)
        return app

    @web.middleware
    async def _strange(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What names no path (CONNECT, OPTIONS *) is refused as all else is, and counted."""
        return await (handler if request.match_info.http_exception is None else self.proxy)(request)

    async def _reach_replicas(self, _: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)  # the replicas' own limit counts
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        ) as self._forwarder.attempts.session:
            await self._resolve()
            looking = asyncio.create_task(self._look())
            yield
            looking.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._options.resolve_s)
            await self._resolve()

    async def _resolve(self) -> None:
        await self._large.resolve()
        await self._smaller.resolve()

    def drain(self) -> None:
        """Not ready, but serving: each connection ends after the answer that it waits for."""
        self.draining = self._forwarder.attempts.draining = True

    async def proxy(self, request: web.Request) -> web.StreamResponse:
        """One request of a client. One that leaves ends this task wherever it stands."""
        began, code = time.monotonic(), LEFT
        self._metrics.in_flight += 1
        try:
            response = await self._forwarder.forward(request)
            code = response.status
            return response
        except RefusedError as error:
            code = error.code
            return _say(error, close=self.draining or code in (501, 413, 408, 400))
        except CutError as error:
            code = error.code
            if request.transport and code == LEFT:  # what is written to it will never be read
                request.transport.abort()
            elif request.transport:  # so that the client knows: what it has is not whole
                request.transport.close()
            return web.Response()
        finally:
            self._metrics.in_flight -= 1
            self._metrics.requests.labels(code).inc()
            self._metrics.seconds.observe(time.monotonic() - began)

    async def healthz(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def readyz(self, _: web.Request) -> web.Response:
        ready = not self.draining and self._large.replicas
        return web.json_response({"draining": self.draining}, status=200 if ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def status(self, _: web.Request) -> web.Response:
        requests, retries = self._forwarder.budget.totals()
        return web.json_response(
            {
                "in_flight": self._metrics.in_flight,
                "body_bytes": self._forwarder.bodies.held_bytes,
                "window": {"requests": requests, "retries": retries},
                "replicas": {one.name: one.summary() for one in self._large.replicas},
                "smaller": {one.name: one.summary() for one in self._smaller.replicas},
            }
        )


def _say(error: RefusedError, close: bool) -> web.Response:
    response = web.json_response({"error": str(error)}, status=error.code)
    if error.retry_after_s:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if close:
        response.force_close()
    return response


async def serve(gateway: Gateway, options: argparse.Namespace) -> None:
    """Until SIGTERM, and as long after it as others need to learn of it and requests to end."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    runner = web.AppRunner(
        gateway.app(),
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        shutdown_timeout=options.drain_s,
    )
    await runner.setup()
    listener = socket.create_server(("", options.port), backlog=1024)
    await web.SockSite(runner, listener).start()
    _log.info("listening on port %d", listener.getsockname()[1])
    await terminated.wait()
    gateway.drain()
    await asyncio.sleep(options.linger_s)
    await runner.cleanup()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--replicas", required=True, help="host:port, of a headless Service or several by comma")
    add("--smaller", default="", help="the same for a smaller model: asked when GPU memory is out, or all others are")
    add("--port", type=int, default=8080, help="0: any free one")
    add("--connect-s", type=float, default=1, help="to a replica")
    add("--read-s", type=float, default=10, help="between two parts of a body or an answer, and for the first")
    add("--total-s", type=float, default=60, help="until an answer begins, retries included")
    add("--stream-s", type=float, default=300, help="for an answer that has begun")
    add("--breaker-failures", type=int, default=5, help="in a row, which open a replica's breaker")
    add("--breaker-s", type=int, default=60, help="until one request tries it again")
    add(
        "--failures",
        default="refused,connection,timeout,gpu_lost,5xx",
        help="what counts as failure: these, stream (one that stalls), or single codes in place of 5xx",
    )
    add("--most-open", type=float, help="share of replicas left alone at once (default: 0.67; 1 with --smaller)")
    add("--attempts", type=int, default=2, help="at replicas that may have begun with a request")
    add("--retry-share", type=float, default=0.2, help="extra requests at most, as a share of those of the window")
    add("--retry-floor", type=int, default=10, help="extra requests of a window that are allowed in any case")
    add("--retry-window-s", type=float, default=10)
    add("--repeatable", default="/infer", help="paths, by comma, whose POSTs may be repeated: a model has no memory")
    add("--full-codes", default="", help="by comma, which say that a replica has no room, as 503 with Retry-After does")
    add("--most-per-replica", type=int, default=16, help="requests at once; more are answered 503")
    add("--largest-mib", type=int, default=16, help="of a request's body")
    add("--bodies-mib", type=int, default=512, help="of all bodies at once; half of the memory limit is right")
    add("--resolve-s", type=float, default=2, help="between two look-ups of the replicas")
    add("--linger-s", type=float, default=3, help="served after SIGTERM, while clients learn of it")
    add("--drain-s", type=int, default=60, help="for the last requests; within the grace period")
    return parser.parse_args()


def _ours(record: logging.LogRecord) -> bool:
    """What a client sends that is no HTTP is not worth a traceback each: it is answered 400."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: a quarter less CPU a request."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("aiohttp.server").addFilter(_ours)
    options = arguments()
    with asyncio.Runner(loop_factory=_loop()) as runner:
        runner.run(serve(Gateway(options), options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
