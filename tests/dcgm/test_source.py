"""The DCGM source as the process it is: NVIDIA's bindings over a stand-in engine (tests/dcgm/standin.py says which)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.config.config_file import load
from agent.model.errors import ConfigError
from agent.model.observation import Failure, Missing, Observation, Signal
from agent.sources.dcgm.fields import FIELDS, XID
from agent.sources.dcgm.poll import USUAL, answers, failure
from tests.dcgm.standin import Engine
from tests.watched import Watched

A, B = "0000:1b:00.0", "0000:43:00.0"
BLANK = 0x7FFFFFFFFFFFFFF0


def reading(seen: list[Observation], pci: str) -> Observation:
    return [o for o in seen if o.signal is Signal.READING and o.pci == pci][-1]


def failed(seen: Observation) -> bool:
    return seen.signal is Signal.FAILED


def test_each_gpu_is_read_by_field_numbers_and_named_by_its_pci_address(engine: Engine) -> None:
    engine.answers("value 1 1 150 i 71\nvalue 1 1 155 d 612.5\nvalue 1 1 393 i 4\n")
    with engine.source() as source:
        seen = source.polls(1)
    assert [o.pci for o in seen if o.signal is Signal.READING] == [A, B]
    values = reading(seen, B).values
    assert (values["temperature_c"], values["power_w"], values["remapped_rows_uncorrected"]) == (71, 612.5, 4)
    assert values["uuid"] == "GPU-b"
    assert values["recovery_action"] == 0, "DCGM's 1523, never its 230"
    assert XID not in FIELDS


def test_a_blank_is_no_number_even_with_a_fresh_time_stamp(engine: Engine) -> None:
    blanks = {
        310: f"i {BLANK}",
        311: f"i {BLANK + 2}",
        312: f"i {BLANK + 1}",
        313: f"i {BLANK + 3}",
        393: f"i {0x7FFFFFF0}",
        394: f"i {0x7FFFFFF2}",
        155: "d 140737488355328.0",
        395: "s <<<NULL>>>",
    }
    engine.answers("".join(f"value 1 0 {field} {text}\n" for field, text in blanks.items()))
    with engine.source() as source:
        values = reading(source.polls(1), A).values
    assert {FIELDS[field]: values[FIELDS[field]] for field in blanks} == {
        "ecc_corrected_volatile": Missing.UNREADABLE,
        "ecc_uncorrected_volatile": Missing.UNSUPPORTED,
        "ecc_corrected_aggregate": Missing.UNREADABLE,
        "ecc_uncorrected_aggregate": Missing.UNREADABLE,
        "remapped_rows_uncorrected": Missing.UNREADABLE,
        "remapped_rows_corrected": Missing.UNSUPPORTED,
        "power_w": Missing.UNREADABLE,
        "remapped_rows_failure": Missing.UNREADABLE,
    }
    assert values["temperature_c"] == 44


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_value_that_is_no_number_is_unreadable_and_the_others_of_its_gpu_are_read(
    engine: Engine, number: str
) -> None:
    engine.answers(f"value 1 0 155 d {number}\n")
    with engine.source() as source:
        values = reading(source.polls(1), A).values
    assert (values["power_w"], values["temperature_c"]) == (Missing.UNREADABLE, 44)


def test_unsupported_unreadable_and_not_yet_read_are_told_apart_by_status(engine: Engine) -> None:
    engine.answers("value 1 0 310 i 1 -6\nvalue 1 0 311 i 1 -3\nvalue 1 0 312 i 1 -14\nvalue 1 0 313 i 1 -16\n")
    with engine.source() as source:
        values = reading(source.polls(1), A).values
    assert (values["ecc_corrected_volatile"], values["ecc_uncorrected_volatile"]) == (
        Missing.UNSUPPORTED,
        Missing.UNREADABLE,
    )
    assert not {"ecc_corrected_aggregate", "ecc_uncorrected_aggregate"} & values.keys()


def test_a_value_that_the_engine_stopped_renewing_is_no_reading_of_now(engine: Engine) -> None:
    engine.answers("value 1 0 150 i 44 0 3600\n")
    with engine.source() as source:
        values = reading(source.polls(1), A).values
    assert (values["temperature_c"], values["recovery_action"]) == (Missing.UNREADABLE, 0)


def test_fields_that_an_older_library_lacks_are_left_out(engine: Engine) -> None:
    with engine.source(DCGM_STANDIN_NEWEST_FIELD="400") as source:
        values = reading(source.polls(1), A).values
    assert "recovery_action" not in values
    assert values["temperature_c"] == 44


def test_a_gpu_that_left_the_list_has_no_reading_though_it_answers_fresh_blanks_and_health_passes(
    engine: Engine,
) -> None:
    with engine.source() as source:
        source.polls(1)
        engine.answers(f"dropped 0\nvalue 1 0 0 i {BLANK}\n")
        source.until(lambda seen: seen.values.get("gpu_count") == 1)
        seen = source.polls(2)
    assert [o.pci for o in seen if o.signal is Signal.READING] == [B, B]
    assert not [o for o in seen if o.signal in (Signal.HEALTH, Signal.FAILED)]


def test_an_engine_that_skips_the_driver_is_told_with_the_xid_that_made_it_so(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(2)
        engine.answers(f"skips\nxid 1 1 119 {int(time.time() * 1e6)}\n")
        seen = source.until(failed)
    assert (seen.value, "every value of every GPU is blank: after an Xid 119" in seen.raw) == (Failure.UNREADABLE, True)
    assert [o.value for o in source.said if o.signal is Signal.XID] == [119]


def test_an_engine_that_is_detached_from_the_driver_says_so_and_drops_no_gpu(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(1)
        engine.answers("detached\n")
        seen = source.until(failed)
        assert (seen.value, "it was detached from it" in seen.raw) == (Failure.UNREADABLE, True)
        assert {o.values["gpu_count"] for o in source.said if o.signal is Signal.ALIVE} == {2}


def test_two_xids_of_one_interval_both_show_and_each_once(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(2)
        at = int(time.time() * 1e6)
        engine.answers(f"xid 1 1 31 {at}\nxid 1 1 79 {at + 5}\n")
        source.until(lambda seen: seen.signal is Signal.XID and seen.value == 79)
        source.polls(3)
    seen = [(o.pci, o.value, round(o.at * 1e6)) for o in source.said if o.signal is Signal.XID]
    assert seen == [(B, 31, at), (B, 79, at + 5)]


def test_the_last_xid_that_the_gauge_still_holds_is_old_news(engine: Engine) -> None:
    engine.answers(f"xid 1 0 79 {int(time.time() * 1e6) - 5_000_000}\nvalue 1 0 230 i 79\n")
    with engine.source() as source:
        seen = source.polls(3)
    assert not [o for o in seen if o.signal is Signal.XID]


SWITCHES = "switch 5\nswitch 6\n" + "".join(
    f"value 3 5 {field} i {value}\n" for field, value in ((866, 0), (867, 5), (868, 0), (869, 0))
)


def sxids(source: Watched) -> list[tuple[str, object, object]]:
    return [(o.pci, o.value, o.values["fatal"]) for o in source.said if o.signal is Signal.SXID]


def test_a_switchs_errors_of_one_interval_all_show_each_once_and_at_its_own_address(engine: Engine) -> None:
    engine.answers(SWITCHES)
    with engine.source() as source:
        source.polls(5)
        at = int(time.time() * 1e6)
        engine.answers(f"{SWITCHES}sxid 5 857 12028 {at}\nsxid 5 856 20034 {at + 5}\nsxid 6 856 22013 {at + 7}\n")
        source.until(lambda seen: seen.signal is Signal.SXID and seen.value == 22013)
        source.polls(5)
    assert sxids(source) == [("0000:05:00.0", 12028, 0), ("0000:05:00.0", 20034, 1), ("", 22013, 1)]
    told = next(o for o in source.said if o.value == 20034)
    assert (round(told.at * 1e6), told.raw) == (at + 5, "DCGM field 856: SXid 20034 of its NVSwitch 5")
    assert "dcgmGroupAddEntity 3 5" in engine.calls()


def test_a_switchs_last_error_that_the_engine_stamps_anew_at_each_poll_is_one_error(engine: Engine) -> None:
    engine.answers(SWITCHES)
    with engine.source() as source:
        source.polls(5)
        engine.answers(f"{SWITCHES}sxid 5 856 20034 0\n")
        source.until(lambda seen: seen.signal is Signal.SXID)
        source.polls(10)
        engine.answers(f"{SWITCHES}sxid 5 856 11001 0\n")
        source.until(lambda seen: seen.signal is Signal.SXID)
        source.polls(5)
    assert [code for _, code, _ in sxids(source)] == [20034, 11001]


def test_a_switchs_error_that_stood_before_we_came_is_old_news_however_fresh_its_stamp(engine: Engine) -> None:
    engine.answers(f"{SWITCHES}sxid 5 856 20034 0\n")
    with engine.source() as source:
        source.polls(15)
    assert sxids(source) == []


def test_a_switchs_error_that_the_engine_finds_late_shows_all_the_same_and_once(engine: Engine) -> None:
    """Its stamp is its own time, which may lie before our last look."""
    engine.answers(SWITCHES)
    with engine.source() as source:
        source.polls(5)
        engine.answers(f"{SWITCHES}sxid 5 857 12028 {int(time.time() * 1e6)}\n")
        source.until(lambda seen: seen.signal is Signal.SXID)
        late = int(time.time() * 1e6) - 45_000_000
        engine.answers(f"{SWITCHES}sxid 5 857 12022 {late}\n")
        source.until(lambda seen: seen.signal is Signal.SXID and seen.value == 12022)
        source.polls(5)
    assert [code for _, code, _ in sxids(source)] == [12028, 12022]


def test_a_stamp_that_is_no_time_of_these_days_becomes_the_present(engine: Engine) -> None:
    engine.answers(SWITCHES)
    with engine.source() as source:
        source.polls(5)
        engine.answers(f"{SWITCHES}sxid 5 857 12028 {time.time_ns()}\n")
        seen = source.until(lambda seen: seen.signal is Signal.SXID)
        source.polls(5)
    assert abs(seen.at - time.time()) < 60
    assert [code for _, code, _ in sxids(source)] == [12028]


def test_a_switch_that_appears_is_watched_by_a_new_process(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(1)
        engine.answers(SWITCHES)
        assert source.ended() == 75


def test_an_engine_that_has_nothing_to_do_with_switches_lists_none(engine: Engine) -> None:
    engine.answers(f"{SWITCHES}error dcgmGetEntityGroupEntities -33\n")
    with engine.source() as source:
        source.polls(2)
    assert not [call for call in engine.calls() if call.startswith("dcgmGroupAddEntity 3")]


def test_an_xid_and_an_incident_of_a_mig_instance_stay_on_it(engine: Engine) -> None:
    engine.answers("mig 7 1 3\n")
    with engine.source() as source:
        source.polls(1)
        more = f"xid 4 7 43 {int(time.time() * 1e6)}\nincident 10 10 4 4 7 GPU 0 has an error\n"
        engine.answers(f"mig 7 1 3\n{more}")
        xid = source.until(lambda seen: seen.signal is Signal.XID)
        source.until(lambda seen: seen.signal is Signal.HEALTH)
    health = next(o for o in source.said if o.signal is Signal.HEALTH)
    assert [(o.pci, o.values["gpu_instance"]) for o in (xid, health)] == [(B, 3), (B, 3)]
    assert "dcgmGroupAddEntity 4 7" in engine.calls()


def test_other_instances_than_those_watched_are_watched_by_a_new_process(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(1)
        engine.answers("mig 7 1 3\n")
        assert source.ended() == 75


def test_the_entity_names_the_gpu_and_never_the_text(engine: Engine) -> None:
    """A row-remap failure's text carries a number that was never filled in."""
    engine.answers("incident 10 20 80 1 1 Row remap failure on GPU 32767\nincident 2 10 14 6 83886336 link\n")
    with engine.source() as source:
        seen = [o for o in source.polls(2) if o.signal is Signal.HEALTH]
    assert (seen[0].pci, seen[0].value, seen[0].values["health"]) == (B, 80, 20)
    assert (seen[1].pci, seen[1].values["entity"]) == ("", "6:83886336"), "a link of a GPU that nobody knows"


