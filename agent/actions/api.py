"""The one way to a Kubernetes API server: a request with plain dicts in, a status and a plain dict out."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from agent.actions.credentials import authorization, configure, unusable
from agent.model.errors import CredentialsError, RefusedError, UnreachableError
from agent.model.text import printable, unix_s
from agent.model.world import Condition, Taint

TIMEOUT_S = 10.0
MOST_BYTES = 32 << 20  # of an answer: twice as much, in pieces and whole, goes into the container's 192 MiB
# A watch is sent a bookmark every minute: one that is silent for longer is a connection that has no other end any more.
_QUIET_S = 150.0
_LONGEST_EVENT_BYTES = 4 * 1024 * 1024
_MOST_CHARS = 2000  # of a refusal's words: a webhook chooses them, and they are shown and logged
_TYPED = re.compile(r"/apis?/(?!.*/proxy/)")  # whatever is there says its kind; a pod's own answer need not
JSON = "application/json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
METADATA = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
# All that the API server says of a JSON Patch whose test fails (apiserver's patch.go keeps the reason to itself).
PATCH_FAILED = "the server rejected our request due to an error in our request"
_DENIED = re.compile(r"\bdenied (the )?request\b")  # a webhook's or a policy's no


class Api(Protocol):
    """HTTP to an API server, real or in memory. UnreachableError: no answer came.

    A watch is answered with its events, one by one as they come.
    """

    def __call__(
        self, method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, Any]: ...


def connect(
    kubeconfig: str | None,
    whole_s: float = TIMEOUT_S,
    most_bytes: int = MOST_BYTES,
    quiet_s: float = _QUIET_S,
    gzip: bool = False,
) -> Api:
    """Credentials from a kubeconfig file, else from the pod's service account.

    A request takes ``whole_s`` and brings ``most_bytes`` at most; a watch begins in that time, and then may say nothing
    for ``quiet_s``. ``gzip``: a large answer may come compressed, for a person whose link is slow. It costs the API
    server some CPU, so a thousand agents don't ask for it.

    An exported KUBECONFIG is not looked at: an agent must never land on a cluster that nobody named. CredentialsError.
    """
    # The typed models of this library cost 20 MB and a second of CPU at start, so only its connections are used.
    from kubernetes.client.rest import RESTClientObject
    from urllib3 import ProxyManager, Timeout
    from urllib3.exceptions import HTTPError

    from agent.actions.deadline import Deadline, bound

    configuration = configure(kubeconfig)
    try:
        pools = bound(RESTClientObject(configuration).pool_manager)
    except (HTTPError, ValueError, ImportError) as error:  # of the proxy's address; ImportError: SOCKS
        raise CredentialsError(f"the proxy to {configuration.host} can't be used: {error}") from error
    server = f"{configuration.host}{' (through its proxy)' if isinstance(pools, ProxyManager) else ''}"

    def request(
        method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, Any]:
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": "gpu-health-agent"}
        if gzip:
            headers["Accept-Encoding"] = "gzip"
        if credential := authorization(configuration):
            headers["Authorization"] = credential
        watches = "watch=true" in path
        sent = None if body is None else json.dumps(body).encode()
        try:
            with Deadline(whole_s):
                response = pools.urlopen(
                    method,
                    configuration.host + path,
                    body=sent,
                    headers=headers,
                    timeout=Timeout(read=quiet_s) if watches else None,
                    retries=False,  # the next round is the retry
                    redirect=False,
                    preload_content=False,
                    decode_content=gzip,
                )
                if watches and response.status == HTTPStatus.OK:
                    return response.status, _events(response)
                try:
                    text = response.read(most_bytes + 1)
                finally:
                    response.close()  # unless it was read to its end
        except (HTTPError, OSError, ValueError) as error:
            raise _trouble(configuration, server, error) from error
        if len(text) > most_bytes:
            raise UnreachableError(f"{server} answers {method} {path} with more than {most_bytes >> 20} MiB")
        found = _answer(server, response.status, text, response.headers)
        if response.status < HTTPStatus.MULTIPLE_CHOICES and _TYPED.match(path) and "kind" not in found:
            raise UnreachableError(f"{server} answers {method} {path} with no API object: is it a proxy's?")
        return response.status, found

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
    except (HTTPError, OSError, ValueError, RecursionError) as error:
        raise UnreachableError(f"the watch broke off: {error}"[:300]) from error
    finally:
        response.close()


def _answer(server: str, status: int, text: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """The answer as a JSON object; of a refusal at least its words. UnreachableError: no API server answers so."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    begins = printable(" ".join(text[:300].decode(errors="replace").split()))
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        to = printable(headers.get("Location", "nowhere")[:200])
        raise UnreachableError(f"{server} redirects to {to} (HTTP {status}): name the API server itself")
    if status < HTTPStatus.MULTIPLE_CHOICES:
        if not isinstance(answer, dict):
            raise UnreachableError(
                f"{server} answers HTTP {status} and no JSON object, as no API server does: is it a proxy's? {begins!r}"
            )
        return answer
    refusal = answer if isinstance(answer, dict) else {"message": begins}
    details = refusal["details"] = refusal["details"] if isinstance(refusal.get("details"), dict) else {}
    if (wait_s := headers.get("Retry-After", "")).isdecimal():
        details.setdefault("retryAfterSeconds", int(wait_s[:6]))
    return refusal


