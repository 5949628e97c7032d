"""The one way to a Kubernetes API server: a request with plain dicts in, a status and a plain dict out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import yaml

from agent.model.errors import CredentialsError, RefusedError, UnreachableError
from agent.model.text import unix_s
from agent.model.world import Condition, Taint

TIMEOUT_S = 10.0
# A watch is sent a bookmark each minute: one that is silent for longer is a connection that nobody holds any more.
_QUIET_S = 150.0
_LONGEST_EVENT_BYTES = 4 * 1024 * 1024
JSON = "application/json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
METADATA = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
# All that the API server says of a JSON Patch whose test fails (apiserver's patch.go keeps the reason to itself).
PATCH_FAILED = "the server rejected our request due to an error in our request"


class Api(Protocol):
    """HTTP to an API server, real or in memory. Raises Unreachable when no answer came.

    A watch is answered with its events, one by one as they come.
    """

    def __call__(
        self, method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, Any]: ...


def connect(kubeconfig: str | None, quiet_s: float = _QUIET_S) -> Api:
    """Credentials from a kubeconfig file, else from the pod's service account.

    An exported KUBECONFIG is not looked at: an agent must never land on a cluster that nobody named. ``quiet_s``: for
    so many seconds a watch may say nothing.
    """
    # The typed models of this library cost 20 MB and a second of CPU at start, so only its ApiClient is used.
    from kubernetes.client.api_client import ApiClient
    from urllib3.exceptions import HTTPError

    configuration = configure(kubeconfig)
    client = ApiClient(configuration)
    client.user_agent = "gpu-health-agent"

    def request(
        method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, Any]:
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": "gpu-health-agent"}
        # The token is read anew: a projected one is renewed on disk every hour.
        if authorization := configuration.get_api_key_with_prefix("BearerToken", alias="authorization"):
            if not (authorization.isascii() and authorization.isprintable()):
                raise CredentialsError("the token for the API server must be one line of ASCII")
            headers["authorization"] = authorization
        try:
            watches = "watch=true" in path
            patience = (TIMEOUT_S, quiet_s) if watches else TIMEOUT_S
            response = client.call_api(method, configuration.host + path, headers, body=body, _request_timeout=patience)
            if watches and response.status == HTTPStatus.OK:
                return response.status, _events(response.response)
            text = response.read()
        except (HTTPError, OSError) as error:
            raise UnreachableError(f"{configuration.host} does not answer: {error}"[:300]) from error
        try:
            return response.status, json.loads(text) if text else {}
        except (ValueError, RecursionError):
            return response.status, {"message": text[:300].decode(errors="replace")}

    return request


def _events(response: Any) -> Iterator[Any]:
    """A watch's events until the server ends it. UnreachableError where it breaks off, or says what makes no sense."""
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        for data in response.stream():
            *lines, rest = (rest + data).split(b"\n")
            yield from (json.loads(line) for line in lines if line.strip())
            if len(rest) > _LONGEST_EVENT_BYTES:
                raise ValueError("an event without an end")
    except (HTTPError, OSError, ValueError) as error:
        raise UnreachableError(f"the watch broke off: {error}"[:300]) from error
    finally:
        response.close()


def configure(kubeconfig: str | None) -> Any:
    """The library's Configuration, with the credentials that ``connect`` speaks of. CredentialsError."""
    from kubernetes.client.configuration import Configuration
    from kubernetes.config import incluster_config, kube_config
    from kubernetes.config.config_exception import ConfigException

    configuration = Configuration()
    configuration.retries = False  # the next round is the retry
    try:
        if kubeconfig:
            if not os.path.isfile(kubeconfig):
                raise CredentialsError(f"--kubeconfig: {kubeconfig} is not a file")
            kube_config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            incluster_config.load_incluster_config(client_configuration=configuration)
    # The library checks little: a file that is no kubeconfig may end in any of these.
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        where = f"--kubeconfig {kubeconfig}" if kubeconfig else "the pod's service account"
        raise CredentialsError(f"no credentials from {where}: {error}".partition("\n")[0]) from error
    return configuration


def ask(api: Api, method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON) -> Any:
    """A request that must succeed; RefusedError carries the server's sentence otherwise."""
    status, answer = api(method, path, body, content_type, accept)
    if 200 <= status < 300:
        return answer
    answer = answer if isinstance(answer, dict) else {}
    message = str(answer.get("message") or f"HTTP {status}")
    causes = (answer.get("details") or {}).get("causes") or ()
    messages = "; ".join(str(cause.get("message", "")) for cause in causes if cause.get("message"))
    reasons = tuple(str(cause.get("reason", "")) for cause in causes)
    if (status, content_type) == (HTTPStatus.UNPROCESSABLE_ENTITY, JSON_PATCH) and message.startswith(PATCH_FAILED):
        raise RefusedError(HTTPStatus.CONFLICT, "the object changed meanwhile: the JSON Patch's test failed")
    raise RefusedError(status, f"{message} {messages}".strip(), reasons)


def written_at(item: Mapping[str, Any]) -> float:
    """When the API server last took a write of an object, Unix seconds by its own clock; 0 where it doesn't tell."""
    metadata = item["metadata"]
    times = [metadata.get("creationTimestamp"), *(one.get("time") for one in metadata.get("managedFields") or ())]
    return max(unix_s(at) or 0.0 for at in times)


def taint_of(item: Mapping[str, str]) -> Taint:
    """One of a Node's, as the API server has it."""
    return Taint(item["key"], item.get("value", ""), item["effect"])


def condition_of(item: Mapping[str, str]) -> Condition:
    return Condition(item["type"], item["status"], item.get("reason", ""), item.get("message", ""))
