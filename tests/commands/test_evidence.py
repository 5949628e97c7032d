"""``replay`` of an archive of ``evidence``, as it is: what was decided, line by line, of a drill too."""

from __future__ import annotations

import io
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cli import main
from agent.commands.evidence import archive
from agent.diagnosis.judge import Orders
from agent.recording.decisions import Decisions
from tests.observe import alive, xid
from tests.recording.test_flight import Flight

NONCE = "0" * 32


def archived(flight: Flight, to: Path, onsets: int = 1) -> Path:
    """Of an agent whose files lie there."""
    with to.open("wb") as out:
        archive(out, None, flight.files(onsets), pods=False)
    return to


def drilled(folder: Path) -> tuple[Flight, list[str]]:
    """A drill from its beginning, and what was decided."""
    flight, told = Flight(folder), Decisions()
    flight.orders = Orders(drill=NONCE)
    flight.polls(60)
    flight.round(alive(), alive("kmsg"), replace(xid(74, source="kmsg"), drill=NONCE))
    flight.polls(30)
    flight.orders = Orders()  # it is over
    flight.polls(60)
    return flight, [line for line in map(told.judged, flight.verdicts) if line]


def test_an_archive_of_a_drill_replays_to_the_same_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flight, decided = drilled(tmp_path / "evidence")
    path, said = archived(flight, tmp_path / "evidence.tar.gz"), list[str]()
    while not said or said[-1] != decided[-1]:
        flight.recorder._keep()  # as what follows the onset is written after a minute
        time.sleep(0.05)
        assert main(["replay", str(archived(flight, path))]) == 0
        out, errors = capsys.readouterr()
        said = out.splitlines()
    assert said == decided
    assert any("xid-74@0000:1b:00.0/drill" in line for line in said)
    assert '"faults": []' in said[-1]
    (name,) = (one.name for one in flight.files())
    assert f"recordings/{name}" in errors


def test_it_is_read_from_a_pipe_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flight, _ = drilled(tmp_path / "evidence")
    path = archived(flight, tmp_path / "evidence.tar.gz")
    with path.open("rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        assert main(["replay", "-"]) == 0
    assert "xid-74@0000:1b:00.0/drill" in capsys.readouterr().out


def test_each_recording_of_an_archive_is_replayed_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flight = Flight(tmp_path / "evidence")
    for code in (79, 95):
        flight.polls(30)
        flight.round(alive(), alive("kmsg"), xid(code, source="kmsg"))
        flight.files(1 if code == 79 else 2)
    assert main(["replay", str(archived(flight, tmp_path / "both", 2))]) == 0
    out, errors = capsys.readouterr()
    assert errors.count("recordings/") == 2
    assert out.splitlines()[-1].count("xid-95@") == 1


def test_an_archive_that_is_cut_off_or_has_no_recording_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flight, _ = drilled(tmp_path / "evidence")
    whole, cut, other, raw = (tmp_path / name for name in ("whole", "cut", "other", "raw"))
    archived(flight, whole)
    cut.write_bytes(whole.read_bytes()[:-200])
    with tarfile.open(other, "w:gz") as tar:
        tar.add(whole, "something")
    raw.write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 200)
    for path, why in ((cut, "damaged or cut off"), (other, "no recording is in the archive"), (raw, "damaged")):
        assert main(["replay", str(path)]) == 65
        assert why in capsys.readouterr().err
