"""The simulation: scenarios that are checked before they play, injections that look like the real thing."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.model.errors import NotRunningError, UsageError
from agent.simulation.scenario import Scenario, load_scenario
from agent.simulation.simulated import Simulation, inject
from agent.sources.kmsg.lines import Facts, parse_record
from tests.waiting import LATEST_S


@pytest.fixture
def simulation(tmp_path: Path) -> Simulation:
    return Simulation(Scenario("h100-8"), tmp_path)


def kernel(simulation: Simulation) -> list[tuple[str, Any]]:
    lines = (simulation.directory / "kmsg").read_bytes().splitlines()
    return [(pci, value) for line in lines for _, pci, value, _ in Facts().of(parse_record(line).text)]


def boot_id(simulation: Simulation) -> str:
    return (simulation.directory / "boot_id").read_text()


def test_an_injected_xid_reaches_both_witnesses_and_asks_for_its_remedy(simulation: Simulation) -> None:
    simulation.request({"gpu": 3, "xid": 95})
    assert kernel(simulation) == [("0000:61:00.0", 95)]
    assert simulation.library.gpus[3].recovery_action == 1
    simulation.request({"gpu": 2, "xid": 31, "pid": 4711, "name": "python"})
    assert simulation.library.gpus[2].recovery_action == 0


def test_clear_is_a_reset_with_new_counters_and_a_reboot_only_where_it_takes_one(simulation: Simulation) -> None:
    gpu, before = simulation.library.gpus[3], boot_id(simulation)
    used = gpu.energy_j
    simulation.request({"gpu": 3, "xid": 95})
    simulation.request({"gpu": 3, "clear": True})
    assert (gpu.recovery_action, gpu.energy_j < used, boot_id(simulation)) == (0, True, before)
    simulation.request({"gpu": 3, "lost": True})
    simulation.request({"clear": True})
    assert not gpu.lost
    assert boot_id(simulation) != before


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"gpu": 12, "xid": 79}, "gpu: 12 is not in the profile h100-8, use 0..7"),
        ({"xid": 79}, "gpu: name the GPU's index"),
        ({"kernel": ["x"]}, "kernel: must be a line of at most 900 characters"),
        ({"gpu": 1, "xid": "79"}, "xid: '79' is not a number from 0 on"),
        ({"gpu": 1, "heat": 3}, "heat: not known"),
        ({"gpu": True, "xid": 79}, "gpu: True is not in the profile"),
        ({"gpu": 1}, "gpu: say what happens to it"),
        ({"gpu": 1, "temperature": float("nan")}, "temperature: nan is not a number"),
        ({"gpu": 1, "lost": False}, "lost: False is not true"),
        ({"clear": True, "xid": 79}, "gpu: name the GPU's index"),
    ],
)
def test_a_bad_request_names_the_field(simulation: Simulation, request_: dict[str, Any], sentence: str) -> None:
    assert simulation.request(request_)["error"].startswith(sentence)


def test_a_running_simulation_is_changed_over_its_socket(simulation: Simulation) -> None:
    with pytest.raises(NotRunningError, match="no simulation runs"):
        inject(simulation.directory, {"gpu": 0, "lost": True})
    threading.Thread(target=simulation.serve, args=(simulation.listen(),), daemon=True).start()
    assert inject(simulation.directory, {"gpu": 0, "lost": True}) == {"done": {"gpu": 0, "lost": True}}
    assert simulation.library.gpus[0].lost
    with pytest.raises(UsageError, match="not in the profile"):
        inject(simulation.directory, {"gpu": 9, "lost": True})


def test_a_gpu_is_as_it_was_when_its_next_process_reads_it_and_a_reset_needs_no_process(simulation: Simulation) -> None:
    """A reset's clients end before it: what they were told must not heal the GPU by their end."""
    simulation.request({"gpu": 3, "xid": 95})
    simulation.request({"gpu": 5, "temperature": 95})
    time.sleep(0.1)  # its counters go on meanwhile
    used = simulation.library.gpus[3].energy_j
    again = Simulation(Scenario("h100-8"), simulation.directory)
    assert (again.library.gpus[3].recovery_action, again.library.gpus[5].temperature_c) == (1, 95)
    assert again.library.gpus[3].energy_j >= used
    told = inject(simulation.directory, {"gpu": again.library.gpus[3].uuid, "clear": True})
    assert told == {"done": {"gpu": 3, "clear": True}, "note": "no process simulates it now"}
    third = Simulation(Scenario("h100-8"), simulation.directory)
    assert (third.library.gpus[3].recovery_action, third.library.gpus[5].temperature_c) == (0, 95)
    assert third.library.gpus[3].energy_j < used
    assert third.request({"state": True}) == {"state": {"5": {"temperature": 95}}}


