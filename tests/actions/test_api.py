"""One request to an API server that is broken, hostile or another's: it ends in its time, and in words."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agent.actions.api import ask, connect
from agent.commands.setup import persons
from agent.model.errors import AgentError, CredentialsError, RefusedError, UnreachableError
from tests.authority import Authority
from tests.loopback import Loopback, answer, answers, head, kubeconfig
from tests.waiting import LATEST_S, until

WHOLE_S = 0.3
LATE = "the whole answer did not come within 0.3 s"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def fails(kind: type[AgentError], words: str, config: str) -> None:
    with pytest.raises(kind, match=words):
        connect(config)("GET", "/")


def drip(line: socket.socket, text: Iterator[bytes]) -> None:
    for piece in text:
        line.sendall(piece)
        time.sleep(0.02)


def endless(piece: bytes) -> Iterator[bytes]:
    return (piece for _ in count())


def hangs(line: socket.socket) -> None:
    head(line)
    line.recv(1)


def continues(line: socket.socket) -> None:
    head(line)
    drip(line, endless(b"HTTP/1.1 100 Continue\r\n\r\n"))


def drips_headers(line: socket.socket) -> None:
    head(line)
    drip(line, iter([b"HTTP/1.1 200 OK\r\n", *[b"X-%d: x\r\n" % i for i in range(90)]]))
    drip(line, endless(b"x"))


def drips_a_body(line: socket.socket) -> None:
    head(line)
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    drip(line, endless(b" "))


def drips_without_a_length(line: socket.socket) -> None:
    """What is cut looks like a whole answer, and is one of JSON."""
    head(line)
    line.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}")
    drip(line, endless(b" "))


def drips_chunks(line: socket.socket) -> None:
    head(line)
    line.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(line, endless(b"1\r\n \r\n"))


SLOW = (hangs, continues, drips_headers, drips_a_body, drips_without_a_length, drips_chunks)


@pytest.mark.parametrize("serve", SLOW)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_request_ends_in_its_time_whatever_the_server_does(
    serve: Callable[[socket.socket], None], tls: bool, authority: Authority, tmp_path: Path
) -> None:
    with Loopback(serve, authority.server() if tls else None) as server:
        api, began = connect(kubeconfig(tmp_path, server.url, authority.file), WHOLE_S), time.monotonic()
        with pytest.raises(UnreachableError, match=LATE):
            api("GET", "/api/v1/nodes/n1")
        assert time.monotonic() - began < 10 * WHOLE_S


def test_the_second_request_over_a_connection_ends_in_its_time_too(authority: Authority, tmp_path: Path) -> None:
    def serve(line: socket.socket) -> None:
        head(line)
        line.sendall(answer({"n": 1}))
        drips_a_body(line)

    with Loopback(serve, authority.server()) as server:
        api = connect(kubeconfig(tmp_path, server.url, authority.file), 1)
        assert api("GET", "/")[0] == 200
        with pytest.raises(UnreachableError, match="did not come within 1 s"):
            api("GET", "/")
        assert server.connections == 1
        assert api("GET", "/")[0] == 200, "over a new connection"


def test_many_requests_at_once_end_in_their_own_times_over_one_thread(authority: Authority, tmp_path: Path) -> None:
    """The longest begins first: whoever waits for its end must hear of a shorter one."""
    lasted, done = dict[float, float](), threading.Event()

    def ask_for(whole_s: float) -> None:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=f"did not come within {whole_s:g} s"):
            connect(config, whole_s)("GET", "/")
        lasted[whole_s] = time.monotonic() - began
        if len(lasted) == len(times):
            done.set()

    times = (1.2, 0.3, 0.6, 0.9)
    with Loopback(hangs, authority.server()) as server:
        config = kubeconfig(tmp_path, server.url, authority.file)
        for whole_s in times:
            threading.Thread(target=ask_for, args=(whole_s,), daemon=True).start()
            time.sleep(0.02)
        assert [thread.name for thread in threading.enumerate()].count("deadlines") == 1
        assert done.wait(LATEST_S)
    assert sorted(lasted, key=lasted.__getitem__) == sorted(times)


def test_without_a_thread_to_end_it_a_request_is_not_made_and_the_next_one_ends_in_its_time(tmp_path: Path) -> None:
    program = """
