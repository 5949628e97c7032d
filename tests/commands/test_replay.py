"""A replay decides what the live agent decided, byte for byte; a raw kernel log is judged as if watched live."""

from __future__ import annotations

import gzip
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.cli import main
from agent.commands.replay import replay
from agent.config.settings import Config
from agent.diagnosis.judge import Memory, Orders, judge
from agent.model.errors import UnreadableError
from agent.model.fault import Status
from agent.model.steps import GivePermit
from agent.model.world import Local, PermitKind, World
from agent.recording.recording import Planned, Recorder, Recording, Round
from agent.runtime.actor import Actor
from agent.runtime.daemon import Daemon
from agent.simulation.in_memory_cluster import InMemoryCluster
from agent.simulation.simulated import inject
from agent.sources.process.command_lines import supervisor
from tests.incident import CARDS
from tests.observe import Judge, alive, ids, reading, xid
from tests.waiting import LATEST_S

LOST = "NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus."
APP = "NVRM: Xid (PCI:0000:43:00): 31, pid=7, name=python, MMU Fault"


def decisions(text: str, **options: str) -> list[dict[str, Any]]:
    profile = options.get("profile", "h100-8")
    return [json.loads(line) for line in replay(io.StringIO(text), None, profile)]


@pytest.mark.parametrize(
    "form",
    [
        "{text}",
        "[ {s}.25] {text}",
        "3,{n},{s}250000,-;{text}",
        "<3>[{s}.25] {text}",
        "Nov 24 10:00:{n:02} gpu-7 kernel: [{s}.25] {text}",
    ],
)
def test_a_raw_kernel_log_in_any_form_is_judged_as_if_watched_live(form: str) -> None:
    lines = [form.format(text=text, n=n, s=10 * n) for n, text in enumerate((APP, LOST), 1)]
    first, last = decisions("\n".join(lines) + "\n")[0], decisions("\n".join(lines) + "\n")[-1]
    assert [f["id"] for f in first["faults"]][-1:] == ["xid-31@0000:43:00.0"]
    assert (last["status"], last["remedy"], last["withdraw"]) == ("unhealthy", "reboot_node", True)
    assert "taint the node gpu-health-agent/unhealthy=reboot_node:NoSchedule" in last["steps"]


def asked(tmp_path: Path, log: str | bytes) -> int:
    path = tmp_path / "log"
    path.write_bytes(log if isinstance(log, bytes) else log.encode())
    return main(["replay", str(path)])


def test_a_log_is_never_called_healthy_where_no_line_of_it_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (
        "",
        "\n\n",
        "hello\nworld\n",
        "-- No entries --\n",
        "Xid 79 says the ticket, NVRM too\n",
        'ts=2026-11-30T05:00:00Z level=info msg="NVRM: Xid (PCI:0000:1b:00): 79, gone"\n',  # logfmt
        "\0\xff\n" * 9,
    ):
        assert asked(tmp_path, text) == 65
        told = capsys.readouterr()
        assert (told.out, told.err.count("\n")) == ("", 1)
        assert "could be read as a kernel log record" in told.err
    assert asked(tmp_path, "[ 1.0] usb 1-1: new device\n") == 0, "readable, and without a GPU"
    assert json.loads(capsys.readouterr().out)["status"] == "healthy"


def test_it_is_said_how_much_of_a_log_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (
        "Sep 14 04:48:45 node1 kernel: " + APP,
        "Sep 14 04:48:45 node1 python[7]: " + LOST,  # not the kernel's
        "Sep 14 04:48:45 node1 kernel: NVRM: a sentence that nobody knows",
        "Sep 14 04:48:46 node1 kernel: NVRM: GPU Board Serial Number: 1652522002411",  # known to say nothing
        "Sep 14 04:48:47 node1 kernel: usb 1-1: new device",
        "",
        "and then the Xid came",
    )
    assert asked(tmp_path, "\n".join(lines)) == 0
    told = capsys.readouterr()
    assert "5 of 6 lines were read as a kernel log; 3 that name NVRM, nvswitch or Xid were not understood" in told.err
    assert not any(json.loads(line)["withdraw"] for line in told.out.splitlines())