def test_an_incident_of_all_systems_is_an_xids_and_says_which(engine: Engine) -> None:
    text = "GPU 0 has fallen off the bus (triggered by XID 79: GPU fell off the bus)"
    engine.answers(f"incident ffffffff 20 120 1 0 {text}\nincident 10 10 101 1 0 Detected XID 31 for GPU 0\n")
    with engine.source() as source:
        seen = [o for o in source.polls(2) if o.signal is Signal.HEALTH]
    assert [(o.value, o.values["system"], o.values["xid"]) for o in seen[:2]] == [(120, 0xFFFFFFFF, 79), (101, 16, 0)]


def test_bytes_that_are_no_text_cost_the_text_and_nothing_else(engine: Engine) -> None:
    engine.answers("incident 10 20 80 1 1 broken \udcff\udcfe text\n")
    with engine.source() as source:
        seen = source.until(lambda seen: seen.signal is Signal.HEALTH)
    assert (seen.pci, seen.value, seen.raw) == (B, 80, "")


def test_the_first_checks_have_no_samples_and_end_no_incident(engine: Engine) -> None:
    with engine.source("--health-s", "0.5") as source:
        heard: list[Observation] = []
        while not heard or "check" not in heard[-1].values:
            heard.append(source.until(lambda seen: seen.signal is Signal.ALIVE))
    checks = engine.calls().count("dcgmHealthCheck ")
    assert checks >= 3, "two intervals passed before a check counted"


