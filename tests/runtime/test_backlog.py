"""A start without the API server: the kernel log is read at once, and what was there is joined in later."""

from __future__ import annotations

import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.model.errors import UnreachableError
from agent.model.fault import Remembered
from agent.model.observation import Observation
from agent.remediation.records import Records
from agent.remediation.stored import dump
from agent.runtime.actor import Actor
from agent.runtime.backlog import Backlog
from agent.runtime.daemon import Daemon, serve
from agent.simulation.in_memory_cluster import InMemoryCluster
from agent.sources.process.command_lines import supervisor
from tests.actions.test_kube import healthy
from tests.observe import GPU, OTHER, START, alive, ids, reading, xid
from tests.waiting import LATEST_S, until

BOOT = "boot-1"
LIVED = Remembered(boot_id=BOOT, kernel_seq=10)


def old(code: int, seq: int, **more: Any) -> Observation:
    return replace(xid(code, source="kmsg", boot_id=BOOT, seq=seq, past=True), **more)


def test_until_the_position_is_known_what_was_there_is_past_and_then_each_record_is_news_once_or_never() -> None:
    backlog = Backlog()
    seen = [old(31, 9), old(43, 10), old(79, 11), xid(95, source="kmsg", boot_id=BOOT, seq=12)]
    assert backlog.admitted(seen, 1.0) == seen
    assert [(one.value, one.past) for one in backlog.join(LIVED, 2.0)] == [(79, False)]
    later = backlog.admitted([old(43, 10), old(48, 11), xid(62, seq=13)], 3.0)
    assert [(one.value, one.past) for one in later] == [(48, False), (62, False)]


@pytest.mark.parametrize(
    ("stored", "news"),
    [
        (None, []),  # the first start on this node
        (Remembered(boot_id=BOOT), []),  # nothing was read by the last life
        (Remembered(boot_id="boot-0", kernel_seq=5000), [9, 11]),  # the node was rebooted since
        (Remembered(boot_id=BOOT, kernel_seq=5000), []),  # no kernel counts backwards
    ],
)
def test_what_is_news_goes_by_the_boot_and_the_number(stored: Remembered | None, news: list[int]) -> None:
    backlog = Backlog()
    backlog.admitted([old(79, 9), old(79, 11)], 1.0)
    assert [one.seq for one in backlog.join(stored, 2.0)] == news


def test_a_log_without_an_end_is_kept_in_bounds() -> None:
    backlog = Backlog()
    for seq in range(10_000):
        backlog.admitted([old(31, seq)], 1.0)
    assert len(backlog.join(replace(LIVED, kernel_seq=0), 2.0)) == 8192


def test_a_fault_that_only_the_past_speaks_for_ends_with_the_position_that_makes_it_the_last_lifes() -> None:
    """The last life saw it cured, or a person dismissed it; NVML asks for a reset for another reason."""
    limits = Config().policy

    def at(now: float, *seen: Observation) -> list[Observation]:
        return [replace(one, arrived=now, at=one.at or START) for one in seen]

    asks = at(100.0, alive(), reading(recovery_action=1), old(95, 9))
    memory, verdict = judge(Memory(), asks, 100.0, START, limits, ("nvml",))
    assert f"xid-95@{GPU}" in ids(verdict)
    memory = resumed(memory, LIVED, limits, {})
    memory, verdict = judge(memory, at(101.0, alive(), reading(recovery_action=1)), 101.0, START, limits, ("nvml",))
    assert f"xid-95@{GPU}" not in ids(verdict)


def test_what_was_seen_before_the_first_look_that_finds_an_upgrade_was_seen_during_it() -> None:
    limits, stamped = Config().policy, replace(xid(79, source="kmsg"), arrived=100.0)
    memory, verdict = judge(Memory(), [stamped], 100.0, START, limits, ("kmsg",))
    assert verdict.withdraw
    memory = resumed(memory, None, limits, {}, aside=True)
    _, verdict = judge(memory, [], 101.0, START, limits, ("kmsg",), Orders(aside=True))
    assert (ids(verdict), verdict.withdraw) == ([f"xid-79@{GPU}"], False)


class Site:
    """A node whose last life knew the kernel log up to 10, and an API server that is down at first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.down, self.boot = folder, True, "0b5e4c0e-9a54-4d8e-8f5e-3a1f7f0f7a11"
        (folder / "boot_id").write_text(self.boot + "\n")
        self.cluster = InMemoryCluster()
        self.cluster.add_node("n1")
        lived = replace(healthy(), boot_id=self.boot, kernel_seq=10)
        body = {"metadata": {"annotations": {"gpu-health-agent/faults": dump(lived, 10, START, Records())}}}
        self.cluster("PATCH", "/api/v1/nodes/n1", body, "application/merge-patch+json")

    def __call__(self, *asked: Any, **more: Any) -> tuple[int, Any]:
        if self.down:
            raise UnreachableError("no API server")
        return self.cluster(*asked, **more)

    def kernel(self, seq: int, pci: str, code: int) -> None:
        with (self.folder / "kmsg").open("a") as log:
            log.write(f"3,{seq},1,-;NVRM: Xid (PCI:{pci[:-2]}): {code}, a line\n")


def test_without_the_api_server_the_kernel_log_is_judged_and_shown_at_once_and_nothing_is_told_twice(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path)
    site.kernel(9, GPU, 79)  # the last life's
    site.kernel(11, OTHER, 79)  # while no agent ran
    config = Config.model_validate({"sources": {"simulated": {"scenario": "idle"}}, "http": {"port": 0}})
    actor = Actor(config, lambda: KubeClient(site, "n1", config), False, lambda *_, **__: None)
    daemon, stop = Daemon(config, "n1", actor, lambda *_, **__: None, supervisor(config, tmp_path)), threading.Event()
    server = serve(config, daemon)

    def shown(what: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            return "\n".join(sorted(line for line in answer.read().decode().splitlines() if line.startswith(what)))

    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    began = time.monotonic()
    try:
        until(lambda: daemon.snapshot and "kmsg" not in daemon.snapshot.verdict.blind)  # what was there is read
        site.kernel(12, "0000:61:00.0", 95)
        until(lambda: "xid-95" in shown("gpu_health_fault{"))
        assert time.monotonic() - began < 10, "the GPUs' own source waits for so long for the Node"
        assert "xid-79" not in shown("gpu_health_fault{")
        site.down = False
        until(lambda: "xid-79" in shown("gpu_health_fault{"))
        until(daemon.ready)
        site.kernel(13, GPU, 62)
        until(lambda: "xid-62" in shown("gpu_health_fault{"))
        # By address: a GPU that was not read yet has no index, by which its line would stand elsewhere.
        counted = sorted(shown("gpu_health_xid_total{").splitlines(), key=lambda line: line.partition("pci_bus_id")[2])
        assert [(line.split('pci_bus_id="')[1][:12], line.split()[-1]) for line in counted] == [
            (GPU, "1.0"),
            (OTHER, "1.0"),
            ("0000:61:00.0", "1.0"),
        ]
        assert 'xid="62"' in counted[0]
    finally:
        stop.set()
        thread.join(LATEST_S)
        server.shutdown()