def test_a_gzip_is_read_and_a_damaged_one_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(f"[ 1.0] {LOST}\n".encode() * 3)
    assert asked(tmp_path, packed) == 0
    file = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(packed))))
    assert main(["replay", "-"]) == 0
    assert capsys.readouterr().out == file
    assert json.loads(file.splitlines()[-1])["withdraw"]
    for damaged in (packed[:-9], packed[:20], packed[:12] + b"xxxxxxxx" + packed[20:]):
        assert asked(tmp_path, damaged) == 65
        assert "the file is damaged or cut off" in capsys.readouterr().err


def test_a_journal_as_json_or_exported_is_a_log_and_no_sources_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"__CURSOR": "s=1", "__REALTIME_TIMESTAMP": "1757825325123456", "_TRANSPORT": "kernel", "MESSAGE": LOST}
    for text in (json.dumps(entry) + "\n", "".join(f"{key}={value}\n" for key, value in entry.items()) + "\n"):
        assert asked(tmp_path, text) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["withdraw"]


def test_user_space_records_of_a_raw_log_are_not_believed() -> None:
    assert all(not one["withdraw"] for one in decisions(f"11,1,1,-;{LOST}\n"))


def test_a_permit_is_not_taken_for_an_error_that_is_only_drained_a_millisecond_later() -> None:
    error = "NVRM: Xid (PCI:0000:1b:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x00000000 0x0)"
    action = "NVRM: Xid (PCI:0000:1b:00): 154, GPU recovery action changed from 0x0 (None) to 0x{} (x)"
    for action_is, permits in ((4, 0), (1, 1)):
        made = decisions(f"[ 10.000] {error}\n[ 10.001] {action.format(action_is)}\n[ 30.0] {APP}\n")
        steps = [step for one in made for step in one["steps"] if "permit" in step]
        assert len([step for step in steps if "take" in step]) == permits, steps
        assert not [step for step in steps if "give" in step], steps


def test_a_log_of_a_gpu_that_the_profile_lacks_is_judged_all_the_same() -> None:
    last = decisions("NVRM: Xid (PCI:0000:ab:00): 95, pid=3, name=x, Uncontained\n", profile="t4-1")[-1]
    assert (last["withdraw"], last["remedy"]) == (True, "reset_gpu")


def test_a_ports_error_is_judged_where_it_names_a_gpu_that_is_known() -> None:
    def ends(pci: str, before: str = "") -> list[str]:
        port = f"[ 9.0] pcieport 0000:00:1d.0: AER: Uncorrected (Fatal) error received: {pci}\n"
        return [fault["id"] for fault in decisions(before + port)[-1]["faults"] if "xid" not in fault["id"]]

    assert ends("0000:1b:00.0") == ["pcie-link-gone@0000:1b:00.0"]
    assert ends("0000:05:00.0") == []
    assert ends("0000:05:00.0", before=f"[ 8.0] {APP.replace('43', '05')}\n") == ["pcie-link-gone@0000:05:00.0"]


def test_notices_of_a_long_log_pass_and_rubbish_in_it_is_nothing() -> None:
    text = f"[ 1.0] {APP}\n[ 2.0] \x00\xff rubbish\n[ 99999.0] NVRM: loading\n[ 99999.5] {APP}\n"
    assert [len(one["faults"]) for one in decisions(text)] == [1, 0, 1]


def test_a_time_that_no_clock_shows_is_no_error() -> None:
    assert [len(one["faults"]) for one in decisions(f"[99999999999999.5] {APP}\n")] == [1]


def test_a_year_between_two_lines_is_no_year_of_judging() -> None:
    began = time.process_time()
    assert len(decisions(f"[ 1.0] {APP}\n[ 31536000.0] {APP}\n")) == 3, "seen, passed, seen again"
    assert time.process_time() - began < 5


def test_an_empty_log_and_a_broken_recording_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnreadableError, match="none of 0 lines"):
        decisions("")
    broken = tmp_path / "broken"
    broken.write_text('{"recording":1,"config":{},"sources":["nvml"]}\n{"t":1}\n')
    assert main(["replay", str(broken)]) == 64
    assert "line 2: not a line of a recording" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none")]) == 64
    assert main(["replay", "-", "--profile", "x"]) == 64


@pytest.mark.parametrize("command", [["replay"], ["explain", "--recording"]])
def test_a_recordings_line_without_an_end_is_not_read_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    endless = tmp_path / "endless"
    with endless.open("w") as out:
        out.write('{"recording":1,"config":{},"sources":["nvml"]}\n{"t":1,"wall":1,"seen":[')
        out.truncate(1 << 40)  # a hole takes no room
    assert main([*command, str(endless)]) == 64
    assert "line 2: longer than 16 MiB, as no line of a recording is" in capsys.readouterr().err


