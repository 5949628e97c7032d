"""A source of a kind that nobody has heard of: its process and one row of the index are all that it takes."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config.settings import Config
from agent.config.source_index import SOURCES, Known, SourceRow, hold_gpus
from agent.model.fault import Severity, Status
from agent.model.observation import Failure, Observation, Signal
from agent.runtime.daemon import Daemon, serve
from agent.sources.process.command_lines import names, supervisor
from agent.status.snapshot import SourceView
from tests.observe import GPU, Judge, alive, ids, reading
from tests.waiting import LATEST_S, until

SILENT_S = 0.3
SCRIPT = """
import pathlib, sys, time
quiet = pathlib.Path(sys.argv[sys.argv.index("--quiet") + 1])
while True:
    if not quiet.exists():
        print('{"at": "2026-01-01T00:00:00Z", "source": "fans", "signal": "alive"}', flush=True)
    time.sleep(0.05)
"""


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While there is such a file, the source ``fans`` says nothing."""
    (tmp_path / "fans_of_a_node.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    quiet = tmp_path / "quiet"
    row = SourceRow("fans", "fans_of_a_node", Severity.DEGRADED, lambda *_: ["--quiet", str(quiet)], holds_gpus=True)
    monkeypatch.setitem(SOURCES, row.name, row)
    return quiet


@pytest.fixture
def running(quiet: Path, tmp_path: Path) -> Iterator[tuple[Daemon, int]]:
    """A daemon, and the port that it serves on."""
    config = Config.model_validate(
        {
            "poll_s": 0.1,
            "http": {"address": "127.0.0.1", "port": 0},
            "policy": {"silent_s": SILENT_S},
            "sources": {"simulated": {"scenario": "idle"}},
        }
    )
    daemon = Daemon(config, "n", None, lambda *_, **__: None, supervisor(config, tmp_path))
    server, stop = serve(config, daemon), threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    yield daemon, server.port
    stop.set()
    thread.join(LATEST_S)
    server.shutdown()


def views(daemon: Daemon) -> dict[str, SourceView]:
    return {one.name: one for one in daemon.snapshot.sources} if daemon.snapshot else {}


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        return str(answer.read().decode())


def faults(daemon: Daemon) -> dict[str, Severity]:
    standing = daemon.snapshot.verdict.faults if daemon.snapshot else ()
    return {fault.finding.id: fault.finding.severity for fault in standing}


def test_another_source_is_started_judged_and_missed_like_the_others(running: tuple[Daemon, int], quiet: Path) -> None:
    daemon, port = running
    until(lambda: len(views(daemon)) == 3 and all(one.up for one in views(daemon).values()))
    assert list(views(daemon)) == ["nvml", "kmsg", "fans"]
    until(lambda: daemon.snapshot and daemon.snapshot.verdict.status is Status.HEALTHY)
    quiet.touch()
    until(lambda: "fans: no poll finished for over 0 s" in json.loads(get(port, "/state"))["blind"])
    until(lambda: "fans-silent@node" in faults(daemon))
    assert faults(daemon)["fans-silent@node"] is Severity.DEGRADED
    told = {one["id"]: one["severity"] for one in json.loads(get(port, "/state"))["faults"]}
    assert told["fans-silent@node"] == "degraded"
    metrics = get(port, "/metrics").splitlines()
    assert 'gpu_health_source_up{node="n",source="fans"} 0.0' in metrics
    (line,) = (line for line in metrics if line.startswith("gpu_health_fault{") and 'rule="fans-silent"' in line)
    assert 'severity="degraded"' in line
    quiet.unlink()
    until(lambda: "fans-silent@node" not in faults(daemon))


def test_another_source_goes_on_from_what_is_known_and_lets_go_of_the_gpus_with_the_others(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    script = f"import pathlib, sys\npathlib.Path({str(said)!r}).write_text(' '.join(sys.argv[1:]))\n"
    (tmp_path / "fans_of_a_node.py").write_text(script)
    row = replace(SOURCES["fans"], past=lambda known: ["--of", *sorted(known.gpus)])
    monkeypatch.setitem(SOURCES, row.name, row)
    config = Config.model_validate({"sources": {"simulated": {"scenario": "idle"}}})
    assert names(config) == ("nvml", "kmsg", "fans")
    assert hold_gpus(names(config)) == {"nvml", "fans"}
    sources = supervisor(config, tmp_path)
    sources.want(frozenset({"fans"}), Known(gpus=frozenset({GPU})))
    sources.turn(0)
    assert not sources.ended(["fans"])
    until(lambda: said.exists() and said.read_text())
    assert said.read_text() == f"--quiet {quiet} --of {GPU}"
    sources.want(frozenset(), Known())
    assert sources.ended(["fans"])
    sources.close()


def test_what_another_source_says_of_itself_is_no_word_of_the_driver(quiet: Path) -> None:
    one = Judge(expected=("nvml", "fans"))
    one.after(0, alive(), reading(), alive("fans"))
    hung = Observation(0, "fans", Signal.FAILED, value=Failure.HUNG, raw="it hangs")
    for _ in range(37):
        verdict = one.after(5, alive(), reading(), hung)
    assert (verdict.status, verdict.blind_lines) == (Status.DEGRADED, ("fans: it hangs",))
    assert ids(verdict) == ["fans-silent@node"]


def test_the_readings_of_another_source_never_stand_in_for_those_of_the_first_witness(quiet: Path) -> None:
    one = Judge(expected=("nvml", "fans"))
    one.after(0, alive(), reading(), alive("fans"))
    one.after(5, alive(), alive("fans"), reading(GPU, "fans", recovery_action=2))
    verdict = one.after(5, alive(), alive("fans"), reading(GPU, "fans", recovery_action=2))
    assert (verdict.status, ids(verdict)) == (Status.HEALTHY, [])


def test_a_source_that_this_version_has_not_in_its_index_ends_no_round() -> None:
    """It may be in a recording of another version."""
    one = Judge(expected=("nvml", "fans"))
    one.after(0, alive(), reading(), alive("fans"))
    verdict = one.each_poll(190, alive(), reading())
    assert (verdict.status, ids(verdict)) == (Status.UNKNOWN, [])
    assert verdict.blind_lines == ("fans: no poll finished for over 60 s",)
