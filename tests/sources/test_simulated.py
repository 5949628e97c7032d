"""The simulation: scenarios that are checked before they play, injections that look like the real thing."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.sources.kernel_text import Facts, parse_record
from agent.sources.simulated import Scenario, Simulation, inject, load_scenario


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
        ({"gpu": 1, "xid": "79"}, "xid: '79' is not a number from 0 on"),
        ({"gpu": 1, "heat": 3}, "heat: not known"),
    ],
)
def test_a_bad_request_names_the_field(simulation: Simulation, request_: dict[str, Any], sentence: str) -> None:
    assert simulation.request(request_)["error"].startswith(sentence)


def test_a_running_simulation_is_changed_over_its_socket(simulation: Simulation) -> None:
    with pytest.raises(ConnectionError, match="no simulation runs"):
        inject(simulation.directory, {"gpu": 0, "lost": True})
    threading.Thread(target=simulation.listen, daemon=True).start()
    end = time.monotonic() + 5
    while not (simulation.directory / "control").exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert inject(simulation.directory, {"gpu": 0, "lost": True}) == {"done": {"gpu": 0, "lost": True}}
    assert simulation.library.gpus[0].lost
    with pytest.raises(ValueError, match="not in the profile"):
        inject(simulation.directory, {"gpu": 9, "lost": True})


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
    ],
)
def test_a_bad_scenario_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^scenario .+") as refused:
        load_scenario(str(path))
    assert sentence in str(refused.value)


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="one of demo, idle"):
        load_scenario("nonesuch")
