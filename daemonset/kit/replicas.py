"""Upstreams behind a name, each with a circuit breaker and so many requests at once. Needs ``circuitbreaker`` alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from circuitbreaker import CircuitBreaker

_log = logging.getLogger("gateway")


class FailedError(Exception):
    """A replica did not answer, or with an error of its own."""

    def __init__(self, code: int, why: str, untouched: bool) -> None:
        super().__init__(why)
        self.code, self.untouched = code, untouched  # untouched: the replica did nothing about it


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica is given before it is left alone."""

    failures: int = 5  # in a row, which open its breaker
    open_s: int = 60  # until one request tries it again
    most: int = 16  # requests at once


class Replica:
    """One upstream and what is known of it."""

    def __init__(self, host: str, port: int, limits: Limits) -> None:
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.breaker = CircuitBreaker(limits.failures, limits.open_s, FailedError, self.name)
        self.in_flight, self._most, self._tried = 0, limits.most, False

    @property
    def state(self) -> str:
        return str(self.breaker.state)

    def usable(self) -> bool:
        """The library lets everything through once half open; one request is enough to learn."""
        return not self.breaker.opened and not (self._tried and self.state == "half_open")

    def has_room(self) -> bool:
        return self.usable() and self.in_flight < self._most

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        trial = self.state == "half_open"
        self.in_flight += 1
        self._tried = self._tried or trial
        try:
            yield
        finally:
            self.in_flight -= 1
            if trial:
                self._tried = False

    def note(self, failure: FailedError | None) -> None:
        """An outcome; none for a client that went away. What began before the breaker opened says nothing new."""
        if not self.breaker.opened:
            with contextlib.suppress(FailedError), self.breaker:
                if failure:
                    raise failure

    def summary(self) -> dict[str, object]:
        """For a person."""
        breaker = self.breaker
        return {
            "breaker": self.state,
            "failures": breaker.failure_count,
            "tried_again_in_s": max(0, breaker.open_remaining) if breaker.opened else 0,
            "in_flight": self.in_flight,
        }


class Pool:
    """The replicas behind names: a headless Service, or a list of hosts. Looked up again and again."""

    def __init__(self, targets: str, limits: Limits) -> None:
        self._targets = [one.strip().rpartition(":") for one in targets.split(",") if one.strip()]
        self._limits = limits
        self._found: dict[str, dict[tuple[str, int], Replica]] = {}

    @property
    def replicas(self) -> list[Replica]:
        return [replica for found in self._found.values() for replica in found.values()]

    def pick(self, tried: Iterable[Replica]) -> Replica | None:
        """The least busy, so that one that hangs gets little before its breaker opens."""
        free = [replica for replica in self.replicas if replica.has_room() and replica not in tried]
        return min(free, key=lambda replica: (replica.in_flight, random.random()), default=None)  # noqa: S311 - a tie

    async def resolve(self) -> None:
        """A name that fails for a while keeps its replicas: their breakers tell whether they live."""
        for host, _, port in self._targets:
            try:
                answers = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            except OSError as error:
                _log.warning("%s does not resolve: %s", host, error)
                continue
            known, name = self._found.get(f"{host}:{port}", {}), f"{host}:{port}"
            addresses = sorted({(str(answer[4][0]), int(port)) for answer in answers})
            self._found[name] = {key: known.get(key) or Replica(*key, self._limits) for key in addresses}
