"""What the commands and the agent say where no API server answers as one: a sentence with the fix, and no traceback."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.actions.api import connect
from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.runtime.actor import Actor
from agent.runtime.actor_view import view
from agent.runtime.daemon import Daemon, serve
from agent.sources.process.command_lines import supervisor
from tests.authority import Authority
from tests.commands.test_cli import cli
from tests.loopback import Loopback, answer, answers, kubeconfig
from tests.waiting import LATEST_S, until

HTML = answers(answer("<html>Please log in</html>"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


def refused(folder: Path, authority: Authority) -> str:
    return kubeconfig(folder, "https://127.0.0.1:1", authority.file)


def untrusted(folder: Path, authority: Authority) -> str:
    other = Authority(folder / "others")
    return kubeconfig(folder, Loopback(HTML, authority.server()).url, other.file)


def expired(folder: Path, authority: Authority) -> str:
    return kubeconfig(folder, Loopback(HTML, authority.server(until="20210101")).url, authority.file)


def another_name(folder: Path, authority: Authority) -> str:
    return kubeconfig(folder, Loopback(HTML, authority.server("DNS:elsewhere")).url, authority.file)


def login_page(folder: Path, authority: Authority) -> str:
    return kubeconfig(folder, Loopback(HTML, authority.server()).url, authority.file)


def objects_of_others(folder: Path, authority: Authority) -> str:
    serve = answers(answer({"error": "no such tenant"}))
    return kubeconfig(folder, Loopback(serve, authority.server()).url, authority.file)


def no_ca(folder: Path, authority: Authority) -> str:
    (folder / "empty.crt").touch()
    return kubeconfig(folder, Loopback(HTML, authority.server()).url, folder / "empty.crt")


def two_lines(folder: Path, authority: Authority) -> str:
    return kubeconfig(folder, Loopback(HTML, authority.server()).url, authority.file, token="two\nlines")


CASES = pytest.mark.parametrize(
    ("case", "said", "code"),
    [
        (refused, "does not answer: [Errno 111] Connection refused", 1),
        (untrusted, "has signed it: name the right one", 1),
        (expired, "it has expired: write a new one", 1),
        (another_name, "it is for another name: use one that it is for", 1),
        (login_page, "no JSON object, as no API server does", 1),
        (objects_of_others, "is it a proxy's?", 1),
        (no_ca, "holds no CA certificate", 78),
        (two_lines, "must be one line of ASCII", 78),
    ],
)
Case = Callable[[Path, Authority], str]


@CASES
def test_release_explain_and_drill_say_in_one_sentence_why_no_answer_came(
    case: Case, said: str, code: int, authority: Authority, tmp_path: Path
) -> None:
    config = case(tmp_path, authority)
    for command in (["release", "--all"], ["release", "--node", "n1"], ["explain", "--node", "n1"], ["drill", "--yes"]):
        ended, out, error = cli(*command, "--kubeconfig", config)
        assert (ended, out) == (code, ""), command
        assert said in error, command
        assert len(error.splitlines()) == 1


@CASES
def test_an_agent_that_gets_no_answer_waits_and_its_circuit_is_open(
    case: Case, said: str, code: int, authority: Authority, tmp_path: Path
) -> None:
    config = case(tmp_path, authority)
    actor = Actor(Config(), lambda: KubeClient(connect(config), "n1", Config()), False, lambda *_, **__: None)
    assert actor.round() <= 1
    shown = view(actor.exchange.acted, Config(), restored=True, boot_id="")
    assert [said in wait.why for wait in shown["waits"]] == [True]
    assert (shown["api_failures"], shown["failed"]) == (1, {"look": 1})


def test_check_says_why_the_agent_that_runs_here_gets_no_answer(authority: Authority, tmp_path: Path) -> None:
    bad = untrusted(tmp_path, authority)
    config = Config.model_validate(
        {"poll_s": 1, "http": {"address": "127.0.0.1", "port": 0}, "sources": {"simulated": {"scenario": "idle"}}}
    )
    actor = Actor(config, lambda: KubeClient(connect(bad), "n1", config), False, lambda *_, **__: None)
    daemon = Daemon(config, "n1", actor, lambda *_, **__: None, supervisor(config, tmp_path))
    server, stop = serve(config, daemon), threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    try:
        file = tmp_path / "config.yaml"
        file.write_text(f"http: {{address: 127.0.0.1, port: {server.port}}}")
        until(lambda: daemon.snapshot and "trusted" in str(daemon.snapshot.waits))
        _, out, error = cli("check", "--config", str(file))
        assert error == ""
        assert "  waiting: https://127.0.0.1" in out
        assert "has signed it: name the right one" in out
    finally:
        stop.set()
        thread.join(LATEST_S)
        server.shutdown()