def plan(**changes: object) -> str:
    world: dict[str, object] = {"node": "n", "uid": "u", "taints": [], "slots": None, "pods": None, "jobs": None}
    return json.dumps({"plan": 1, "world": {**world, **changes}, "local": {"holders": changes.pop("holders", None)}})


HOSTILE_LINES = {
    "lists": "[" * 1_000_000,
    "an endless time": '{"t":1e999,"wall":1}',
    "a time in words": '{"t":"noon","wall":1}',
    "a time as text": '{"t":"7","wall":1,"seen":[["nvml","0000:1b:00.0",1,{}]]}',
    "a reading of lists": '{"t":1,"wall":1,"seen":[["nvml","0000:1b:00.0",1,{"power_w":{}}]]}',
    "a reading of nobody": '{"t":1,"wall":1,"seen":[[null,[],1,{}]]}',
    "an observation": '{"t":1,"wall":1,"seen":[{"at":"x","source":"nvml","signal":"alive"}]}',
    "labels": '{"t":1,"wall":1,"orders":{"labels":3}}',
    "what was stored": '{"restored":{"faults":[]},"t":1}',
    "a pod": plan(pods=[3]),
    "a Job": plan(jobs=[{"name": [], "state": 1}]),
    "who holds": plan(holders={"a/b": [[]]}),
}