# By OpenSSL's number of what is wrong with a certificate: what it means, and what to do about it.
_FIX = {
    9: "it is not valid yet: is this node's clock behind?",
    10: "it has expired: write a new one, or set this node's clock",
    **dict.fromkeys((18, 19, 20, 21), "no CA in {ca} has signed it: name the right one, or is a proxy in the way?"),
    **dict.fromkeys((62, 64), "it is for another name: use one that it is for, or tls-server-name in a kubeconfig"),
}


def _trouble(configuration: Any, server: str, error: BaseException) -> CredentialsError | UnreachableError:
    """Why no answer came, and the fix where one is known."""
    while inner := next((one for one in error.args if isinstance(one, BaseException)), None):
        error = inner
    if isinstance(error, ssl.SSLCertVerificationError):
        ca = configuration.ssl_ca_cert or "the system's list"
        fix = _FIX.get(error.verify_code, "the agent checks it by {ca}").format(ca=ca)
        return UnreachableError(f"{server} shows a certificate that is not trusted ({error.verify_message}); {fix}")
    if wrong := unusable(configuration):
        return CredentialsError(wrong)
    return UnreachableError(f"{server} does not answer: {printable(str(error) or type(error).__name__)}"[:300])


def ask(api: Api, method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON) -> Any:
    """A request that must succeed; RefusedError carries the server's sentence otherwise."""
    status, answer = api(method, path, body, content_type, accept)
    if 200 <= status < 300:
        return answer
    message, details = str(answer.get("message") or f"HTTP {status}")[:_MOST_CHARS], answer.get("details") or {}
    listed = details.get("causes")
    causes = [cause for cause in listed if isinstance(cause, dict)] if isinstance(listed, list) else []
    messages = "; ".join(str(cause["message"]) for cause in causes if cause.get("message"))[:_MOST_CHARS]
    reasons = tuple(str(cause.get("reason", "")) for cause in causes)
    if (status, content_type) == (HTTPStatus.UNPROCESSABLE_ENTITY, JSON_PATCH) and message.startswith(PATCH_FAILED):
        raise RefusedError(HTTPStatus.CONFLICT, "the object changed meanwhile: the JSON Patch's test failed")
    if _DENIED.search(message):
        status = HTTPStatus.FORBIDDEN  # whatever code it chose: 404 and 409 would tell of the object itself
    if status == HTTPStatus.UNAUTHORIZED:
        message = f"the API server does not take this token ({message}): it has expired, or is another cluster's"
    wait_s = details.get("retryAfterSeconds")
    asks_s = wait_s if isinstance(wait_s, int) and wait_s > 0 else 0
    raise RefusedError(status, f"{message} {messages}".strip(), reasons, asks_s)


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