def test_the_state_is_what_was_injected_since_the_last_clear(simulation: Simulation) -> None:
    simulation.request({"gpu": 3, "xid": 95})
    simulation.request({"gpu": 5, "temperature": 95})
    simulation.request({"gpu": 3, "clear": True})
    assert simulation.request({"state": True}) == {"state": {"5": {"temperature": 95}}}


def test_the_kernel_log_has_the_kernels_format_and_one_line_a_record(simulation: Simulation) -> None:
    simulation.request({"gpu": 3, "xid": 79})
    simulation.request({"gpu": 2, "xid": 31, "pid": 4711, "name": "a\n3,1,1,-;b"})
    first, second = (simulation.directory / "kmsg").read_text().splitlines()
    head = r"3,100{},\d+,-;NVRM: Xid \(PCI:0000:{}:00\): {}, "
    assert re.fullmatch(head.format(1, 61, 79) + "pid='<unknown>', name=<unknown>, .+", first)
    assert re.fullmatch(head.format(2, 52, 31) + r"pid=4711, name=a\\x0a3,1,1,-;b, .+", second)


def test_the_program_reads_an_injection_at_once_and_leaves_no_socket(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent.simulation.simulated", "--scenario", "idle", "--dir", str(tmp_path)]
    with subprocess.Popen([*command, "--poll-s", "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while '"alive"' not in (line := process.stdout.readline()):
            assert line
        assert json.loads(line)["boot_id"] == (tmp_path / "boot_id").read_text().strip()
        began = time.monotonic()
        inject(tmp_path, {"gpu": 3, "xid": 95})
        xid, reading = (json.loads(process.stdout.readline()) for _ in range(2))
        assert time.monotonic() - began < 1
        assert (xid["value"], reading["pci"], reading["values"]["recovery_action"]) == (95, "0000:61:00.0", 1)
        process.terminate()
        assert process.wait(LATEST_S) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boot_id", "bus", "gpus", "kmsg", "slots"]


def test_a_request_of_any_depth_or_length_ends_no_simulation(simulation: Simulation, tmp_path: Path) -> None:
    threading.Thread(target=simulation.serve, args=(simulation.listen(),), daemon=True).start()
    for said in (b"[" * 60_000 + b"\n", b"[" * 200_000 + b"\n", b'{"gpu": 1e999}\n', b"\xff\n", b"7\n"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "control"))
            with contextlib.suppress(ConnectionError):  # it has read enough
                client.sendall(said)
                assert b'"error"' in client.recv(4096)
    assert inject(tmp_path, {"gpu": 3, "xid": 95})


def test_an_unknown_scenario_ends_the_program_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent.simulation.simulated", "--scenario", "nonesuch", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "scenario: 'nonesuch' is neither a file nor one of demo, idle\n"


def test_every_shipped_scenario_loads() -> None:
    assert load_scenario("idle").steps == ()
    assert [step.at_s for step in load_scenario("demo").steps] == [5, 11, 19, 28, 42]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("profile: b300", "profile: 'b300' is none of h100-8"),
        ("profile: h100-8\nstep: []", "use the keys"),
        ("profile: h100-8\nsteps: [{at_s: 1, gpu: 8, xid: 79}]", "steps.0.gpu: 8 is not in the profile"),
        ("profile: h100-8\nsteps: [{gpu: 1, xid: 79}]", "steps.0.at_s: must be seconds"),
        ("profile: [", "not valid YAML"),
        ("profile: h100-8\nsteps: 5", "steps: must be a list"),
        ("profile: h100-8\nduration_s: long", "duration_s: 'long' is not a number"),
        ("profile: h100-8\nexpect: [1]", "expect: use the keys"),
        ("profile: h100-8\nexpect: {faults: 3}", "expect: faults must be a list"),
        ("profile: h100-8\nexpect: {steps: evict}", "expect: faults must be a list, and steps a mapping"),
        ("profile: 2001-99-99", "not valid YAML: month must be in 1..12"),
    ],
)
def test_a_bad_scenario_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"^scenario .+") as refused:
        load_scenario(str(path))
    assert sentence in str(refused.value)


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="one of demo, idle"):
        load_scenario("nonesuch")