@pytest.mark.parametrize(
    ("call", "status"), [("dcgmHealthSet_v2", -33), ("dcgmHealthCheck", -33), ("dcgmHealthSet_v2", -6)]
)
def test_an_engine_without_its_health_check_loses_nothing_else(engine: Engine, call: str, status: int) -> None:
    """As one whose health module is on its denylist."""
    engine.answers(f"error {call} {status}\nincident 10 20 80 1 1 x\n")
    with engine.source() as source:
        source.polls(3)
        engine.answers(f"error {call} {status}\nxid 1 1 79 {int(time.time() * 1e6)}\n")
        source.until(lambda seen: seen.signal is Signal.XID)
        seen = source.polls(3)
    assert reading(seen, A).values["temperature_c"] == 44
    assert not [o for o in source.said if o.signal in (Signal.FAILED, Signal.HEALTH)]
    beats = [o.values for o in source.said if o.signal is Signal.ALIVE]
    assert all(f"(DCGM error {status})" in str(values["no_health"]) and "check" not in values for values in beats)
    assert engine.calls().count("dcgmHealthCheck ") == (call == "dcgmHealthCheck"), "it is not asked again"


def test_the_engines_version_is_told_and_the_librarys_apart(engine: Engine) -> None:
    engine.answers("version 4.6.0\n")
    with engine.source() as source:
        told = source.until(lambda seen: seen.signal is Signal.ALIVE).values
        assert (told["dcgm_version"], told["dcgm_library"]) == ("4.6.0", "stand-in")
    engine.answers("error dcgmHostengineVersionInfo -12\n")
    with engine.source() as source:
        assert "dcgm_version" not in source.until(lambda seen: seen.signal is Signal.ALIVE).values


