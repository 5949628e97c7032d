"""A watch on our own Node: at what can't wait for the next look the act loop looks at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from agent.model.cluster_client import Annotations, ClusterClient, Labels
from agent.model.errors import CredentialsError, RefusedError, UnreachableError
from agent.model.names import DISMISS_ANNOTATION, DRILL_ANNOTATION, MANAGED_LABEL
from agent.remediation.other_controllers import upgrading

_SHORT_S = 60.0  # a watch that ended sooner is begun anew after a growing pause
_LONGEST_PAUSE_S = 60.0
_REFUSED_S = 600.0  # manifests older than the agent grant no watch
_CLIENT_S = 0.2


class NodeWatch:
    """One watch after the other; without one the act loop looks once a minute, as the log says."""

    def __init__(
        self,
        client: Callable[[], ClusterClient | None],
        heard: Callable[[], object],
        tell: Callable[..., None],
        pause_s: float = 2.0,
    ) -> None:
        """``heard`` is called when the Node says something else that can't wait; ``pause_s``: the first pause."""
        self._client, self._heard, self._tell = client, heard, tell
        self._urgent: object = None
        self._trouble = ""
        self._stop, self._pause_s = threading.Event(), pause_s

    def start(self) -> None:
        threading.Thread(target=self._loop, name="watch", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _loop(self) -> None:
        short = 0
        while not self._stop.is_set():
            began = time.monotonic()
            if (client := self._client()) is None:
                self._stop.wait(_CLIENT_S)
                continue
            pause_s = self._follow(client)
            short = min(short + 1, 6) if time.monotonic() - began < _SHORT_S else 0
            pause_s = pause_s or min(_LONGEST_PAUSE_S, self._pause_s * 2**short)
            self._stop.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret

    def _follow(self, client: ClusterClient) -> float:
        """One watch, until it ends; the least pause before the next in seconds, 0 if any will do."""
        try:
            for labels, annotations in client.words():
                self._note("")
                if (urgent := _urgent(labels, annotations)) != self._urgent:
                    self._urgent = urgent
                    self._heard()
                if self._stop.is_set():
                    break
        except (CredentialsError, UnreachableError):  # the act loop says so
            return 0.0
        except RefusedError as refused:
            self._note(str(refused))
            return _REFUSED_S if refused.status == HTTPStatus.FORBIDDEN else 0.0
        except Exception as error:  # noqa: BLE001 - a bug must not end the thread
            self._note(repr(error))
        return 0.0

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            self._tell("the Node can't be watched: the agent looks at it once a minute", level="warning", why=trouble)
        self._trouble = trouble


def _urgent(labels: Labels, annotations: Annotations) -> tuple[str | None, ...]:
    """Who waits for the GPUs, and what a person wrote on the Node."""
    words = (annotations.get(key) for key in (DISMISS_ANNOTATION, DRILL_ANNOTATION))
    return upgrading(labels), labels.get(MANAGED_LABEL), *words
