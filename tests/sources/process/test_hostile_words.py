"""Words made to end a process, on the socket between the containers: they cost their line, and are counted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from agent.config.limits import Limits
from agent.config.source_index import Known
from agent.diagnosis.judge import Memory, judge
from agent.model.errors import UnaskedError, UndiagnosedError
from agent.model.observation import Failure, Observation, Signal, Words, parse_line
from agent.sources.dcgm.diag_process import Diagnosing
from agent.sources.process.remote import Remote, ask
from tests.sources.process.container import GOOD, serving
from tests.waiting import LATEST_S, until

DEEP = b"[" * 60_000
STATUS = b'{"status":{"nvml":{"running":1,"pid":%s,"starts":1,"garbage":0,"trouble":"","ended":0}},"heard":1}'
BOMBS = {
    "lists": DEEP,
    "a status of lists": b'{"status":' + DEEP,
    "a status that is endless": STATUS % b"1e999",
    "a status that is huge": STATUS % (b"1" + b"0" * 4000),
    "a status of other types": b'{"status":{"nvml":7},"heard":1}',
    "a status without its parts": b'{"status":{"nvml":{}},"heard":1}',
    "a status and more": b'{"status":{},"heard":1,"more":1}',
    "a number": GOOD.replace(b'"nvml"', b'"nvml","value":1%s' % (b"0" * 4000)).strip(),
    "more digits than Python reads": GOOD.replace(b'"nvml"', b'"nvml","seq":%s' % (b"9" * 5000)).strip(),
    "NaN": GOOD.replace(b'"nvml"', b'"nvml","values":{"power_w":NaN}').strip(),
    "infinity": GOOD.replace(b'"nvml"', b'"nvml","values":{"power_w":-1e999}').strip(),
    "half a character": GOOD.replace(b'"nvml"', b'"nvml","values":{"uuid":"\\ud800"}').strip(),
    "no UTF-8": GOOD.replace(b'"nvml"', b'"nvml","raw":"\xff"').strip(),
}


@contextlib.contextmanager
def answering(folder: Path, answer: bytes) -> Iterator[socket.socket]:
    """Another container that says this to whoever connects."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen(4)

        def work() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(4096):
                            pass

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield listener
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(LATEST_S)


@pytest.mark.parametrize("what", BOMBS)
def test_a_line_that_would_end_the_agent_is_dropped_and_counted(folder: Path, what: str) -> None:
    with answering(folder, BOMBS[what] + b"\n" + GOOD):
        remote, seen = Remote(folder / "s", ("nvml",)), list[Observation]()

        def heard() -> bool:
            seen.extend(remote.turn(0.1))
            return bool(seen)

        until(heard)
        assert [one.signal for one in seen] == [Signal.ALIVE]
        assert [status.garbage for status in remote.statuses] == [1]
        remote.close()


@pytest.mark.parametrize("what", BOMBS)
def test_an_answer_that_would_end_the_agent_is_none(folder: Path, what: str) -> None:
    with answering(folder, BOMBS[what] + b"\n"):
        remote = Remote(folder / "s", ("nvml",))
        with pytest.raises(UnaskedError):
            remote.who_holds()
        with pytest.raises(UndiagnosedError):
            remote.diagnose(1, ["GPU-a"], lambda _: None)


def test_an_answer_of_sixteen_mebibytes_takes_no_memory_that_the_agent_has_not(folder: Path) -> None:
    answer = b'{"a/train":[' + b"[]," * (5 << 20) + b"[]]}\n"
    with answering(folder, answer):
        tracemalloc.start()
        with pytest.raises(UnaskedError):
            Remote(folder / "s", ("nvml",)).who_holds()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 96 << 20, f"{peak >> 20} MiB"


