"""Whose an error was stays with the error: pids are used again, and pods are gone by the time somebody asks."""

from __future__ import annotations

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory, Orders, judge
from agent.model.fault import Severity
from agent.model.observation import Observation
from tests.observe import GPU, OTHER, alive, reading, xid


class Cluster:
    """Judges with the cluster's word on which pod is whose."""

    def __init__(self) -> None:
        self.memory, self.now, self.workloads = Memory(), 1000.0, {"uid-a": "a/Job/one", "uid-b": "b/Job/two"}

    def after(self, seconds: float, *seen: Observation) -> dict[str, Severity]:
        self.now += seconds
        stamped = [
            Observation(**{**{n: getattr(o, n) for n in Observation.__dataclass_fields__}, "arrived": self.now})
            for o in seen
        ]
        orders = Orders({}, self.workloads)
        self.memory, verdict = judge(self.memory, stamped, self.now, self.now, Limits(), ("nvml",), orders)
        return {fault.finding.id: fault.finding.severity for fault in verdict.faults}


def error(pci: str, pid: int) -> Observation:
    return xid(31, pci, source="kmsg", values={"pid": pid})


def test_a_pid_that_is_used_again_moves_no_blame() -> None:
    cluster = Cluster()
    cluster.after(0, alive(), reading(GPU, pods="7=uid-a"), reading(OTHER, pods=""))
    cluster.after(5, error(GPU, 7))
    cluster.after(3600, alive(), reading(GPU, pods=""), reading(OTHER, pods="7=uid-b"))
    found = cluster.after(5, error(OTHER, 7))
    assert "workload-errors@node" not in found, "two programs failed, each on one GPU"


def test_one_program_on_two_gpus_is_told_though_its_processes_are_gone() -> None:
    cluster = Cluster()
    cluster.after(0, alive(), reading(GPU, pods="7=uid-a"), reading(OTHER, pods="8=uid-a"))
    cluster.after(5, error(GPU, 7))
    cluster.after(5, alive(), reading(GPU, pods=""), reading(OTHER, pods=""))
    found = cluster.after(5, error(OTHER, 8))
    assert found["workload-errors@node"] is Severity.NOTICE


def test_a_process_younger_than_the_last_poll_is_told_by_the_next() -> None:
    cluster = Cluster()
    cluster.after(0, alive(), reading(GPU, pods=""), reading(OTHER, pods="8=uid-a"))
    cluster.after(1, error(GPU, 7))
    cluster.after(1, alive(), reading(GPU, pods="7=uid-a"), reading(OTHER, pods="8=uid-a"))
    found = cluster.after(5, error(OTHER, 8))
    assert found["workload-errors@node"] is Severity.NOTICE