import sys, threading
from agent.actions.api import connect
from agent.model.errors import UnreachableError
api = connect(sys.argv[1], 0.3)
for stack in (1 << 47, 0):  # more than there is, and as much as ever
    threading.stack_size(stack)
    try:
        api("GET", "/")
    except UnreachableError as error:
        print(error)
"""
    with Loopback(hangs) as server:
        asks = [sys.executable, "-c", program, kubeconfig(tmp_path, server.url)]
        done = subprocess.run(asks, capture_output=True, text=True, timeout=30)
    assert "no thread could be started to end the request in its time" in done.stdout.splitlines()[0], done.stderr
    assert "did not come within 0.3 s" in done.stdout.splitlines()[1]


def test_a_tls_handshake_and_a_proxy_that_never_end_are_within_the_requests_time(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(line: socket.socket) -> None:
        while line.recv(1000):
            pass

    with Loopback(silent) as server, Loopback(drips_headers) as proxy:
        url, began = f"https://127.0.0.1:{server.port}", time.monotonic()
        with pytest.raises(UnreachableError, match=LATE):
            connect(kubeconfig(tmp_path, url, authority.file), WHOLE_S)("GET", "/")
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(UnreachableError, match=LATE):
            connect(kubeconfig(tmp_path, url, authority.file), WHOLE_S)("GET", "/")
        assert time.monotonic() - began < 10 * WHOLE_S
        assert proxy.connections == 1


def test_an_answer_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    sent = []

    def serve(line: socket.socket) -> None:
        head(line)
        line.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(100):
            line.sendall(b" " * (1 << 20))
            sent.append(line)

    with Loopback(serve) as server:
        fails(UnreachableError, "answers GET / with more than 32 MiB", kubeconfig(tmp_path, server.url))
    assert len(sent) < 50


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ({"until": "20210101"}, "certificate has expired.; it has expired: write a new one"),
        ({"since": "20980101"}, "it is not valid yet: is this node's clock behind"),
        ({"name": "DNS:elsewhere"}, "it is for another name: use one that it is for"),
    ],
    ids=["expired", "not yet", "another name"],
)
def test_a_certificate_that_is_not_trusted_is_told_with_its_fix(
    certificate: dict[str, str], said: str, authority: Authority, tmp_path: Path
) -> None:
    with Loopback(answers(answer({})), authority.server(**certificate)) as server:
        words = f"{server.url} shows a certificate that is not trusted .*{said}"
        fails(UnreachableError, words, kubeconfig(tmp_path, server.url, authority.file))


def test_a_certificate_of_another_authority_is_told_with_the_file_that_it_was_checked_by(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "others")
    with Loopback(answers(answer({})), other.server()) as server:
        words = f"no CA in {authority.file} has signed it"
        fails(UnreachableError, words, kubeconfig(tmp_path, server.url, authority.file))


def test_a_server_that_speaks_no_tls_and_one_that_is_not_there_are_told(authority: Authority, tmp_path: Path) -> None:
    with Loopback(lambda line: line.sendall(answer({}))) as server:
        url = server.url.replace("http:", "https:")
        fails(UnreachableError, f"{url} does not answer: .*SSL", kubeconfig(tmp_path, url, authority.file))
    url = "https://127.0.0.1:1"
    fails(UnreachableError, f"{url} does not answer: .*refused", kubeconfig(tmp_path, url, authority.file))


@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_ca_file_that_holds_no_certificate_is_named(text: str, authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text(text)
    with Loopback(answers(answer({})), authority.server()) as server:
        words = f"{ca} holds no CA certificate .*write one into it"
        fails(CredentialsError, words, kubeconfig(tmp_path, server.url, ca))


def test_a_ca_that_is_replaced_on_disk_is_believed_from_the_next_connection_on(
    authority: Authority, tmp_path: Path
) -> None:
    new, ca = Authority(tmp_path / "new"), tmp_path / "ca.crt"
    ca.write_bytes(authority.file.read_bytes())

    def once(line: socket.socket) -> None:
        head(line)
        line.sendall(answer({}, "200 OK", "Connection: close"))

    with Loopback(once, authority.server()) as server:
        api = connect(kubeconfig(tmp_path, server.url, ca))
        assert api("GET", "/")[0] == 200
        server.context = new.server()
        with pytest.raises(UnreachableError, match="not trusted"):
            api("GET", "/")
        renewed = tmp_path / "renewed"
        renewed.write_bytes(new.file.read_bytes())
        renewed.replace(ca)
        assert api("GET", "/")[0] == 200
        server.context = authority.server()
        with pytest.raises(UnreachableError, match="not trusted"):
            api("GET", "/")


HTML = "<html><body>Please log in</body></html>"


def test_an_object_comes_back_as_it_was_sent(tmp_path: Path) -> None:
    """Nothing of ours is put into it: it is written back."""
    lease = {"kind": "Lease", "metadata": {"name": "a"}, "spec": {}}
    with Loopback(answers(answer(lease, "200 OK", "Retry-After: 3"))) as server:
        assert connect(kubeconfig(tmp_path, server.url))("GET", "/apis/x/v1/leases/a") == (200, lease)


def test_a_persons_answers_may_come_compressed_and_stay_bounded(tmp_path: Path) -> None:
    asked: list[str] = []

    def serve(line: socket.socket) -> None:
        for size in (1_000, 1_000, 3 << 20):
            asked.append(head(line).lower())
            body = gzip.compress(json.dumps({"n": " " * size}).encode())
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with Loopback(serve) as server:
        config = kubeconfig(tmp_path, server.url)
        api = connect(config, most_bytes=1 << 20, gzip=True)
        assert api("GET", "/") == api("GET", "/") == (200, {"n": " " * 1_000})
        with pytest.raises(UnreachableError, match="more than 1 MiB"):
            api("GET", "/")
        assert all("accept-encoding: gzip" in one for one in asked)
        with suppress(UnreachableError):
            connect(config)("GET", "/")
        assert "gzip" not in asked[-1], "a thousand agents would cost the API server its CPU"


@pytest.mark.parametrize("body", [HTML, "", "[]", "1", "null", "[" * 100_000])
def test_a_200_that_is_no_json_object_is_no_success(body: str, tmp_path: Path) -> None:
    with Loopback(answers(answer(body))) as server:
        words = f"{server.url} answers HTTP 200 and no JSON object, as no API server does: is it a proxy's"
        fails(UnreachableError, words, kubeconfig(tmp_path, server.url))


def test_a_redirect_is_told_and_not_followed(tmp_path: Path) -> None:
    asked = Loopback(answers(answer({})))
    away = answer(HTML, "302 Found", f"Location: {asked.url}/login\x1b[2J")
    with asked, Loopback(answers(away)) as server:
        api = connect(kubeconfig(tmp_path, server.url, token="t"))
        with pytest.raises(UnreachableError, match=rf"redirects to {asked.url}/login\?.*API server itself"):
            ask(api, "PATCH", "/api/v1/nodes/n1", {})
        assert asked.connections == 0, "the token is for nobody else"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        ("403 Forbidden", {"message": "nodes is forbidden"}, "nodes is forbidden"),
        ("403 Forbidden", HTML, "Please log in"),
        ("500 Internal Server Error", "", "HTTP 500"),
        ("401 Unauthorized", {"message": "Unauthorized"}, "does not take this token .Unauthorized.: it has expired"),
        ("429 Too Many Requests", {"message": "later", "details": ["x"]}, "later"),
        ("422 Unprocessable", {"message": "no", "details": {"causes": ["x", {"message": "why"}]}}, "no why"),
        ("422 Unprocessable", {"message": "no", "details": {"causes": 7}}, "no"),
        ("403 Forbidden", {"message": "no" * 1_000_000, "details": {"causes": [{"message": "why" * 1_000_000}]}}, "no"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(status: str, body: Any, said: str, tmp_path: Path) -> None:
    with Loopback(answers(answer(body, status))) as server:
        with pytest.raises(RefusedError, match=said) as refused:
            ask(connect(kubeconfig(tmp_path, server.url)), "GET", "/")
        assert refused.value.status == int(status[:3])
        assert len(str(refused.value)) < 5000


@pytest.mark.parametrize(
    ("body", "header", "wait_s"),
    [
        ("Too many requests", "Retry-After: 7", 7),
        ({"message": "later", "details": {"retryAfterSeconds": 3}}, "Retry-After: 7", 3),
        ({"message": "later"}, "Retry-After: Fri, 31 Dec 2099 23:59:59 GMT", 0),
        ({"message": "later", "details": {"retryAfterSeconds": "x"}}, "X: y", 0),
        ({"message": "later", "details": {"retryAfterSeconds": -9}}, "X: y", 0),
    ],
)
def test_a_busy_server_is_heard_on_how_long_it_wants_to_be_left_alone(
    body: Any, header: str, wait_s: int, tmp_path: Path
) -> None:
    with Loopback(answers(answer(body, "429 Too Many Requests", header))) as server:
        with pytest.raises(RefusedError) as refused:
            ask(connect(kubeconfig(tmp_path, server.url)), "GET", "/")
        assert refused.value.wait_s == wait_s


def tokens(server_said: list[str]) -> Callable[[socket.socket], None]:
    def serve(line: socket.socket) -> None:
        while request := head(line):
            server_said.extend(text for text in request.split("\r\n") if text.lower().startswith("authorization:"))
            line.sendall(answer({}))

    return serve


def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    heard: list[str] = []
    token = tmp_path / "token"
    token.write_text("first\n")
    with Loopback(tokens(heard)) as server:
        api = connect(kubeconfig(tmp_path, server.url, tokenFile="token"))
        api("GET", "/")
        token.write_text("second")
        api("GET", "/")
        assert heard == ["Authorization: Bearer first", "Authorization: Bearer second"]
        for text in ("two\nlines", "café", "a\rb", "\x00"):
            token.write_text(text)
            with pytest.raises(CredentialsError, match="must be one line of ASCII"):
                api("GET", "/")
        token.write_bytes(b"\xff\xfe")
        with pytest.raises(CredentialsError, match="can't be read"):
            api("GET", "/")
        token.unlink()
        with pytest.raises(CredentialsError, match=f"can't be read: .*{token}"):
            api("GET", "/")
        assert len(heard) == 2


def test_a_person_is_known_by_the_files_that_kubectl_takes_and_an_agent_by_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    for name in ("HOME", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert persons(None) is None
    with Loopback(tokens(heard)) as server:
        for folder in ("home", "named", "given"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "token").write_text(folder)
            kubeconfig(tmp_path / folder, server.url, tokenFile="token")
        home, named, given = (next((tmp_path / one).glob("*config*")) for one in ("home", "named", "given"))
        (tmp_path / ".kube").mkdir()
        (tmp_path / ".kube" / "config").write_text(home.read_text())
        (tmp_path / ".kube" / "token").write_text("home")
        connect(persons(None))("GET", "/")
        monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}{os.pathsep}{named}{os.pathsep}{home}")
        connect(persons(None))("GET", "/")
        connect(persons(str(given)))("GET", "/")
        with pytest.raises(CredentialsError, match="the pod's service account"):
            connect(None)
    assert heard == [f"Authorization: Bearer {who}" for who in ("home", "named", "given")]


@pytest.mark.parametrize(
    "there", [{"NO_PROXY": "127.0.0.1"}, {"no_proxy": "127.0.0.1"}, {"NO_PROXY": "127.0.0.1", "no_proxy": "localhost"}]
)
def test_what_either_no_proxy_names_is_asked_directly(
    there: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loopback(answers(answer({"n": 1}))) as server, Loopback(answers(answer({"n": 2}))) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        config = kubeconfig(tmp_path, server.url)
        assert connect(config)("GET", "/")[1]["n"] == 2
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        assert connect(config)("GET", "/")[1]["n"] == 1


def test_a_proxy_that_refuses_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(answers(answer("no", "403 Forbidden"))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{proxy.port}")
        config = kubeconfig(tmp_path, "https://10.0.0.1")
        with pytest.raises(UnreachableError, match=r"10.0.0.1 \(through its proxy\) does not answer: .*403") as failed:
            connect(config)("GET", "/")
        assert "secret" not in str(failed.value)


def test_a_proxys_address_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://there")
    url = "http://127.0.0.1:1"
    fails(CredentialsError, f"the proxy to {url} can't be used", kubeconfig(tmp_path, url))


def test_no_thread_is_left_by_a_request(tmp_path: Path) -> None:
    with Loopback(answers(answer({}))) as server:
        api = connect(kubeconfig(tmp_path, server.url))
        for _ in range(5):
            api("GET", "/")
        until(lambda: not any(isinstance(one, threading.Timer) for one in threading.enumerate()))
