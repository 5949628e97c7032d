"""What the gateway counts, under the names that the alert rules and the dashboard go by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from replicas import Replica

OUTCOMES = (
    "ok",
    "refused",  # no connection
    "connection",  # it broke
    "timeout",  # before the answer began
    "stream",  # after that
    "long",  # after all of the time it has, however steadily it came
    "full",
    "error",  # 5xx
    "out_of_memory",
    "gpu_lost",
    "left",  # the client did
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)


class GatewayMetrics(Collector):
    """One process has one of these."""

    def __init__(self, replicas: Callable[[], Iterable[Replica]], held_bytes: Callable[[], int]) -> None:
        self._replicas, self._held_bytes = replicas, held_bytes
        self.in_flight = 0
        REGISTRY.register(self)
        self.requests = Counter("gateway_requests", "Answers to clients; 499: the client left.", ["code"])
        self.seconds = Histogram(
            "gateway_request_seconds", "From the request to the end of its answer.", buckets=_SECONDS
        )
        self.attempts = Counter("gateway_attempts", "Requests sent to replicas.", ["outcome"])
        for outcome in OUTCOMES:  # from the start, so that the first of its kind is an increase
            self.attempts.labels(outcome)
        self.retries = Counter("gateway_retries", "Requests sent again.")
        self.retries_refused = Counter("gateway_retries_refused", "Retries that the budget forbade.")
        self.shed = Counter("gateway_shed", "Requests refused for want of room.")
        self.fallbacks = Counter("gateway_fallbacks", "Requests handed to the smaller model.")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Replicas come and go: their series go with them."""
        busy = GaugeMetricFamily("gateway_replica_in_flight", "Requests at a replica.", labels=["replica"])
        broken = GaugeMetricFamily("gateway_replica_breaker_open", "1: left alone; 0.5: on trial.", labels=["replica"])
        for replica in self._replicas():
            busy.add_metric([replica.name], replica.in_flight)
            broken.add_metric([replica.name], {"open": 1.0, "half_open": 0.5}.get(replica.state, 0.0))
        yield busy
        yield broken
        yield GaugeMetricFamily("gateway_in_flight", "Requests of clients under way.", self.in_flight)
        yield GaugeMetricFamily("gateway_body_bytes", "Bodies of requests that are held.", self._held_bytes())
