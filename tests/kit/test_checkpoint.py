"""Whatever happens to the folder, the newest whole checkpoint is restored, and only the newest writer adds to it."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint import FencedError, Folder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.kit.conftest import newest, save


def filled(path: Path, steps: int, keep: int = 3) -> Folder:
    folder = Folder(path, keep)
    folder.claim()
    for step in range(1, steps + 1):
        save(folder, step, b"state after %d" % step)
    return folder


def test_a_checkpoint_torn_at_any_byte_is_passed_over(tmp_path: Path) -> None:
    folder = filled(tmp_path, 2)
    file = folder.file(folder.numbers()[0])
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert newest(folder) == (1, b"state after 1"), length


def test_a_checkpoint_with_any_byte_altered_is_passed_over(tmp_path: Path) -> None:
    folder = filled(tmp_path, 2)
    file = folder.file(folder.numbers()[0])
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert newest(folder) == (1, b"state after 1"), at


class Shared(RuleBasedStateMachine):
    """Two writers, torn files, full disks, killed saves and clocks that jump, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._made = tempfile.TemporaryDirectory()
        self.path = Path(self._made.name)
        self.writers = [Folder(self.path, keep=2), Folder(self.path, keep=2)]
        self.holder: int | None = None
        self.step = 0
        self.whole: dict[int, tuple[int, bytes]] = {}

    def teardown(self) -> None:
        self._made.cleanup()

    @rule(who=st.integers(0, 1))
    def a_pod_starts(self, who: int) -> None:
        self.writers[who] = Folder(self.path, keep=2)
        self.writers[who].claim()
        self.holder = who

    @rule(who=st.integers(0, 1), payload=st.binary(max_size=64))
    def it_saves(self, who: int, payload: bytes) -> None:
        self.step += 1
        if who == self.holder:
            save(self.writers[who], self.step, payload)
            number = max(self.writers[who].numbers())
            self.whole[number] = self.step, payload
            there = set(self.writers[who].numbers())
            assert set(sorted(self.whole)[-2:]) <= there, "the newest two whole ones are kept"
            self.whole = {kept: one for kept, one in self.whole.items() if kept in there}
        else:
            with pytest.raises((FencedError, RuntimeError)):  # RuntimeError: it never claimed
                save(self.writers[who], self.step, payload)

    @rule(room=st.integers(0, 300))
    def the_disk_is_full_at_any_byte_of_a_save(self, room: int) -> None:
        """As the kernel refuses it: no file may grow beyond so many bytes."""
        if self.holder is None:
            return
        writer, before = self.writers[self.holder], Folder(self.path).numbers()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                save(writer, self.step + 1, b"x" * 400)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert Folder(self.path).numbers() == before

    @rule(length=st.integers(0, 250))
    def the_newest_is_torn(self, length: int) -> None:
        numbers = Folder(self.path).numbers()
        file = Folder(self.path).file(numbers[0]) if numbers else None
        if file and file.stat().st_size > length:
            os.truncate(file, length)
            self.whole.pop(numbers[0], None)

    @rule(length=st.integers(0, 250))
    def a_save_is_killed(self, length: int) -> None:
        (self.path / ".saving-9-dead").write_bytes(b"x" * length)

    @rule(at=st.integers(0, 2**32))
    def the_clock_jumps(self, at: int) -> None:
        for number in Folder(self.path).numbers():
            os.utime(Folder(self.path).file(number), (at + number * 977 % 5, at - number))

    @invariant()
    def the_newest_whole_one_is_restored(self) -> None:
        expected = self.whole[max(self.whole)] if self.whole else None
        assert newest(Folder(self.path)) == expected


TestShared = Shared.TestCase
TestShared.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)


