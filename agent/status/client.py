"""Asks the agent that runs on this node."""

from __future__ import annotations

import http.client
import json
from typing import Any

from agent.config.settings import Config

_ASK_S = 3.0


def running(config: Config) -> dict[str, Any] | None:
    """The running agent's state; None if no agent answers on its port."""
    connection = http.client.HTTPConnection(config.http.address or "localhost", config.http.port, timeout=_ASK_S)
    try:
        connection.request("GET", "/state")
        answer = json.loads(connection.getresponse().read())
        return answer if isinstance(answer, dict) and "gpus" in answer else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
