"""A drill's kernel record is believed on the node that bears its nonce, while it does, and counts as no real one."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.actions.api import MERGE_PATCH
from agent.actions.kube import KubeClient
from agent.commands.evidence import archive
from agent.commands.replay import replay
from agent.config.settings import Config
from agent.diagnosis.advice import clears, next_step
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.model.fault import Status
from agent.model.observation import Observation
from agent.recording.flight import FlightRecorder, ask, kept
from agent.recording.recording import Recorder
from agent.remediation.records import Records
from agent.remediation.stored import dump, restored
from agent.runtime.actor import Actor
from agent.runtime.daemon import Daemon
from agent.runtime.drill_marks import DrillMarks, valid
from agent.simulation.in_memory_cluster import InMemoryCluster
from agent.sources.process.command_lines import supervisor
from tests.observe import GPU, Judge, alive, ids, reading, xid
from tests.recording.decided import decided_anew
from tests.waiting import LATEST_S, until

NONCE, OTHER = "0123456789abcdef" * 2, "f" * 32
NOW = 1_760_000_000.0


def annotation(nonce: Any = NONCE, ahead_s: float = 600, now: float = NOW) -> str:
    return json.dumps({"nonce": nonce, "expires": datetime.fromtimestamp(now + ahead_s, UTC).isoformat()})


def marked(nonce: str = NONCE, arrived: float = 100.0, code: int = 74, past: bool = False) -> Observation:
    return Observation(
        0, "kmsg", *(xid(code).signal, GPU, code), raw="a drill's", past=past, drill=nonce, arrived=arrived
    )


def test_an_annotation_is_valid_for_a_quarter_of_an_hour_at_most() -> None:
    assert valid(annotation(), NOW) == NONCE
    assert valid(annotation(ahead_s=900), NOW) == NONCE
    assert valid(annotation(ahead_s=0), NOW) == valid(annotation(ahead_s=-1), NOW) == ""
    assert valid(annotation(ahead_s=901), NOW) == ""


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "7",
        '"x"',
        "{}",
        "[" * 100_000,
        annotation(nonce=7),
        annotation(nonce="short"),
        annotation(nonce=NONCE.upper()),
        json.dumps({"nonce": NONCE, "expires": 1e9}),
        json.dumps({"nonce": NONCE, "expires": "2025-10-09T08:53:20"}),
        json.dumps({"nonce": NONCE, "expires": "soon"}),
        json.dumps({"nonce": NONCE, "expires": "9999-12-31T23:59:59-23:59"}),
    ],
)
def test_a_malformed_annotation_makes_nothing_believed(text: str | None) -> None:
    assert valid(text, NOW) == ""


def test_a_drills_record_waits_for_a_look_that_began_after_it() -> None:
    one = DrillMarks()
    real = xid(79)
    assert one.admitted([marked(), real], 100.0, "", looked=90.0) == [real], "what is real waits for nothing"
    assert one.asks(100.0)
    assert one.admitted([], 101.0, "", looked=99.9) == []
    (told,) = one.admitted([], 102.0, NONCE, looked=100.5)
    assert (told.drill, told.arrived, one.waits, one.dropped) == (NONCE, 102.0, False, 0)


def test_a_record_of_another_nodes_drill_is_dropped_by_the_first_look() -> None:
    one = DrillMarks()
    one.admitted([marked()], 100.0, "", looked=90.0)
    assert one.admitted([], 101.0, OTHER, looked=100.5) == []
    assert (one.waits, one.dropped) == (False, 1)


def test_it_waits_in_vain_for_a_while_only_and_never_counts_as_new_what_is_past() -> None:
    one = DrillMarks()
    one.admitted([marked()], 100.0, "", looked=90.0)
    assert one.waits
    assert one.admitted([], 116.0, "", looked=90.0) == []
    assert one.admitted([marked(past=True)], 117.0, NONCE, looked=116.9) == []
    assert one.dropped == 2


def test_a_flood_of_marked_records_costs_few_looks_and_little_room() -> None:
    one, looks = DrillMarks(), 0
    for n in range(6000):  # a minute
        now = 100.0 + n / 100
        one.admitted([marked(nonce=f"{n:032x}", arrived=now)], now, "", looked=90.0)
        looks += one.asks(now)
        assert len(one._waiting) <= 4
    assert looks <= 6


def test_the_judge_believes_nothing_of_a_drill_but_the_nodes_own_and_only_while_it_bears_it() -> None:
    limits = Config().policy
    memory, _ = judge(Memory(), [alive(), reading()], 100.0, NOW, limits, ("nvml",))
    for orders in (Orders(), Orders(drill=OTHER)):
        assert ids(judge(memory, [marked(arrived=101.0)], 101.0, NOW, limits, ("nvml",), orders)[1]) == []
    orders = Orders(drill=NONCE)
    memory, verdict = judge(memory, [marked(arrived=101.0)], 101.0, NOW, limits, ("nvml",), orders)
    assert (ids(verdict), verdict.withdraw) == ([f"xid-74@{GPU}/drill"], True)
    (fault,) = verdict.faults
    assert fault.finding.message.endswith("(a drill)")
    assert next_step(fault).endswith("it is a drill, and asks for nothing")
    assert clears(fault.finding, limits).startswith("the drill's end")
    memory, verdict = judge(memory, [], 102.0, NOW, limits, ("nvml",), orders)
    assert verdict.withdraw
    stored = dump(verdict, None, NOW, Records())
    for after, withdrawn in ((Orders(), False), (orders, True)):  # an agent that starts anew
        life = resumed(Memory(), restored(stored, 200.0), limits, {})
        assert judge(life, [alive(), reading()], 201.0, NOW, limits, ("nvml",), after)[1].withdraw is withdrawn
    _, verdict = judge(memory, [], 103.0, NOW, limits, ("nvml",), Orders())
    assert (ids(verdict), verdict.withdraw) == ([], False), "it ends with its annotation"


def test_a_real_fault_during_a_drill_stands_beside_it_and_outlives_it() -> None:
    limits, orders = Config().policy, Orders(drill=NONCE)
    memory, _ = judge(Memory(), [alive(), reading()], 100.0, NOW, limits, ("nvml",), orders)
    memory, _ = judge(memory, [marked(arrived=101.0)], 101.0, NOW, limits, ("nvml",), orders)
    real = Observation(0, "nvml", xid(74).signal, GPU, 74, raw="NVML event: Xid 74", arrived=102.0)
    memory, verdict = judge(memory, [real], 102.0, NOW, limits, ("nvml",), orders)
    assert sorted(ids(verdict)) == [f"xid-74@{GPU}", f"xid-74@{GPU}/drill"]
    _, verdict = judge(memory, [], 104.0, NOW, limits, ("nvml",), Orders())
    assert (ids(verdict), verdict.withdraw) == ([f"xid-74@{GPU}"], True)


def test_drills_count_in_no_tally_and_make_no_gpu_relapse() -> None:
    limits, memory, now = Config().policy, Memory(), 100.0
    for n in range(5):
        nonce = f"{n:032x}"
        memory, verdict = judge(
            memory, [alive(), reading(), marked(nonce, now)], now, NOW, limits, ("nvml",), Orders(drill=nonce)
        )
        assert verdict.withdraw
        memory, verdict = judge(memory, [], now + 1, NOW, limits, ("nvml",), Orders())
        assert (verdict.withdraw, verdict.onsets, memory.history.tallies) == (False, {}, {})
        now += 100
    assert ids(Judge(limits).after(1, marked())) == []


@pytest.fixture
def cluster() -> InMemoryCluster:
    made = InMemoryCluster()
    for node in ("n", "m"):
        made.add_node(node)
        made.add_pod("a", f"train-{node}", node)
    return made


class Life:
    """Whole agents over simulated GPUs, a kernel log that they share, and a cluster in memory."""

    def __init__(self, cluster: InMemoryCluster, folder: Path) -> None:
        self.cluster, self.folder, self.log = cluster, folder, folder / "kmsg"
        self.log.touch()
        self.daemons: dict[str, Daemon] = {}
        self.recorder: Recorder | None = None
        self.evidence = folder / "evidence"
        self._stop, self._threads, self._seq = threading.Event(), list[threading.Thread](), 10

    def start(self, node: str, dry_run: bool = False, record: bool = False, keep: bool = False) -> None:
        """``record``: all of it; ``keep``: as the flight recorder does."""
        config = Config.model_validate(
            {
                "mode": "evict",
                "poll_s": 0.3,
                "drain": {"gather_s": 0.2},
                "sources": {
                    "simulated": {"scenario": "idle", "kernel_log": False},
                    "kmsg": {"path": str(self.log)},
                    "pods": {"enabled": False},
                },
            }
        )
        own = self.folder / node
        own.mkdir()
        sources = supervisor(config, own)
        recorder = Recorder(self.folder / "recording", config, node, sources.names) if record else None
        if keep:
            self.evidence.mkdir()
            recorder = FlightRecorder(self.evidence, config, node, sources.names)
            recorder.answer()
        self.recorder = self.recorder or recorder

        def tell(*_: object, **__: object) -> None:
            pass

        actor = Actor(config, lambda: KubeClient(self.cluster, node, config), dry_run, tell, recorder=recorder)
        daemon = self.daemons[node] = Daemon(config, node, actor, tell, sources, recorder)
        thread = threading.Thread(target=daemon.run, args=(self._stop,))
        thread.start()
        self._threads.append(thread)
        until(lambda: self.status(node) is Status.HEALTHY)

    def status(self, node: str) -> Status | None:
        shot = self.daemons[node].snapshot
        return shot.verdict.status if shot else None

    def annotate(self, node: str, text: str | None) -> None:
        body = {"metadata": {"annotations": {"gpu-health-agent/drill": text}}}
        self.cluster("PATCH", f"/api/v1/nodes/{node}", body, MERGE_PATCH)

    def write(self, nonce: str = NONCE) -> None:
        """As user space does."""
        self._seq += 1
        with self.log.open("a") as log:
            text = f"NVRM: Xid (PCI:0000:1b:00): 74, gpu-health-agent/drill={nonce}"
            log.write(f"12,{self._seq},{int(time.monotonic() * 1e6)},-;{text}\n")

    def taints(self, node: str) -> list[str]:
        return [taint["key"] for taint in self.cluster.read("nodes", node)["spec"].get("taints") or ()]

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LATEST_S)
        if self.recorder:
            self.recorder.close()


@pytest.fixture
def life(cluster: InMemoryCluster, tmp_path: Path) -> Iterator[Life]:
    made = Life(cluster, tmp_path)
    yield made
    made.end()


def test_one_of_two_nodes_that_share_a_kernel_log_is_drilled_and_returns_when_the_annotation_goes(
    life: Life, cluster: InMemoryCluster
) -> None:
    life.start("n", record=True)
    life.start("m")
    life.annotate("n", annotation(now=time.time()))
    life.write()
    until(lambda: cluster.evicted)
    assert (life.taints("n"), life.taints("m"), cluster.evicted) == (["gpu-health-agent/unhealthy"], [], ["a/train-n"])
    until(lambda: life.daemons["m"]._drill_marks.dropped == 1)
    assert life.status("m") is Status.HEALTHY
    life.annotate("n", None)
    until(lambda: life.taints("n") == [] and life.status("n") is Status.HEALTHY)
    life.end()
    lines = (life.folder / "recording").read_text().splitlines()
    live = [line.removeprefix('{"decision":')[:-1] for line in lines if line.startswith('{"decision":')]
    assert list(replay(io.StringIO("\n".join(lines) + "\n"), None, "h100-8")) == live
    assert {"unhealthy", "healthy"} <= {json.loads(line)["status"] for line in live}


def test_what_an_agent_kept_of_a_drill_is_decided_anew_from_its_archive(life: Life) -> None:
    life.start("n", keep=True)
    life.annotate("n", annotation(now=time.time()))
    life.write()
    until(lambda: life.taints("n"))
    life.annotate("n", None)
    until(lambda: life.taints("n") == [] and life.status("n") is Status.HEALTHY)
    ask(life.evidence)
    archive(out := io.BytesIO(), None, kept(life.evidence), pods=False)
    *_, last = decided = decided_anew(out.getvalue())
    assert any(fault["id"].endswith("/drill") for one in decided for fault in one["faults"])
    assert (last["status"], last["faults"]) == ("healthy", [])


def test_a_dry_run_runs_no_drill(life: Life) -> None:
    life.start("n", dry_run=True)
    life.annotate("n", annotation(now=time.time()))
    life.write()
    until(lambda: life.daemons["n"]._drill_marks.dropped == 1)
    assert life.status("n") is Status.HEALTHY


def test_what_a_source_said_of_a_drill_is_nothing_in_a_replay() -> None:
    said = "\n".join(one.to_json() for one in (alive(), reading(), marked()))
    assert all(not json.loads(line)["withdraw"] for line in replay(io.StringIO(said), None, "h100-8"))