@given(torn=st.sets(st.integers(1, 5)), payload=st.binary(max_size=200))
@settings(max_examples=30, deadline=None)
def test_of_many_broken_ones_the_newest_whole_one_is_found(torn: set[int], payload: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name), keep=5)
        folder.claim()
        for step in range(1, 6):
            save(folder, step, payload)
        for number, step in zip(folder.numbers(), range(5, 0, -1), strict=False):
            if step in torn:
                os.truncate(folder.file(number), folder.file(number).stat().st_size // 2)
        assert (newest(folder) or (0,))[0] == max({1, 2, 3, 4, 5} - torn, default=0)


def test_of_two_writers_in_the_same_instant_each_number_has_one(tmp_path: Path) -> None:
    """Both hold the same number, as an old and a new pod would if nothing fenced them; they race for the next."""
    for attempt in range(50):
        folder = filled(tmp_path / str(attempt), 1)
        start, outcomes = threading.Barrier(2), list[int]()

        def race(
            step: int, folder: Folder = folder, start: threading.Barrier = start, outcomes: list[int] = outcomes
        ) -> None:
            rival = Folder(folder.path)
            start.wait()
            try:
                rival.add(3, step, lambda file: file.write(b"x" * 10_000))
                outcomes.append(step)
            except FencedError:
                pass

        threads = [threading.Thread(target=race, args=(step,)) for step in (10, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert newest(folder) == (outcomes[0], b"x" * 10_000)
        assert len(outcomes) == 1


def test_claims_at_the_same_instant_leave_one_writer(tmp_path: Path) -> None:
    folders = [Folder(tmp_path) for _ in range(8)]
    start = threading.Barrier(len(folders))

    def claim(folder: Folder) -> None:
        start.wait()
        folder.claim()

    threads = [threading.Thread(target=claim, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    saved = 0
    for folder in folders:
        try:
            save(folder, 1, b"")
            saved += 1
        except FencedError:
            pass
    assert saved == 1


def test_a_writer_that_slept_past_pruning_is_never_restored_over_the_newer(tmp_path: Path) -> None:
    old = filled(tmp_path, 1)
    new = Folder(tmp_path, keep=2)
    new.claim()
    for step in range(2, 8):
        save(new, step, b"new")
    stale = old.numbers()[-1] - 1  # a name that was used and pruned
    old.add(stale, 99, lambda file: file.write(b"stale"))
    with pytest.raises(FencedError):
        old.check()
    assert newest(new) == (7, b"new")
    save(new, 8, b"new")
    assert not old.file(stale).exists()


def test_a_save_begun_before_the_takeover_comes_too_late(tmp_path: Path) -> None:
    old = filled(tmp_path, 1)
    Folder(tmp_path).claim()
    with pytest.raises(FencedError):
        old.add(3, 2, lambda file: file.write(b"began before, named after"))
    assert newest(old) == (1, b"state after 1")


def test_a_crash_loop_of_claims_forgets_no_checkpoint(tmp_path: Path) -> None:
    filled(tmp_path, 5, keep=2)
    for _ in range(50):
        Folder(tmp_path, keep=2).claim()
    last = Folder(tmp_path, keep=2)
    last.claim()
    assert newest(last) == (5, b"state after 5")
    save(last, 6, b"")
    save(last, 7, b"")
    assert len(last.numbers()) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_on_a_full_disk_the_older_ones_stand_and_saving_goes_on_once_there_is_room(small_disk: Path) -> None:
    folder = Folder(small_disk, keep=2)
    folder.claim()
    save(folder, 1, b"x" * 60_000)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(b"x" * 300_000)
    for step in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            save(folder, step, b"y" * 60_000)
        assert newest(folder) == (1, b"x" * 60_000)
    assert not list(small_disk.glob(".saving-*"))
    late = Folder(small_disk, keep=2)
    late.claim()  # a replacement can take over on a full disk
    ballast.unlink()
    with pytest.raises(FencedError):
        save(folder, 4, b"")
    save(late, 4, b"z" * 60_000)
    assert newest(late) == (4, b"z" * 60_000)


def test_saving_verifying_and_copying_hold_a_few_megabytes_whatever_a_checkpoints_size(tmp_path: Path) -> None:
    size, piece = 96 << 20, bytes(1 << 20)
    folder, backup = Folder(tmp_path / "run"), Folder(tmp_path / "backup")
    folder.claim()
    backup.path.mkdir()
    tracemalloc.start()
    try:
        folder.save(1, lambda file: [file.write(piece) for _ in range(size // len(piece))])
        found = folder.restore()
        assert found is not None
        backup.copy(found)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert backup.file(found.number).stat().st_size > size
    assert peak < 8 << 20


def test_what_is_saved_is_handed_over_as_it_was_written_in_pieces_of_any_size(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.claim()
    pieces: list[bytes | memoryview] = [b"", b"a", bytes(range(256)) * 9000, b"b" * 3, memoryview(b"c" * 5000)]
    folder.save(7, lambda file: [file.write(piece) for piece in pieces])
    assert newest(folder) == (7, b"".join(pieces))
