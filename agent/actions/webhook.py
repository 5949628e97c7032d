"""Posts to a person's receiver, beside the act loop: a CloudEvent, signed as Standard Webhooks are.

Whoever receives it may get it more than once, and knows it by its id. What is not taken is posted again, ever more
seldom. (cloudevents.io, 1.0, structured JSON; standardwebhooks.com.)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Mapping
from http import HTTPStatus

from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from agent.actions.deadline import Deadline, bound
from agent.actions.leases import Clock
from agent.config.neighbour_settings import Webhook
from agent.model.steps import Post
from agent.model.text import printable, rfc3339

_WHOLE_S = 10.0  # of one call, whatever the receiver does
_PAUSES_S = (5.0, 15.0, 60.0, 300.0)  # after the first, second … call in vain
_PREFIX = "whsec_"  # of a secret in the form that the libraries of Standard Webhooks make


class Receiver:
    """One receiver. It is asked once at a time, and nobody waits for it."""

    def __init__(self, settings: Webhook, node: str, clock: Clock, wall: Clock) -> None:
        self._settings, self._node, self._clock, self._wall = settings, node, clock, wall
        self._pools = bound(PoolManager(num_pools=1))
        self._lock = threading.Lock()
        self._calls = False  # whether a call is under way
        self._vain, self._next = 0, float("-inf")  # how many calls were in vain, and when the next one may begin
        self.taken: frozenset[str] = frozenset()  # ids
        self.trouble = ""  # of the last call

    def post(self, step: Post) -> bool:
        """Return at once: whether the receiver has taken it. Else a call is under way, or its turn comes."""
        with self._lock:
            if step.id in self.taken:
                return True
            if self._calls or self._clock() < self._next:
                return False
            self._calls = True
        try:
            threading.Thread(target=self._call, args=(step,), name="webhook", daemon=True).start()
        except RuntimeError as error:  # the container may start no more of them just now
            self._over(step, str(error))
        return False

    def _call(self, step: Post) -> None:
        trouble = "the call broke off"
        try:
            trouble = self._sent(step)
        except (OSError, HTTPError, ValueError) as error:
            trouble = printable(f"{type(error).__name__}: {error}")[:200]
        finally:
            self._over(step, trouble)

    def _over(self, step: Post, trouble: str) -> None:
        with self._lock:
            self._calls, self.trouble = False, trouble
            if trouble:
                self._next = self._clock() + _PAUSES_S[min(self._vain, len(_PAUSES_S) - 1)]
                self._vain += 1
            else:
                self._vain, self.taken = 0, self.taken | {step.id}

    def _sent(self, step: Post) -> str:
        """Why it was not taken; empty if it was. OSError, HTTPError, ValueError."""
        body = json.dumps(event_of(step, self._node, rfc3339(self._wall(), "seconds"))).encode()
        secret = self._settings.secret_file.read_text(encoding="utf-8").strip()  # anew each time: it may be rotated
        headers = {
            "Content-Type": "application/cloudevents+json; charset=utf-8",
            "User-Agent": "gpu-health-agent",
            **signed(secret, step.id, int(self._wall()), body),
        }
        with Deadline(_WHOLE_S):
            url = str(self._settings.url)
            answer = self._pools.urlopen(
                "POST", url, body=body, headers=headers, retries=False, redirect=False, preload_content=False
            )
            answer.close()
        taken = HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES
        return "" if taken else f"it answered {answer.status}"


def event_of(step: Post, node: str, now: str) -> dict[str, object]:
    """The CloudEvent; ``now`` is RFC 3339. An event that is posted again has the same id and another time."""
    return {
        "specversion": "1.0",
        "id": step.id,
        "type": f"gpu-health-agent.replacement.{step.word}",
        "source": f"/gpu-health-agent/nodes/{node}",
        "subject": step.subject,
        "time": now,
        "datacontenttype": "application/json",
        "data": {"node": node, **step.data},
    }


def signed(secret: str, id: str, at: int, body: bytes) -> Mapping[str, str]:  # noqa: A002 - the standard's word
    """The three headers. ``at``: Unix seconds. ValueError for a secret that begins like one of theirs and is none."""
    key = base64.b64decode(secret[len(_PREFIX) :], validate=True) if secret.startswith(_PREFIX) else secret.encode()
    if not key:
        raise ValueError("the secret is empty")
    mac = hmac.new(key, f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(mac).decode()}"
    return {"webhook-id": id, "webhook-timestamp": str(at), "webhook-signature": signature}
