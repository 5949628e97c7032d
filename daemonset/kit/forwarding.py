"""One request on its way: to a replica, to another where that may help and is allowed, and the answer back.

It is sent twice at most, for a request that kills a replica would kill the next, and never again once a replica said
that it lost its GPU. What a replica did not take (a refused connection, 503 with Retry-After) goes elsewhere once in
any case. Every other second try comes out of the retry budget, and only of what may be repeated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection

from aiohttp import web
from attempt import AttemptError, Attempts, CutError
from bodies import Bodies, Body, RefusedError
from gateway_metrics import GatewayMetrics
from replicas import Pool, Replica
from retry_budget import RetryBudget

_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}  # RFC 9110, 9.2.2
_FULL_S = 1  # for which a replica that said that it is full is asked last

Failed = tuple[Pool, Replica, AttemptError]


class Forwarder:
    """Where requests go."""

    def __init__(self, options: argparse.Namespace, large: Pool, smaller: Pool) -> None:
        self._options, self._large, self._smaller = options, large, smaller
        self.attempts = Attempts(options)
        self.bodies = Bodies(options.largest_mib << 20, options.bodies_mib << 20, options.read_s)
        self.budget = RetryBudget(options.retry_share, options.retry_window_s, options.retry_floor)
        self.metrics = GatewayMetrics(lambda: (*large.replicas, *smaller.replicas), lambda: self.bodies.held_bytes)
        self._repeatable = tuple(filter(None, options.repeatable.split(",")))
        self._failures = set(options.failures.split(","))

    async def forward(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer, which is sent. RefusedError before any of it is, CutError in its midst."""
        if "Upgrade" in request.headers or request.method == "CONNECT":
            raise RefusedError(501, "the gateway speaks plain HTTP/1.1 only: no WebSocket, no h2c, no tunnel")
        if not request.raw_path.startswith("/"):
            raise RefusedError(400, "the request's target must be a path")
        deadline = time.monotonic() + self._options.total_s  # of the clock that the loop goes by too
        if not self._pool().pick():
            raise self._shed()  # before its body is read
        async with self.bodies.of(request, deadline) as body:
            self.budget.count()
            return await self._send(request, body, deadline)

    def _pool(self, tried: Collection[Replica] = ()) -> Pool:
        """The smaller model stands in where all large replicas are left alone, not where they are busy."""
        return self._smaller if self._smaller.replicas and self._large.exhausted(tried) else self._large

    def _shed(self) -> RefusedError:
        self.metrics.shed.inc()
        return RefusedError(503, *self._pool().why_none())

    async def _send(self, request: web.BaseRequest, body: Body, deadline: float) -> web.StreamResponse:
        began = time.monotonic()
        pool, tried, failed = self._large, list[Replica](), list[Failed]()
        while True:
            if pool is self._large and (
                self._pool(tried) is self._smaller or (failed and failed[-1][2].kind == "out_of_memory")
            ):
                pool, tried = self._smaller, []
                self.metrics.fallbacks.inc()
            replica = pool.pick(tried)
            if not replica or not self._may_try([error for _, _, error in failed], request, deadline):
                break
            tried.append(replica)
            try:
                return await self._attempt(pool, replica, request, body, deadline, failed)
            except AttemptError as error:
                failed.append((pool, replica, error))
        if not failed:
            raise self._shed()
        if not self._repeats(request):
            self._blame(failed, {"error"})
        if all(replica.answered_at < began for _, replica, _ in failed):
            self._blame(failed, {"timeout"})
        last = failed[-1][2]
        if not last.answer:
            raise RefusedError(last.code, str(last), retry_after_s=1 if last.untaken else 0)
        return await self.attempts.send(request, last.answer)

    async def _attempt(
        self, pool: Pool, replica: Replica, request: web.BaseRequest, body: Body, deadline: float, failed: list[Failed]
    ) -> web.StreamResponse:
        outcome = "left"  # a client that leaves ends this task, and the request to the replica with it
        sent = time.monotonic()
        last_resort = pool is self._smaller or not self._smaller.replicas

        def begins() -> None:
            replica.answers()
            self._blame(failed, {"error", "timeout"})  # for another does better

        try:
            with replica.use():
                response = await self.attempts.run(replica.name, request, body, deadline, last_resort, begins)
            outcome = "ok"
            return response
        except (AttemptError, CutError) as error:
            outcome = error.kind
            raise
        finally:
            self.metrics.attempts.labels(outcome).inc()
            if outcome == "ok" or outcome in self._failures - {"timeout"}:
                pool.note(replica, failed=outcome != "ok")
            elif outcome == "full":
                replica.full_for(_FULL_S)
            elif outcome == "left" and replica.left(sent) >= self._options.read_s and "timeout" in self._failures:
                pool.note(replica, failed=True)  # all are less patient than the gateway: together they had a time-out

    def _blame(self, failed: list[Failed], kinds: Collection[str]) -> None:
        """For 5xx and time-outs, which may be the request's own: one client's must not open breakers.

        They are the replica's where another answered the same request. Where none did, what two replicas say is the
        request's, and a time-out the replicas' only if they answered nobody else meanwhile.
        """
        for pool, replica, error in failed:
            counts = {"timeout"} if error.kind == "timeout" else {"5xx", str(error.code)}
            if error.kind in kinds and self._failures & counts:
                pool.note(replica, failed=True)

    def _repeats(self, request: web.BaseRequest) -> bool:
        return request.method in _IDEMPOTENT or request.path.startswith(self._repeatable)

    def _may_try(self, failed: list[AttemptError], request: web.BaseRequest, deadline: float) -> bool:
        """By the rules at this file's head. Out of memory is no failure: a smaller model is another try."""
        failed = [error for error in failed if error.kind != "out_of_memory"]
        if not failed:
            return True
        taken = [error for error in failed if not error.untaken]
        if taken and (taken[-1].kind == "gpu_lost" or not self._repeats(request)):
            return False
        if len(taken) >= self._options.attempts or time.monotonic() >= deadline:
            return False
        if (taken or len(failed) > 1) and not self.budget.take():
            self.metrics.retries_refused.inc()
            return False
        self.metrics.retries.inc()
        return True
