"""What the judge makes of a library in C: each poll is the real source's, along a made-up clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent.model.fault import Status
from agent.model.observation import Missing, Signal
from agent.model.remedy import Remedy
from tests.nvml.boards import ADDRESSES, FORMS, A, B, h100, v100
from tests.nvml.promise import opened
from tests.nvml.standin import Board, Driver, script, text
from tests.observe import Judge, ids, xid

OTHER, BAD = ADDRESSES


class Node:
    """Two boards, polled every 5 s."""

    def __init__(self, driver: Driver, *boards: Board) -> None:
        self.driver, self.boards = driver, dict(enumerate(boards or (h100(A), h100(B))))
        self.judge = Judge()
        self.answers()
        self.session = opened(*ADDRESSES)

    def answers(self, *lines: str) -> None:
        self.driver.answers(script(self.boards, *lines))

    def lives(self, seconds: int) -> None:
        for _ in range(seconds // 5):
            self.said = list(self.session.poll())
            self.verdict = self.judge.after(5, *self.said)

    def value(self, name: str, pci: str = BAD) -> object:
        return next(o.values.get(name) for o in self.said if o.pci == pci and o.signal is Signal.READING)


@pytest.fixture
def node(loaded: Callable[[], Driver]) -> Node:
    return Node(loaded())


@pytest.mark.parametrize("known", [True, False], ids=["known", "at the first start"])
@pytest.mark.parametrize(
    ("code", "status", "fault", "remedy", "words"),
    [
        (999, Status.DEGRADED, "gpu-silent", Remedy.CONTACT_SUPPORT, "Unknown Error (NVML error 999)"),
        (8, Status.DEGRADED, "gpu-silent", Remedy.CONTACT_SUPPORT, "power cables are not connected: a person"),
        (4, Status.UNKNOWN, "", Remedy.NONE, "give the container all the GPUs"),
        (15, Status.UNHEALTHY, "gpu-lost", Remedy.REBOOT_NODE, "NVML error 15"),
        (16, Status.UNHEALTHY, "gpu-reset-required", Remedy.RESET_GPU, "NVML error 16"),
    ],
)
def test_a_handle_that_fails_is_no_missing_gpu(
    node: Node, known: bool, code: int, status: Status, fault: str, remedy: Remedy, words: str
) -> None:
    if known:
        node.lives(10)
        assert node.verdict.status is Status.HEALTHY
    node.answers(f"answer nvmlDeviceGetHandleByIndex_v2 1 {code}")
    node.lives(600)
    assert (node.verdict.status, node.verdict.remedy) == (status, remedy)
    assert ids(node.verdict) == ([f"{fault}@{BAD}"] if fault else [])
    told = [fault.finding.message + fault.finding.evidence.raw for fault in node.verdict.faults]
    assert words in " ".join([*told, *node.verdict.blind_lines])
    assert not any(OTHER in line for line in (*told, *node.verdict.blind_lines))
    node.answers()
    node.lives(5)
    assert node.value("temperature_c") == 41


@pytest.mark.parametrize("code", [999, 17])
def test_a_gpu_that_opens_and_answers_nothing_is_degraded_with_nvmls_words(node: Node, code: int) -> None:
    node.lives(10)
    node.answers(f"answer * 1 {code}", "answer nvmlDeviceGetHandleByIndex_v2 1 0", "answer nvmlDeviceGetPciInfo_v3 1 0")
    node.lives(600)
    assert (node.verdict.status, ids(node.verdict)) == (Status.DEGRADED, [f"gpu-silent@{BAD}"])
    assert f"(NVML error {code}) to " in node.verdict.faults[0].finding.message


def test_two_gpus_of_one_address_are_read_as_neither(node: Node) -> None:
    """What the one answers must not be taken for the other's."""
    node.answers(text("nvmlDeviceGetPciInfo_v3", 0, B), "numbers nvmlDeviceGetRemappedRows 0 0 0 0 1")
    node.lives(600)
    assert node.verdict.status is Status.DEGRADED
    assert sorted(ids(node.verdict)) == [f"gpu-silent@{OTHER}", f"gpu-silent@{BAD}"]
    assert "its PCI address can't be read" in node.verdict.faults[0].finding.message


def test_a_missing_gpu_left_the_count_too(node: Node) -> None:
    node.lives(10)
    del node.boards[1]
    node.answers()
    node.lives(600)
    assert ids(node.verdict) == [f"gpu-missing@{BAD}"]


