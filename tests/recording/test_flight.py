"""The flight recorder: bounded in memory, kept at a fatal onset, replayed to the same verdicts, told without pods."""

from __future__ import annotations

import gzip
import io
import json
import random
import stat
import tarfile
import time
from pathlib import Path

import pytest

from agent.cli import main
from agent.commands.evidence import archive
from agent.config.settings import Config
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.model.devices import Device
from agent.model.errors import NotRunningError
from agent.model.fault import Verdict
from agent.model.observation import Observation
from agent.model.steps import GivePermit
from agent.model.world import Local, PermitKind, Pod, World
from agent.recording.flight import MOST_BYTES, MOST_FILES, FlightRecorder, Segments, ask, kept
from agent.recording.recording import Recording, Restored, Round
from agent.remediation.stored import restored
from tests.bench.flight import stormed_mib
from tests.observe import OTHER, START, alive, fields, ids, reading, xid
from tests.scarce import no_threads

EXPECTED = ("nvml", "kmsg")
ORDERS = Orders(workloads={"uid-1": "research/Job/secret"})


class Flight:
    """An agent's rounds, recorded as they are judged."""

    def __init__(self, folder: Path) -> None:
        self.recorder = FlightRecorder(folder, Config(), "n1", EXPECTED)
        self.folder, self.memory, self.now = folder, Memory(), 1000.0
        self.verdicts: list[Verdict] = []
        self.orders = ORDERS

    def round(self, *seen: Observation, after_s: float = 5) -> None:
        self.now += after_s
        stamped = [Observation(**{**fields(o), "arrived": self.now, "at": START + self.now}) for o in seen]
        self.memory, verdict = judge(
            self.memory, stamped, self.now, START + self.now, Config().policy, EXPECTED, self.orders
        )
        self.verdicts.append(verdict)
        self.recorder.judged(self.now, START + self.now, stamped, self.orders, verdict)

    def polls(self, seconds: float) -> None:
        for number in range(int(seconds // 5)):
            heat = 40 + number % 3
            self.round(alive(), alive("kmsg"), reading(temperature_c=heat), reading(OTHER, temperature_c=heat))

    def breaks(self) -> None:
        self.round(alive(), alive("kmsg"), xid(79, source="kmsg"))

    def files(self, count: int = 1) -> list[Path]:
        due = time.monotonic() + 5
        while len(kept(self.folder)) < count:
            assert time.monotonic() < due
            time.sleep(0.005)
        return kept(self.folder)


def replayed(text: str) -> list[list[str]]:
    """The faults of each round of a recording, judged anew."""
    recording, memory, orders, told = Recording.open(iter(text.splitlines())), Memory(), Orders(), []
    for entry in recording:
        orders = getattr(entry, "orders", None) or orders
        if isinstance(entry, Restored):
            memory = resumed(memory, restored(entry.stored, entry.t), recording.config.policy, orders.labels)
        elif isinstance(entry, Round):
            memory, verdict = judge(
                memory, entry.seen, entry.t, entry.wall, recording.config.policy, recording.sources, orders
            )
            told.append(ids(verdict))
    return told


def test_a_fatal_onset_keeps_the_minutes_before_it_and_they_replay_to_the_same_verdict(tmp_path: Path) -> None:
    flight = Flight(tmp_path / "evidence")
    flight.polls(1800)
    assert not kept(flight.folder)
    flight.breaks()
    (path,) = flight.files()
    text = gzip.decompress(path.read_bytes()).decode()
    told = replayed(text)
    assert (told[-1], told[-2]) == (ids(flight.verdicts[-1]), [])
    assert 800 <= 5 * len(told) <= 1000, "a quarter of an hour, and not the half hour of its life"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_onset_for_which_there_is_no_thread_ends_nothing_and_the_next_is_written(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    with no_threads(FlightRecorder):
        flight.breaks()
    assert not kept(flight.folder)
    flight.round(alive(), alive("kmsg"), after_s=60)
    assert flight.files(), "with what followed"


def test_what_follows_the_onset_for_a_minute_is_in_the_same_file(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    flight.polls(60)
    flight.breaks()
    (path,) = flight.files()
    first = path.stat().st_ino
    flight.polls(65)
    due = time.monotonic() + 5
    while path.stat().st_ino == first:
        assert time.monotonic() < due
        time.sleep(0.005)
    assert len(replayed(gzip.decompress(path.read_bytes()).decode())) >= 24
    assert kept(tmp_path) == [path]


def test_only_the_last_few_files_are_kept(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    for number in range(MOST_FILES + 2):
        flight.polls(10)
        flight.recorder._fatal = frozenset()  # as if it were another fault
        flight.breaks()
        flight.files(min(number + 1, MOST_FILES))
        time.sleep(0.02)
    assert len(kept(tmp_path)) == MOST_FILES


def test_a_storm_of_lines_that_do_not_compress_stays_within_its_bytes() -> None:
    segments, chance, most = Segments(), random.Random(1), 0
    segments.write("head\n")
    segments.begin()
    for second in range(900):
        if segments.full(second):
            segments.turn(second)
        segments.write(chance.randbytes(10_000).hex() + "\n")
        most = max(most, segments.size)
    assert MOST_BYTES / 2 < most <= MOST_BYTES + MOST_BYTES // 4
    assert gzip.decompress(b"".join(segments.whole())).startswith(b"head\n")


def test_the_recorder_takes_at_most_two_mebibytes_in_a_storm_and_while_it_writes() -> None:
    assert 1.0 < stormed_mib(lines=1000, seconds=9) <= 2.0


def test_what_a_person_asks_for_is_written_beside_the_fatal_onsets_and_pushes_out_none(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    flight.recorder.answer()
    flight.polls(30)
    flight.breaks()
    (onset,) = flight.files()
    for _ in range(MOST_FILES + 1):
        flight.polls(10)
        ask(tmp_path)
    assert kept(tmp_path) == [onset, tmp_path / "on-request.jsonl.gz"]
    assert replayed(gzip.decompress(kept(tmp_path)[1].read_bytes()).decode())[-1] == ids(flight.verdicts[-1])


def test_a_fault_that_began_before_what_is_kept_stands_in_it_all_the_same(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    flight.polls(60)
    flight.breaks()
    flight.polls(3600)
    told = replayed(gzip.decompress(b"".join(flight.recorder.segments.whole())).decode())
    assert [*map(tuple, told)] == [tuple(ids(verdict)) for verdict in flight.verdicts[-len(told) :]]
    assert told[0]


def test_nobody_waits_for_an_agent_that_does_not_record(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not there"):
        with pytest.raises(NotRunningError, match=str(folder)):
            ask(folder, 0.2)
    assert not [*tmp_path.iterdir()], "an agent that begins later finds no old question"


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    flight = Flight(tmp_path / "file" / "below")
    flight.polls(10)
    flight.breaks()
    flight.polls(10)
    assert ids(flight.verdicts[-1]) == ids(flight.verdicts[-3])


def packed(flight: Flight, pods: bool) -> dict[str, bytes]:
    out = io.BytesIO()
    said = {"node": "n1", "status": "unhealthy", "waits": ["pod research/train stays"], "incidents": []}
    archive(out, said, flight.files(), pods)
    out.seek(0)
    with tarfile.open(fileobj=out, mode="r:gz") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def test_an_archive_replays_to_the_same_verdict_and_names_pods_only_when_asked(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    flight.polls(30)
    given = frozenset({Device("gpu.example.com", "n1", "gpu-0")})  # by a ResourceClaim
    world = World("n1", "uid", labels={}, pods=(Pod("research", "train", "uid-1", devices=given),))
    flight.recorder.planned(
        flight.verdicts[-1], world, Local(holders={"research/train": None}), (GivePermit(PermitKind.DRAINING, 0),)
    )
    flight.breaks()
    for pods in (False, True):
        found = packed(flight, pods)
        (recording,) = (
            gzip.decompress(data).decode() for name, data in found.items() if name.startswith("recordings/")
        )
        assert replayed(recording)[-1] == ids(flight.verdicts[-1])
        rest = recording + found["state.json"].decode()
        assert [word in rest for word in ("research/train", "research/Job/secret")] == [pods, pods]
        assert json.loads(found["state.json"])["status"] == "unhealthy"
        (kernel,) = (data.decode() for name, data in found.items() if name.startswith("kernel/"))
        assert "79" in kernel
        assert {"versions.txt", "incidents.json", "incidents.txt"} <= found.keys()


def test_the_command_takes_what_the_agent_left_though_none_runs(tmp_path: Path) -> None:
    flight, config, out = Flight(tmp_path / "left"), tmp_path / "config.yaml", tmp_path / "evidence.tar.gz"
    config.write_text(f"{{http: {{port: 1}}, evidence: {{folder: {flight.folder}}}}}")
    asked = ["evidence", "--config", str(config), "--output", str(out)]
    assert main(asked) == 1
    flight.polls(10)
    flight.breaks()
    (path,) = flight.files()
    assert main(asked) == 0
    with tarfile.open(out) as tar:
        assert f"recordings/{path.name}" in tar.getnames()


def test_hostile_text_of_the_kernel_stays_text(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    flight.polls(10)
    evil = xid(79, source="kmsg")
    flight.round(alive(), alive("kmsg"), Observation(**{**fields(evil), "raw": "NVRM: \x1b[2J\nforged: line"}))
    (kernel,) = (data.decode() for name, data in packed(flight, False).items() if name.startswith("kernel/"))
    assert "\x1b" not in kernel
    assert kernel.count("\n") == 1
