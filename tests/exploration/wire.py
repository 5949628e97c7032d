"""The way to the API server: requests get lost, come late, or lose their answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.model.errors import UnreachableError
from tests.exploration.server import REFUSALS
from tests.exploration.watch import Watch
from tests.life import Killed

if TYPE_CHECKING:
    from tests.exploration.fleet import Fleet
    from tests.exploration.node import Node

TIMEOUT_S, LATEST_S = 10.0, 290.0  # a request arrives within five minutes, or never
_CACHED_S = 5.0  # how old a list may be that names no version
_STATUSES = (429, 500, 503, 409)


@dataclass
class Weather:
    """How a request fares: shares of all requests."""

    lost: float = 0.0
    late: float = 0.0  # it arrives later, and its sender hears nothing
    mute: float = 0.0  # it arrives, and its answer does not
    refused: float = 0.0
    cut: set[str] = field(default_factory=set)  # nodes that reach nothing


class Wire:
    """What the agents' clients ask through."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.server, self.weather = fleet, fleet.server, Weather()
        self.watch = Watch(fleet)
        self.when_late: Callable[[Node], object] = bool  # what else happens while a write is on its way
        self._cached: dict[str, tuple[float, tuple[int, Any]]] = {}

    def ask(self, node: Node, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        """UnreachableError."""
        fleet, chance, weather = self.fleet, self.fleet.chance, self.weather
        process = node.process
        fleet.between(node, reads=method == "GET")
        if node.process != process or not fleet.lives(process):  # its agent ended meanwhile
            raise Killed
        luck = chance.random()
        if node.name in weather.cut or luck < weather.lost:
            return self._silence()
        self.watch.sent(node, method, path, *rest[:1])
        if luck < weather.lost + weather.late and method != "GET":
            process = node.process

            def arrives() -> None:
                if fleet.outlives or fleet.lives(process):
                    self._arrive(node, method, path, *rest, **more)

            fleet.later(chance.uniform(TIMEOUT_S, LATEST_S), arrives)
            self.when_late(node)
            return self._silence()
        if luck > 1 - weather.refused:
            if chance.random() < 0.3:
                self._arrive(node, method, path, *rest, **more)
            return chance.choice(_STATUSES), {"message": "the server has trouble"}
        answer = self._arrive(node, method, path, *rest, **more)
        return self._silence() if luck > 1 - weather.refused - weather.mute else answer

    def _silence(self) -> tuple[int, Any]:
        self.fleet.passes(TIMEOUT_S)
        raise UnreachableError("timed out")

    def _arrive(self, node: Node, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if "resourceVersion=0" in path:  # any answer that the server once had will do
            at, answer = self._cached.get(path, (float("-inf"), (0, None)))
            if self.fleet.now - at > _CACHED_S:
                answer = self.server(method, path, *rest, **more)
                self._cached[path] = self.fleet.now, answer
            return answer
        kind, namespace, name = _object(path)
        if method != "GET" and kind in self.server.refuses:
            return REFUSALS[self.server.refuses[kind]]
        before = self.server._objects.get((kind, namespace, name))
        answer = self.server(method, path, *rest, **more)
        if method != "GET" and answer[0] < 300:
            name = name or str(rest[0]["metadata"]["name"])
            self.watch.written(
                node, f"{method} {path}", kind, before, self.server._objects.get((kind, namespace, name))
            )
        return answer


def _object(path: str) -> tuple[str, str, str]:
    """Kind, namespace and name; no name for a list."""
    parts = path.partition("?")[0].split("/")
    parts = parts[3:] if parts[1] == "api" else parts[4:]
    namespace = parts[1] if parts[0] == "namespaces" else ""
    parts = parts[2:] if namespace else parts
    return parts[0], namespace, (*parts, "")[1]
