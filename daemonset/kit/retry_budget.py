"""How many requests may be sent again, so that retries don't finish off what struggles. Python alone; copy it."""

from __future__ import annotations

import time
from collections import deque


class RetryBudget:
    """Retries as a share of requests in a sliding window: else retries are what a struggling service dies of.

    ``floor`` retries of a window are always allowed: of little traffic a share is nothing, and no danger either.
    """

    def __init__(self, share: float, window_s: float, floor: int = 0) -> None:
        self._share, self._window_s, self._floor = share, window_s, floor
        self._buckets: deque[list[float]] = deque()  # second, requests, retries

    def count(self) -> None:
        self._bucket()[1] += 1

    def take(self) -> bool:
        bucket = self._bucket()
        requests, retries = self.totals()
        if retries + 1 > max(self._floor, self._share * requests):
            return False
        bucket[2] += 1
        return True

    def totals(self) -> tuple[int, int]:
        self._bucket()
        return int(sum(bucket[1] for bucket in self._buckets)), int(sum(bucket[2] for bucket in self._buckets))

    def _bucket(self) -> list[float]:
        now = time.monotonic() // 1
        while self._buckets and self._buckets[0][0] <= now - self._window_s:
            self._buckets.popleft()
        if not self._buckets or self._buckets[-1][0] != now:
            self._buckets.append([now, 0, 0])
        return self._buckets[-1]
