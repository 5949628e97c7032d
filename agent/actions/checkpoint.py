"""Asks a pod to save its work before it is evicted. What it declares is hostile input: it reaches its own IP only."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

CHECKPOINT = "gpu-health-agent/checkpoint"
TIMEOUT = "gpu-health-agent/checkpoint-timeout-s"
REQUESTED = "gpu-health-agent/checkpoint-requested-at"
SAVED = "gpu-health-agent/checkpoint-saved-at"

_DEFAULT_S = 60.0
_ANSWER_S = 2.0  # the act loop waits for it, so a pod that never answers costs this much a round
_HTTP = re.compile(r"http:([1-9][0-9]{0,4})/([!-~]{0,200})")


@dataclass(frozen=True, slots=True)
class Declared:
    """What a pod's annotations say."""

    way: str = ""  # http, annotation, sigterm; empty: nothing declared
    port: int = 0
    path: str = ""
    timeout_s: float = _DEFAULT_S
    said: str = ""  # what is wrong with the declaration


def declared(annotations: Mapping[str, str]) -> Declared:
    """Read the annotations; a malformed one is said, and asks for nothing."""
    text = annotations.get(CHECKPOINT, "").strip()
    if not text:
        return Declared()
    try:
        timeout_s = float(annotations.get(TIMEOUT, _DEFAULT_S))
    except ValueError:
        timeout_s = -1.0
    if not 0 <= timeout_s <= 86400:
        return Declared(said=f"{TIMEOUT} must be seconds from 0 to 86400")
    if text in ("annotation", "sigterm"):
        return Declared(text, timeout_s=timeout_s)
    match = _HTTP.fullmatch(text)
    if not match or int(match[1]) > 65535:
        return Declared(said=f"{CHECKPOINT} must be http:<port>/<path>, annotation or sigterm")
    return Declared("http", int(match[1]), "/" + match[2], timeout_s)


def post(ip: str, port: int, path: str) -> tuple[bool, str]:
    """One POST to the pod: saved or not, and what it said. Redirects are not followed, its words are not believed."""
    try:
        connection = http.client.HTTPConnection(str(ip_address(ip)), port, timeout=_ANSWER_S)
    except ValueError:
        return False, "it has no IP address"
    try:
        connection.request("POST", path, headers={"Content-Length": "0", "User-Agent": "gpu-health-agent"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return False, f"its port {port} does not answer ({type(error).__name__})"
    finally:
        connection.close()
    if status == 200:
        return True, ""
    return False, "it is saving" if status == 202 else f"it answered {status}"