def test_an_answer_that_drips_is_none_once_its_time_is_over(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen(1)

        def drip() -> None:
            with listener.accept()[0] as connection, contextlib.suppress(OSError):
                for _ in range(100):
                    connection.sendall(b" ")
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(TimeoutError):
            ask(folder / "s", {"do": "who-holds"}, 0.2)
        thread.join(10)


@pytest.fixture
def many_files() -> Iterator[None]:
    """So many that the next has a number which select() can't take."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for file in files:
        os.close(file)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_with_a_thousand_files_open_the_agent_hears_and_diagnoses_as_ever(folder: Path, many_files: None) -> None:
    with answering(folder, GOOD):
        remote = Remote(folder / "s", ("nvml",))
        until(lambda: remote.turn(0.1))
        remote.close()
    result = {"passed": True, "results": {}, "errors": []}
    program = [sys.executable, "-c", f"print({json.dumps(result)!r})"]
    assert Diagnosing(program).run(1, ["GPU-a"], lambda _: None) == result


WISH: dict[str, Any] = {"do": "resume", "source": "nvml", "boot_id": "boot-1", "seq": 1}
REQUESTS: dict[str, bytes] = {
    "lists": b"[" * 4000,
    "an endless position": b'{"do":"resume","source":"nvml","seq":1e999}',
    "a position of 4,000 digits": b'{"do":"resume","source":"nvml","seq":1%s}' % (b"0" * 3900),
    "an argument that ends early": json.dumps({**WISH, "boot_id": "\0"}).encode(),
    "an argument that is an option": json.dumps({**WISH, "boot_id": "--path=/etc/shadow"}).encode(),
    "half a character": json.dumps({**WISH, "boot_id": "\udc80"}).encode(),
    "a level of lists": b'{"do":"diagnose","level":[],"gpus":{}}',
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_that_would_end_the_sources_costs_its_own_connection_only(folder: Path, what: str) -> None:
    told = list[str]()
    with serving(folder, told):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(10)
            stranger.connect(str(folder / "s"))
            stranger.sendall(REQUESTS[what] + b"\n")
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        until(lambda: any("makes no sense" in event for event in told))
        remote = Remote(folder / "s", ("nvml",))
        remote.want(frozenset({"nvml"}), Known())
        until(lambda: remote.turn(0.1))
        remote.close()


ASKS = [{"do": "who-holds"}, {"do": "who-runs"}, {"do": "diagnose", "level": 1, "gpus": ["GPU-a"]}]


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
@pytest.mark.parametrize("asked", ASKS, ids=lambda asked: asked["do"])
@pytest.mark.parametrize("wishes", [False, True])
def test_whatever_follows_in_one_connection_ends_no_sources(
    folder: Path, wishes: bool, asked: dict[str, Any], pause_s: float
) -> None:
    with serving(folder, []):
        with socket.socket(socket.AF_UNIX) as stranger, contextlib.suppress(OSError):
            stranger.connect(str(folder / "s"))
            for one in ([WISH] if wishes else []) + [asked, asked, WISH, asked]:
                stranger.sendall(json.dumps(one).encode() + b"\n")
                time.sleep(pause_s)
        remote = Remote(folder / "s", ("nvml",))
        remote.want(frozenset({"nvml"}), Known())
        until(lambda: remote.turn(0.1))
        remote.close()


def test_wishes_for_what_nobody_knows_are_not_kept(folder: Path) -> None:
    with serving(folder, []) as (_, supervisor), socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(10)
        agent.connect(str(folder / "s"))
        for number in range(5):
            gpus = [f"{domain:04x}:1b:00.0" for domain in range(number * 100, number * 100 + 100)]
            agent.sendall(json.dumps({**WISH, "source": f"x{number}", "gpus": gpus}).encode() + b"\n")
        agent.sendall(json.dumps(WISH).encode() + b"\n")
        until(lambda: b'"signal":"alive"' in agent.recv(65536))
        assert len(supervisor._known.gpus) <= 256
        assert supervisor._wanted == {"nvml"}


PLAIN: list[Any] = [True, 0, -1, 79, 48, 2**64, -(2**63), 1.8e19, 5e-324, "", "x" * 600, "\0", "²", "1=a,=", "GPU-a"]
BENT: list[Any] = [None, [], {}, [[]], {"a": 1}, {"a": None}, ["a"], "0000:1b:00.0", *Failure, *Words]
NAMES = [
    *("uuid", "name", "index", "architecture", "temperature_c", "margin_c", "power_w", "energy_j", "recovery_action"),
    *("ecc_uncorrected_volatile", "ecc_corrected_volatile", "remapped_rows_pending", "retired_pages_pending", "pods"),
    *("pcie_width", "pcie_max_width", "pcie_replays", "hw_thermal_ns", "nvlink_up", "nvlink_crc", "nvlink_ber", "pid"),
    *("fabric_state", "processes", "repeats", "missing", "gpu_count", "persistence_mode", "gpu_instance", "check"),
]
FIELDS = [field.name for field in fields(Observation) if field.name != "arrived"]


def test_a_line_of_any_types_is_no_observation_or_one_that_can_be_judged_and_said_again() -> None:
    dice = random.Random(18)
    judged, memory, now = 0, Memory(), 1000.0
    sources = ("nvml", "kmsg", "dcgm")
    for _ in range(300):
        now += dice.choice((0.1, 5, 61))
        seen = []
        for _ in range(8):
            line: dict[str, Any] = {"at": "2026-01-01T00:00:00Z", "source": dice.choice(sources)}
            line |= {"signal": dice.choice(list(Signal)), "pci": dice.choice(("", "0000:1b:00.0", "0000:43:00.0"))}
            line["values"] = {name: dice.choice(PLAIN) for name in dice.sample(NAMES, 8)}
            for field in dice.sample(FIELDS, 2):
                line[field] = dice.choice([*PLAIN, *BENT])
            with contextlib.suppress(ValueError):
                seen.append(parse_line(json.dumps(line), now))
        judged += len(seen)
        memory, _ = judge(memory, seen, now, now, Limits(), sources)
        for one in seen:
            parse_line(one.to_json(), now)
    assert judged > 100
