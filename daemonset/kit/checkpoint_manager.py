"""Looks after the checkpoints of a run: is the newest one whole, how old is it, and a verified copy elsewhere.

Run by a CronJob, or by hand. Only a whole file is copied, beside the copies that are there, and the oldest of those go
once the new one was read back: a broken file never takes a good one's place. Training and inference restore from the
copies by themselves (``--restore-from``) where the run's folder is lost or broken. Exit codes: 0 well; 1 the newest is
broken, or there is none, or it could not be copied; 75 another run is at work.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import logging
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import directory
from checkpoint import BrokenError, Checkpoint, FencedError, Folder, verified

_BUSY = 75
_log = logging.getLogger("checkpoint-manager")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """False if another run holds the lock. The kernel, or the NFS server, frees it with its holder: none to clean up.

    Where an NFS is mounted without locks two runs could pass; then the backup itself lets one of them alone add a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                yield False
                return
            _log.warning("no locks on %s (%s): two runs at once are not excluded here", folder, error)
        yield True


class Found:
    """What one run saw, as metrics. What it could not see it leaves out."""

    def __init__(self) -> None:
        self.valid = 0
        self.step: float | None = None
        self.saved_at: float | None = None
        self.backup_step: float | None = None

    def text(self) -> str:
        values = {
            "checkpoint_valid": self.valid,
            "checkpoint_step": self.step,
            "checkpoint_saved_timestamp_seconds": self.saved_at,
            "checkpoint_backup_step": self.backup_step,
            "checkpoint_manager_run_timestamp_seconds": time.time(),
        }
        seen = [(name, value) for name, value in values.items() if value is not None]
        return "".join(f"# TYPE {name} gauge\n{name} {value:.15g}\n" for name, value in seen)


def look_after(source: Folder, backup: Folder, found: Found) -> None:
    """Verify, copy, prune. OSError, ValueError or FencedError where no copy could be made."""
    backup.sweep()
    kept = newest_whole(backup)
    found.backup_step = kept.step if kept else 0
    files = [number for number in source.numbers() if not source.is_claim(number)]
    newest = newest_whole(source)
    if newest is None:
        way = f"; --restore-from={backup.path} goes on from step {kept.step}" if kept else ""
        raise ValueError(f"{source.path} holds no whole checkpoint{way}")
    found.step, found.saved_at = newest.step, newest.file.stat().st_mtime
    _log.info("newest whole: step %d, %.0f s old", newest.step, time.time() - found.saved_at)
    if newest.number < max(files):
        _log.error("%s is broken; older ones are whole", source.file(files[0]))
    if kept is None or kept.number != newest.number:
        copy(newest, backup)
    found.backup_step = newest.step
    found.valid = int(newest.number == max(files))
    backup.prune()
    directory.sweep(backup)


def newest_whole(folder: Folder) -> Checkpoint | None:
    try:
        return folder.restore(directory.check)
    except BrokenError:
        return None


def copy(newest: Checkpoint, backup: Folder) -> None:
    """Under the same number, so that ``--restore-from`` goes on from it as it is."""
    there, file = backup.numbers(), backup.file(newest.number)
    if there and there[0] > newest.number:
        raise ValueError(
            f"{backup.path} is ahead of its source: if that was lost, start the training with "
            f"--restore-from={backup.path}; if this is another run, give it folders of its own"
        )
    if there and there[0] == newest.number:
        _log.error("%s is broken: copied anew", file)
        file.unlink()
    directory.copy(newest, backup.path)
    backup.copy(newest)
    with file.open("rb") as copied:
        whole = verified(copied) is not None
    if not whole:
        file.unlink()
        raise OSError(errno.EIO, f"{file} does not read back as it was written")
    _log.info("copied to %s", file)


def push(gateway: str, run: str, text: str) -> None:
    """To a Pushgateway, as Prometheus advises for a batch job of no one machine.

    The job ends before it could be scraped, and a textfile for the node_exporter would stay on each run's node. What is
    pushed are times and no ages: time() - checkpoint_saved_timestamp_seconds goes on growing when nothing runs.
    """
    url = f"{gateway.rstrip('/')}/metrics/job/checkpoint-manager/run/{quote(run, safe='')}"
    headers = {"Content-Type": "text/plain; version=0.0.4"}
    # POST keeps what this run could not see, for a PUT would remove it.
    request = urllib.request.Request(url, text.encode(), headers, method="POST")  # noqa: S310 - the operator's argument
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 - as above


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the run's checkpoints")
    parser.add_argument("--backup", type=Path, required=True, help="a folder of the run's own on other storage")
    parser.add_argument("--keep", type=int, default=5, help="copies kept")
    parser.add_argument("--pushgateway", default="", help="http://host:9091; without it the metrics are printed")
    options = parser.parse_args()
    found = Found()
    with alone(options.backup) as only:
        if not only:
            _log.error("another run is at work on %s", options.backup)
            return _BUSY
        try:
            look_after(Folder(options.folder), Folder(options.backup, options.keep), found)
        except (OSError, ValueError, BrokenError, FencedError) as error:
            _log.error("no copy was made: %s", error)
        _log.info("metrics\n%s", found.text())
        if options.pushgateway:
            try:
                push(options.pushgateway, options.folder.name, found.text())
            except OSError as error:
                _log.error("the metrics could not be pushed: %s", error)
                return 1
    return 0 if found.valid else 1


if __name__ == "__main__":
    sys.exit(main())