def test_groups_are_our_own_by_name_and_no_policy_is_touched(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(3)
        source.process.terminate()
        assert source.ended() == 0
    calls = engine.calls()
    named = [call.split()[1] for call in calls if call.startswith(("dcgmGroupCreate", "dcgmFieldGroupCreate"))]
    assert len(named) == 4
    assert all(name.startswith("gpu-health-agent-") for name in named)
    assert not [call for call in calls if "Policy" in call], "one slot per GPU, shared by all clients"
    assert calls[-1] == "dcgmDisconnect ", "the engine drops the watches of a client that leaves"
    watches = [call.split()[1:] for call in calls if call.startswith("dcgmWatchFields")]
    assert ["100000", "3600", "1000"] in watches, "a thousand Xids are kept between two looks"


def test_an_embedded_engine_is_started_only_where_it_is_asked_for(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(1)
    assert not [call for call in engine.calls() if "Embedded" in call]
    with engine.source(address="embedded") as source:
        source.polls(1)
    assert [call for call in engine.calls() if "dcgmStartEmbedded" in call]


def test_with_nobody_listening_it_says_so_at_once_and_imports_nothing(engine: Engine) -> None:
    engine.stops_listening()
    began = time.monotonic()
    with engine.source("--bindings", "/nowhere") as source:
        seen = source.until(failed)
    assert (seen.value, engine.address in seen.raw) == (Failure.UNREADABLE, True)
    assert engine.calls() == []
    assert time.monotonic() - began < 5, "the bindings wait 5 s for nobody"


def test_by_default_nobody_is_missed(engine: Engine) -> None:
    """Where an engine does answer at the usual place, as on a machine with a GPU, it is asked."""
    with engine.source(address="auto") as source:
        seen = source.until(lambda _: True)
    assert seen.value == (None if answers(USUAL) else Failure.ABSENT)
    assert not [call for call in engine.calls() if "Embedded" in call]


def test_a_unix_socket_is_an_address(engine: Engine, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with engine.source(address=str(tmp_path / "s")) as source:
            source.polls(1)
    assert any(call.endswith(f"{tmp_path}/s") for call in engine.calls())
    assert not answers(str(tmp_path / "nothing"))


def test_without_the_bindings_it_says_where_they_were_looked_for(engine: Engine) -> None:
    with engine.source("--bindings", "/nowhere") as source:
        seen = source.until(failed)
    assert (seen.value, "bindings are not in /nowhere" in seen.raw) == (Failure.NO_LIBRARY, True)


def test_without_the_library_it_says_so(engine: Engine, tmp_path: Path) -> None:
    with engine.source("--library", str(tmp_path), LD_LIBRARY_PATH="") as source:
        seen = source.until(failed)
    assert (seen.value, "DCGM error -25" in seen.raw) == (Failure.NO_LIBRARY, True)


@pytest.mark.parametrize("call", ["dcgmHealthCheck", "dcgmGetDeviceAttributes"])
def test_an_engine_of_another_version_is_named(engine: Engine, call: str) -> None:
    engine.answers(f"error {call} -12\n")
    with engine.source() as source:
        seen = source.until(failed)
        assert source.process.poll() is None, "it tries again in a minute, not in a loop"
    assert seen.value == Failure.LIBRARY_MISMATCH


def test_an_engine_that_dies_ends_the_process_without_one_more_call_into_the_connection(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(2)
        engine.answers("error * -21\n")
        seen = source.until(failed)
        assert source.ended() == 75
        assert "Exception ignored" not in source.complaint(), "a destructor of the bindings was run"
    assert (seen.value, "ended the connection" in seen.raw) == (Failure.UNREADABLE, True)
    assert "dcgmDisconnect" not in engine.calls()[-1]


def test_an_engine_that_never_answers_is_named_while_it_does_not_and_read_when_it_does(engine: Engine) -> None:
    with engine.source() as source:
        source.polls(1)
        engine.answers("hang dcgmHealthCheck\n")
        seen = source.until(failed)
        assert (seen.value, "checking health has not returned" in seen.raw) == (Failure.HUNG, True)
        engine.answers()
        source.polls(2)
        assert source.process.poll() is None


@pytest.mark.parametrize(
    ("call", "status", "what"), [("dcgmHealthCheck", -11, "checking health"), ("dcgmConnect_v3", -21, "connecting")]
)
def test_a_frozen_engine_is_one_word_though_the_library_gives_up_after_a_while(
    engine: Engine, call: str, status: int, what: str
) -> None:
    """The real one does after 60 or 120 s, with TIMEOUT or CONNECTION_NOT_VALID."""
    frozen = "".join(f"slow {one} 3\nerror {one} {status}\n" for one in (call, call.replace("_v3", "_v2")))
    engine.answers(frozen)
    with engine.source() as source:
        source.until(failed)
        assert source.ended() == 75
        words = [(o.value, o.raw) for o in source.to_the_end() if failed(o)]
    assert set(words) == {(Failure.HUNG, f"the DCGM engine does not answer: {what} has not returned")}
    assert len(words) >= 2, "while it hangs, and when the library gives up"


@pytest.mark.parametrize(
    "call",
    [
        "dcgmInit",
        "dcgmGetAllSupportedDevices",
        "dcgmEntitiesGetLatestValues",
        "dcgmGetValuesSince_v2",
        "dcgmWatchFields",
        "dcgmHealthSet_v2",
    ],
)
def test_whichever_call_hangs_is_named(engine: Engine, call: str) -> None:
    engine.answers(f"hang {call}\n")
    with engine.source() as source:
        seen = source.until(failed)
    assert (seen.value, "the DCGM engine does not answer" in seen.raw) == (Failure.HUNG, True)


def test_a_library_that_crashes_takes_this_process_and_no_other(engine: Engine) -> None:
    engine.answers("crash dcgmHealthCheck\n")
    with engine.source() as source:
        assert source.ended() == -signal.SIGABRT


def test_the_bindings_are_found_last_for_they_bring_a_package_named_common(built: tuple[Path, Path]) -> None:
    code = (
        "import sys, pathlib\nfrom agent.sources.dcgm.bindings import load\nbefore = list(sys.path)\n"
        f"load(pathlib.Path({str(built[0])!r}), pathlib.Path({str(built[1])!r}))\n"
        "assert sys.path[:-1] == before, sys.path"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={**os.environ, "PYTHONPATH": ""})


@pytest.mark.skipif("DCGM_ADDRESS" not in os.environ, reason="DCGM_ADDRESS names no real engine, and CI can have none")
def test_a_real_engine_is_read() -> None:
    command = [sys.executable, "-m", "agent.sources.dcgm", "--address", os.environ["DCGM_ADDRESS"], "--poll-s", "1"]
    given = ["--bindings", os.environ["DCGM_BINDINGS"]] if "DCGM_BINDINGS" in os.environ else []
    with subprocess.Popen([*command, *given], stdout=subprocess.PIPE) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
    assert b'"signal":"failed"' not in b"".join(lines)
    assert b'"source":"dcgm"' in lines[0]


@pytest.mark.parametrize("address", ["somewhere", "host:port", "a b:5555", "", "host:123456"])
def test_an_address_that_is_none_is_said_in_one_sentence(tmp_path: Path, address: str) -> None:
    (tmp_path / "c.yaml").write_text(f'sources: {{dcgm: {{address: "{address}"}}}}')
    with pytest.raises(
        ConfigError, match=r"sources\.dcgm\.address: .*name host:port, a socket's path, auto or embedded"
    ):
        load(tmp_path / "c.yaml")
    assert not answers("127.0.0.1:99999")
    assert not answers("a..b:5555")


def test_the_engines_own_words_are_passed_on() -> None:
    class DCGMError(Exception):  # as the bindings name it
        value, info = -56, "NVML: driver\x1b[31m not loaded"

    said = failure(DCGMError(), "localhost:5555").raw
    assert said.endswith(" (DCGM error -56: NVML: driver?[31m not loaded)")


def test_two_agents_of_one_process_id_have_groups_of_their_own_names(engine: Engine) -> None:
    for _ in range(2):
        with engine.source() as source:
            source.polls(1)
    names = [call for call in engine.calls() if call.startswith(("dcgmGroupCreate", "dcgmFieldGroupCreate"))]
    assert len(set(names)) == len(names) >= 4