def test_what_mig_hid_for_a_while_is_read_and_judged_again(node: Node) -> None:
    node.answers("answer nvmlDeviceGetRemappedRows 1 3", "numbers nvmlDeviceGetMigMode 1 1 1")
    node.lives(30)
    assert node.value("remapped_rows_failure") is Missing.UNSUPPORTED
    node.answers("numbers nvmlDeviceGetRemappedRows 1 0 2 0 1")
    node.lives(15)
    assert node.value("remapped_rows_failure") == 1
    node.lives(120)
    assert ids(node.verdict) == [f"row-remap-failure@{BAD}"]


def test_what_was_unsupported_for_no_reason_is_asked_again_after_a_while(node: Node) -> None:
    node.answers("answer nvmlDeviceGetRemappedRows 1 3", "field 230 1 - 3")
    node.lives(10)
    node.answers()
    node.lives(10)
    assert node.value("recovery_action") is Missing.UNSUPPORTED
    node.session._present[BAD].asked_anew -= 601
    node.lives(10)
    assert (node.value("recovery_action"), node.value("remapped_rows_failure")) == (0, 0)


@pytest.mark.parametrize("form", FORMS)
def test_the_boards_of_nvidias_public_mock_library_are_read_and_healthy(
    loaded: Callable[[], Driver], form: str
) -> None:
    """The other ends of their NVLinks have empty addresses: only before Ampere anybody asks."""
    node = Node(loaded(), FORMS[form](A), FORMS[form](B))
    node.lives(900)
    assert (node.verdict.status, ids(node.verdict), node.verdict.blind_lines) == (Status.HEALTHY, [], ())
    unreadable = {n for o in node.said for n, value in o.values.items() if value is Missing.UNREADABLE}
    assert unreadable == ({"on_bus", "nvlink_peers"} if form == "t4" else {"on_bus"})


def test_a_text_that_is_none_costs_that_text_alone(node: Node) -> None:
    for odd in (b"", b"\xff\xfe", b"a\tb"):
        node.answers(*(text(f"nvmlDeviceGet{what}", 1, odd) for what in ("Name", "Serial", "UUID")))
        node.session = opened(*ADDRESSES)
        node.lives(600)
        assert (node.verdict.status, ids(node.verdict)) == (Status.HEALTHY, [])
        assert {node.value(name) for name in ("name", "serial", "uuid")} == {Missing.UNREADABLE}
        assert node.value("temperature_c") == 41


def test_a_uuid_that_is_none_is_no_other_card(node: Node) -> None:
    """Another card in the slot ends a fault that nothing else ends."""
    node.lives(10)
    node.judge.after(0, xid(95, BAD))
    node.answers(text("nvmlDeviceGetUUID", 1, "x" * 400))
    node.session = opened(*ADDRESSES)
    node.lives(1800)
    assert node.value("uuid") is Missing.UNREADABLE
    assert ids(node.verdict) == [f"xid-95@{BAD}"]
    node.answers(text("nvmlDeviceGetUUID", 1, "GPU-c0de0000-0000-4000-8000-00000000beef"))
    node.lives(10)
    assert [(fault.finding.id, fault.finding.message) for fault in node.verdict.faults] == [
        (
            f"gpu-replaced@{BAD}",
            "another card is in the slot: GPU-c0de0000-0000-4000-8000-00000000beef"
            " where GPU-c0de0000-0000-4000-8000-000000000001 was",
        )
    ]


def test_heat_is_told_in_the_scale_by_which_it_was_judged(loaded: Callable[[], Driver]) -> None:
    node = Node(loaded(), v100(A), h100(B))
    node.answers("numbers nvmlDeviceGetTemperatureV 0 91", "numbers nvmlDeviceGetMarginTemperature 1 -3")
    node.lives(120)
    told = {fault.finding.pci: (fault.finding.message, fault.finding.evidence.raw) for fault in node.verdict.faults}
    assert told == {
        OTHER: ("hotter than its slowdown limit", "91 °C, slowdown limit 89 °C"),
        BAD: (
            "the thermal margin (T.Limit) is down to its slowdown offset of -2 °C",
            "margin -3 °C, slowdown offset -2 °C (T.Limit)",
        ),
    }


def test_the_index_is_nvmls_also_when_gpus_close_up(node: Node) -> None:
    node.lives(10)
    assert node.value("index") == 1
    del node.boards[0]
    node.answers()
    node.lives(5)
    assert node.value("index") == 0
