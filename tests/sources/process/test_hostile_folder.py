"""The folder of the socket, where the other container may write to it and is hostile: no way to the host's files."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.model.observation import Failure, Observation, Signal
from agent.sources.process.renewal import Renewal
from agent.sources.process.serving import listen
from tests.sources.process.container import serving

BLIND = Observation(0, "nvml", Signal.FAILED, value=Failure.NO_LIBRARY)
WELL = Observation(0, "nvml", Signal.ALIVE)


class Victim:
    """A file of the host, and a name there that is free."""

    def __init__(self, folder: Path) -> None:
        (folder / "host").mkdir()
        self.file, self.free = folder / "host" / "file", folder / "host" / "free"
        self.file.write_text("9")
        self.file.chmod(0o600)

    def untouched(self) -> bool:
        about = self.file.stat()
        whole = (self.file.read_text(), stat.S_IMODE(about.st_mode)) == ("9", 0o600)
        return whole and sorted(self.file.parent.iterdir()) == [self.file]


def huge(at: Path) -> None:
    with at.open("w") as file:
        file.write("1")
        file.truncate(1 << 40)


PLANTED: dict[str, Callable[[Path, Victim], object]] = {
    "a link to a file": lambda at, victim: at.symlink_to(victim.file),
    "a link to a free name": lambda at, victim: at.symlink_to(victim.free),
    "a link to a folder": lambda at, victim: at.symlink_to(victim.file.parent),
    "a link to what never ends": lambda at, _: at.symlink_to("/dev/zero"),
    "a link to itself": lambda at, _: at.symlink_to(at),
    "a second name of a file": lambda at, victim: at.hardlink_to(victim.file),
    "a fifo": lambda at, _: os.mkfifo(at),
    "a terabyte": lambda at, _: huge(at),
    "words": lambda at, _: at.write_text("many"),
    "a folder": lambda at, _: at.mkdir(),
    "a full folder": lambda at, _: (at / "x").mkdir(parents=True),
}


@pytest.fixture
def victim(folder: Path) -> Iterator[Victim]:
    made = Victim(folder)
    yield made
    assert made.untouched()


@pytest.mark.parametrize("what", PLANTED)
def test_whatever_stands_in_the_place_of_the_count_is_neither_followed_nor_waited_for(
    folder: Path, victim: Victim, what: str
) -> None:
    count = folder / "renewals"
    PLANTED[what](count, victim)
    renewal = Renewal(count, first_s=0.0)
    assert renewal.due([BLIND]), "as if there were no count"
    assert victim.untouched()
    if "folder" not in what or "link" in what:
        assert count.read_text() == "1"
        assert not count.is_symlink()
        count.unlink()
        PLANTED[what](count, victim)
    assert not renewal.due([WELL])
    assert victim.untouched()


@pytest.mark.parametrize("name", ["s", "s.new"])
@pytest.mark.parametrize("what", PLANTED)
def test_whatever_stands_in_the_place_of_the_socket_gives_way_or_is_said(
    folder: Path, victim: Victim, what: str, name: str
) -> None:
    PLANTED[what](folder / name, victim)
    if "folder" in what and "link" not in what:
        with pytest.raises(OSError, match="directory"):
            listen(folder / "s")
        return
    with serving(folder, []), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "s"))
        assert stat.S_IMODE((folder / "s").lstat().st_mode) == 0o666
    assert not (folder / "s").exists()


@pytest.mark.parametrize("what", PLANTED)
def test_a_socket_that_is_swapped_ends_nothing_and_opens_nothing(folder: Path, victim: Victim, what: str) -> None:
    with serving(folder, []):
        (folder / "s").unlink()
        PLANTED[what](folder / "s", victim)


def test_a_link_that_is_put_in_the_sockets_place_at_once_opens_no_file_to_all(folder: Path, victim: Victim) -> None:
    names, over = (folder / "s.new", folder / "s"), threading.Event()
    (folder / "link").symlink_to(victim.file)

    def swap() -> None:
        while not over.is_set():
            for name in names:
                if name.is_socket():
                    os.rename(folder / "link", name)
                    (folder / "link").symlink_to(victim.file)

    thread = threading.Thread(target=swap)
    thread.start()
    due = time.monotonic() + 1.0
    while time.monotonic() < due and victim.untouched():
        with contextlib.suppress(OSError):  # a name that was taken meanwhile
            listen(folder / "s").close()
    over.set()
    thread.join()
