"""Whose an error was stays with the error: pids are used again, and pods are gone by the time somebody asks."""

from __future__ import annotations

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory, Orders, judge
from agent.model.fault import Severity
from agent.model.observation import Observation
from tests.observe import GPU, OTHER, Judge, alive, reading, xid


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


def placed(pid: int, place: str, code: int = 13) -> Observation:
    return xid(code, GPU, source="kmsg", values={"pid": pid, "place": place, "sm": 0})


def test_workloads_that_fail_at_one_unit_suspect_it_sooner_and_those_all_over_it_do_not() -> None:
    for places, suspected in ((("GPC 1, TPC 3", "GPC 1, TPC 3"), True), (("GPC 1, TPC 3", "GPC 2, TPC 3"), False)):
        cluster = Cluster()
        cluster.after(0, alive(), reading(GPU, pods="7=uid-a,8=uid-b"), reading(OTHER, pods=""))
        cluster.after(5, placed(7, places[0]))
        found = cluster.after(5, placed(8, places[1]))
        assert (found.get(f"app-errors@{GPU}") is Severity.DEGRADED) is suspected
    cluster.after(5, placed(7, "GPC 1, TPC 3"), placed(7, "GPC 0, TPC 0"), placed(8, "GPC 1, TPC 3"))
    assert f"app-errors@{GPU}" not in cluster.after(5, placed(8, "GPC 1, TPC 3")), "the first fails all over it"


def test_channels_that_are_removed_as_others_end_are_nobodys_fault() -> None:
    """672 of them in three hours were seen."""
    cluster = Cluster()
    cluster.workloads["uid-c"] = "c/Job/three"
    cluster.after(0, alive(), reading(GPU, pods="7=uid-a,8=uid-b,9=uid-c"), reading(OTHER, pods="6=uid-a"))
    for number in range(224):
        found = cluster.after(48, *(xid(45, GPU, source="kmsg", values={"pid": pid}) for pid in (7, 8, 9)))
        found = cluster.after(0, xid(45, OTHER, source="kmsg", values={"pid": 6 + number % 2}))
    assert {key for key in found if "silent" not in key} == {f"xid-45@{GPU}", f"xid-45@{OTHER}"}


def test_the_place_is_in_the_message() -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    (fault,) = judge.after(1, placed(7, "GPC 1, TPC 3")).faults
    assert fault.finding.message.endswith(", at GPC 1, TPC 3, SM 0")
    (fault,) = judge.after(1, xid(13)).faults
    assert fault.finding.message.endswith(", at GPC 1, TPC 3, SM 0"), "NVML tells the same without the place"
    values = {"engine": "CE2 HUBCLIENT_CE0", "access": "FAULT_PTE"}
    seen = judge.after(1, xid(31, source="kmsg", values=values)).faults
    assert any(f.finding.message.endswith(", by engine CE2 HUBCLIENT_CE0: FAULT_PTE") for f in seen)