@pytest.mark.parametrize("what", HOSTILE_LINES)
def test_a_recording_of_any_types_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = tmp_path / "recording"
    path.write_text(f'{{"recording":1,"config":{{}},"sources":["nvml"]}}\n{HOSTILE_LINES[what]}\n')
    assert main(["replay", str(path)]) == 64
    said = capsys.readouterr().err
    assert "line 2: not a line of a recording" in said
    assert (said.count("\n"), len(said) < 500) == (1, True)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short life of the whole agent over simulated GPUs and a cluster in memory."""
    tmp_path = tmp_path_factory.mktemp("life")
    cluster = InMemoryCluster()
    for node in ("n", "m"):
        cluster.add_node(node)
    cluster.add_pod("a", "train", "n")
    config = Config.model_validate(
        {
            "mode": "evict",
            "poll_s": 0.3,
            "drain": {"gather_s": 0.5},
            "policy": {"soak_s": 0.5, "flag_confirm_s": 0.2},
            "sources": {"simulated": {"scenario": "idle"}, "pods": {"enabled": False}},
        }
    )
    (tmp_path / "sim").mkdir()
    sources = supervisor(config, tmp_path / "sim")
    path, stop = tmp_path / "recording", threading.Event()
    recorder = Recorder(path, config, "n", sources.names)

    def tell(*_: object, **__: object) -> None:
        pass

    actor = Actor(config, lambda: KubeClient(cluster, "n", config), False, tell, recorder=recorder)
    daemon = Daemon(config, "n", actor, tell, sources, recorder)
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()

    def wait(status: Status) -> None:
        due = time.monotonic() + 15
        while not (daemon.snapshot and daemon.snapshot.verdict.status is status):
            assert time.monotonic() < due, status
            time.sleep(0.02)

    wait(Status.HEALTHY)
    while not (daemon.snapshot and len(daemon.snapshot.readings) == 8):  # healthy as far as it was read
        time.sleep(0.02)
    inject(tmp_path / "sim", {"gpu": 1, "xid": 31, "pid": 7, "name": "python"})
    inject(tmp_path / "sim", {"gpu": 3, "xid": 95})
    wait(Status.UNHEALTHY)
    time.sleep(0.8)
    inject(tmp_path / "sim", {"gpu": 3, "clear": True})
    wait(Status.HEALTHY)
    time.sleep(0.4)
    stop.set()
    thread.join(LATEST_S)
    recorder.close()
    return path


def test_a_replay_decides_byte_for_byte_what_the_live_agent_did(recording: Path) -> None:
    lines = recording.read_text().splitlines()
    live = [line.removeprefix('{"decision":')[:-1] for line in lines if line.startswith('{"decision":')]
    assert list(replay(io.StringIO(recording.read_text()), None, "h100-8")) == live
    assert {"unhealthy", "healthy"} <= {json.loads(line)["status"] for line in live}
    assert any("ask for the eviction of pod a/train" in json.loads(line)["steps"] for line in live)


def test_a_recording_is_explained_as_it_ends(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = recording.read_text().splitlines()
    until = next(i for i, line in enumerate(lines) if line.startswith('{"decision"') and "xid-95@" in line)
    cut = tmp_path / "cut"
    cut.write_text("\n".join(lines[: until + 1]) + "\n")
    assert main(["explain", "--recording", str(cut)]) == 0
    told = capsys.readouterr().out
    assert "xid-95@0000:61:00.0: fatal, remedy reset_gpu" in told
    assert "nvidia-smi --gpu-reset -i GPU-" in told
    cut.write_text("nothing\n")
    assert main(["explain", "--recording", str(cut)]) == 64
    assert "line 1: not the head of a recording" in capsys.readouterr().err


def test_another_policy_on_the_same_recording_decides_otherwise(recording: Path) -> None:
    lenient = [{"rule": "xid-95", "severity": "notice"}, {"rule": "recovery-action", "disabled": True}]
    other = Config.model_validate({"policy": {"overrides": lenient}})
    assert not any(json.loads(line)["withdraw"] for line in replay(io.StringIO(recording.read_text()), other, "h100-8"))


def test_equal_readings_take_no_room_in_a_recording(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", Config(), "n", ("nvml",))
    memory = Memory()
    gpus = [reading(f"0000:{bus:02x}:00.0", **CARDS["h100"]) for bus in range(8)]
    for poll in range(100):
        now = 1000.0 + 5 * poll
        seen = [replace(one, arrived=now, at=now) for one in (*gpus, alive())]
        memory, verdict = judge(memory, seen, now, now, Config().policy, ("nvml",))
        recorder.judged(now, now, seen, Orders(), verdict)
    recorder.close()
    lines = (tmp_path / "r").read_text().splitlines()
    assert max(len(line) for line in lines[3:]) < 600


def test_who_held_which_gpu_is_recorded_with_the_plan_that_looked_at_it(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    held = Local(holders={"a/train": frozenset({"GPU-1"}), "a/other": None})
    steps = (GivePermit(PermitKind.DRAINING, 0),)
    recorder = Recorder(path, Config(), "n", ())
    recorder.planned(Judge().after(0, alive()), World("n", "uid"), held, steps)
    recorder.close()
    (entry,) = Recording.open(iter(path.read_text().splitlines()))
    assert isinstance(entry, Planned)
    assert entry.local.holders == {"a/train": frozenset({"GPU-1"}), "a/other": None}


def test_a_round_in_which_the_agent_turned_blind_is_recorded_though_nothing_came(tmp_path: Path) -> None:
    recorder, one = Recorder(tmp_path / "recording", Config(), "n", ("nvml",)), Judge()
    polled = (reading(), alive(), xid(63))
    verdicts = [one.after(0, *polled), *(one.after(20) for _ in range(5))]
    assert len({verdict.status for verdict in verdicts}) == 1
    for number, verdict in enumerate(verdicts):
        recorder.judged(verdict.at, verdict.at, list(polled) if number == 0 else [], Orders(), verdict)
    recorder.close()
    rounds = [one for one in Recording.open(iter((tmp_path / "recording").read_text().splitlines())) if one]
    blind = next(verdict for verdict in verdicts if verdict.blind)
    assert [one.t for one in rounds if isinstance(one, Round)] == [verdicts[0].at, blind.at]


def test_a_round_in_which_a_joined_fault_ended_is_recorded_though_nothing_else_is_told(tmp_path: Path) -> None:
    recorder, one = Recorder(tmp_path / "recording", Config(), "n", ("nvml",)), Judge()
    came = ((reading(recovery_action=1),), (reading(recovery_action=1), xid(94)), (reading(),), (), ())
    verdicts = [one.after(4, alive(), *seen) if seen else one.after(2) for seen in came]
    assert len({tuple(ids(verdict)) for verdict in verdicts[1:]}) == 1
    for seen, verdict in zip(came, verdicts, strict=True):
        recorder.judged(verdict.at, verdict.at, list(seen), Orders(), verdict)
    recorder.close()
    rounds = [one for one in Recording.open(iter((tmp_path / "recording").read_text().splitlines())) if one]
    ended = next(verdict for verdict in verdicts[2:] if len(verdict.standing) == 1)
    assert [one.t for one in rounds if isinstance(one, Round)] == [*(v.at for v in verdicts[:3]), ended.at]
