"""A command in a container, run through the API server as ``kubectl exec`` does; for the drill alone, not the agent."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol
from urllib.parse import quote

from agent.actions.credentials import authorization, configure
from agent.model.errors import RefusedError, UnreachableError
from agent.model.text import read_json

_OUTPUT, _ERRORS, _STATUS = 1, 2, 3  # channels of the protocol v4.channel.k8s.io


class Execute(Protocol):
    """What the command said. RefusedError if it could not be run or ended badly, UnreachableError without an answer."""

    def __call__(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> str: ...


def executor(kubeconfig: str | None, timeout_s: float = 30.0, connect_s: float = 10.0) -> Execute:
    """Credentials as for ``connect``. A command may take ``timeout_s``, the way to it ``connect_s``."""
    from kubernetes.stream.ws_client import WSClient, get_websocket_url
    from websocket import WebSocketBadStatusException, WebSocketException

    configuration = configure(kubeconfig)

    def execute(namespace: str, pod: str, container: str, command: Sequence[str]) -> str:
        # The library bounds no handshake, nor a frame that breaks off: what hangs there is left behind.
        said: Future[str] = Future()

        def work() -> None:
            try:
                said.set_result(run(namespace, pod, container, command))
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
                said.set_exception(error)

        threading.Thread(target=work, name="exec", daemon=True).start()
        try:
            return said.result(connect_s + timeout_s)
        except TimeoutError:
            whole_s = connect_s + timeout_s
            raise UnreachableError(f"{configuration.host} does not answer an exec within {whole_s:g} s") from None

    def run(namespace: str, pod: str, container: str, command: Sequence[str]) -> str:
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}/exec"
        asked = [("container", container), ("stdout", "true"), ("stderr", "true"), ("command", list(command))]
        headers = {"sec-websocket-protocol": "v4.channel.k8s.io"}
        if credential := authorization(configuration):
            headers["authorization"] = credential
        try:
            client = WSClient(configuration, get_websocket_url(configuration.host + path, asked), headers, False)
            try:
                client.run_forever(timeout=timeout_s)
                ended = not client.is_open()
                said, wrong, status = (client.read_channel(number) for number in (_OUTPUT, _ERRORS, _STATUS))
            finally:
                client.sock.shutdown()  # its close leaves the socket open where the server said goodbye first
        except WebSocketBadStatusException as error:
            raise RefusedError(error.status_code, _field(error.resp_body, "message") or str(error)) from error
        except (OSError, WebSocketException) as error:
            raise UnreachableError(f"{configuration.host} does not answer: {error}"[:300]) from error
        if not ended or not status:
            raise UnreachableError(f"{command[0]} in {namespace}/{pod} did not end within {timeout_s:.0f} s")
        if _field(status, "status") != "Success":
            why = wrong or _field(status, "message")
            raise RefusedError(0, f"{command[0]} in {namespace}/{pod}: {why.strip()[-300:]}")
        return str(said)

    return execute


def _field(text: bytes | str | None, name: str) -> str:
    try:
        return str(read_json(text or "{}").get(name, ""))
    except (ValueError, AttributeError):
        return ""
