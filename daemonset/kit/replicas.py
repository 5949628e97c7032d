"""Upstreams behind a name, each with a circuit breaker and so many requests at once. Needs ``circuitbreaker`` alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import socket
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from circuitbreaker import CircuitBreaker

_log = logging.getLogger("gateway")


class FailedError(Exception):
    """A replica did not answer, or with an error of its own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica is given before it is left alone."""

    failures: int = 5  # in a row, which open its breaker
    open_s: int = 60  # until one request tries it again
    most: int = 16  # requests at once
    most_open: float = 1.0  # share of the replicas whose breakers may be open; the others stay in use, whatever they do


class Replica:
    """One upstream and what is known of it."""

    def __init__(self, host: str, port: int, limits: Limits) -> None:
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.breaker = CircuitBreaker(limits.failures, limits.open_s, FailedError, self.name)
        self.in_flight, self._limits, self._tried = 0, limits, False
        self._full_until = self.answered_at = 0.0
        self._in_vain_s = self._left_at = 0.0

    @property
    def state(self) -> str:
        return str(self.breaker.state)

    def usable(self) -> bool:
        """The library lets everything through once half open; one request is enough to learn."""
        return not self.breaker.opened and not (self._tried and self.state == "half_open")

    def has_room(self) -> bool:
        return self.usable() and self.in_flight < self._limits.most

    def burden(self) -> tuple[bool, int, float]:
        """The least is asked first: one that said it is full after all others, and of equals any."""
        return time.monotonic() < self._full_until, self.in_flight, random.random()  # noqa: S311 - a tie

    def full_for(self, seconds: float) -> None:
        self._full_until = time.monotonic() + seconds

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

    def next_opens(self) -> bool:
        """Whether one more failure would open its breaker."""
        return self.state == "half_open" or self.breaker.failure_count + 1 >= self._limits.failures

    def answers(self) -> None:
        """An answer of it has begun, whoever asked."""
        self.answered_at, self._in_vain_s = time.monotonic(), 0.0

    def left(self, sent: float) -> float:
        """A client went away that had asked at ``sent``: how long clients have waited since an answer of it last began.

        In seconds, of which those that several waited at once count once. 0 if one began since ``sent``.
        """
        if self.answered_at >= sent:
            return 0.0
        now = time.monotonic()
        self._in_vain_s, self._left_at = self._in_vain_s + now - max(sent, self._left_at), now
        return self._in_vain_s

    def note(self, failed: bool) -> None:
        """An outcome. What began before the breaker opened says nothing new."""
        if not failed:
            self.answers()
        if not self.breaker.opened:
            with contextlib.suppress(FailedError), self.breaker:
                if failed:
                    raise FailedError

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

    def pick(self, tried: Collection[Replica] = ()) -> Replica | None:
        """The least busy, so that one that hangs gets little before its breaker opens.

        A second try, which may be the last, goes to the one that answered last: neither what fails at once nor what
        hangs, however idle it looks or little it has failed yet.
        """
        free = [replica for replica in self.replicas if replica.has_room() and replica not in tried]
        if tried:
            latest = max((replica.answered_at for replica in free), default=0)
            free = [replica for replica in free if replica.answered_at == latest]
        return min(free, key=Replica.burden, default=None)

    def exhausted(self, tried: Collection[Replica] = ()) -> bool:
        """Whether no other may be asked, however few requests it has: their breakers are open, or there is none."""
        return not any(replica.usable() and replica not in tried for replica in self.replicas)

    def why_none(self) -> tuple[str, int]:
        """Why no replica can be picked, and in how many seconds it is worth to ask again."""
        replicas = self.replicas
        if not replicas:
            return "no replica is known: its name resolves to none", 2
        if self.exhausted():
            waits = [replica.breaker.open_remaining for replica in replicas if replica.breaker.opened]
            return "every replica failed lately and is left alone", max(1, math.ceil(min(waits, default=1)))
        return "every replica has as many requests as it is given at once", 1

    def note(self, replica: Replica, failed: bool) -> None:
        """An outcome of one of ours.

        Where no more may be left alone, the one that has been for longest takes the place of the one that fails now:
        it may be well again, or had a bad moment that all had.
        """
        if failed and not replica.breaker.opened and replica.next_opens():
            others = [one for one in self.replicas if one is not replica and one.state != "closed"]
            if len(others) + 1 > self._limits.most_open * len(self.replicas):
                opened = [one.breaker for one in others if one.breaker.opened]
                if not opened:
                    return
                min(opened, key=lambda breaker: breaker.open_remaining).reset()
        replica.note(failed)

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
