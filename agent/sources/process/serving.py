"""The sources for an agent in another container: their lines over a unix socket, and five requests back.

``resume`` and ``release`` say of one source whether it may run; ``who-holds`` asks for the pods on the GPUs, and
``diagnose`` for DCGM's diagnosis of some. Whoever sends wishes gets the lines; when it hangs up everything ends, and
its successor says from where to go on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from agent.config.source_index import Known
from agent.model.errors import UnaskedError, UndiagnosedError
from agent.model.observation import Observation
from agent.model.text import normalise_pci, read_json, rfc3339
from agent.sources.dcgm.diag_process import asked
from agent.sources.process.renewal import Renewal
from agent.sources.process.supervisor import Supervisor

EXIT_RENEW = 75  # sysexits EX_TEMPFAIL: only a new container gets the driver's library and devices injected anew
EXIT_CONFIG = 78
_TURN_S = 1.0
_LONGEST_WISH_BYTES = 4096
_SEND_S = 10.0  # an agent that takes nothing for so long is hung up on; the sources wait meanwhile
_MOST_CONNECTIONS = 8
_BOOT_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}|")
_LEVELS = ("debug", "info", "warning", "error")

Tell = Callable[..., None]


class Serving:
    """One loop: the sources' lines go to the one agent; what connects says what it wants in a line of JSON."""

    def __init__(self, path: Path, supervisor: Supervisor, tell: Tell) -> None:
        self._path, self._supervisor, self._tell = path, supervisor, tell
        self._listener = listen(path)
        self._buffers: dict[socket.socket, bytes] = {}
        self._agent: socket.socket | None = None
        self._wanted: frozenset[str] = frozenset()
        self._heard = 0
        self._lock = threading.Lock()  # of the two below: the loop's thread takes questions, another answers them
        self._askers: list[tuple[socket.socket, str]] = []  # with what each asks
        self._asking = False
        self._status = ""
        self._renewal = Renewal(path.with_name("renewals"))
        supervisor.selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def run(self, stop: threading.Event) -> int:
        """Until ``stop``, or until only another container can see; the exit code."""
        try:
            while not stop.is_set():
                seen = self._supervisor.turn(_TURN_S)
                self._send("".join(f"{observation.to_json()}\n" for observation in seen))
                self._send_status()
                if self._renewal.due(seen):
                    why = "the driver's library or devices are not in this container: it ends to be made anew"
                    self._tell(why, level="warning")
                    return EXIT_RENEW
            return 0
        finally:
            self._supervisor.close()
            for connection in list(self._buffers):
                self._hang_up(connection)
            self._supervisor.selector.unregister(self._listener)
            self._listener.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _accept(self) -> Iterable[Observation]:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # for want of file descriptors: whoever comes waits, and the sources go on
            time.sleep(_TURN_S)
            return ()
        if len(self._buffers) >= _MOST_CONNECTIONS:
            connection.close()
            return ()
        connection.settimeout(_SEND_S)
        self._buffers[connection] = b""
        self._supervisor.selector.register(connection, selectors.EVENT_READ, lambda: self._listen(connection))
        return ()

    def _listen(self, connection: socket.socket) -> Iterable[Observation]:
        if connection not in self._buffers:  # hung up in this very round
            return ()
        try:
            data = connection.recv(_LONGEST_WISH_BYTES)
        except OSError:
            data = b""
        *lines, self._buffers[connection] = (self._buffers[connection] + data).split(b"\n")
        if not data or len(self._buffers[connection]) > _LONGEST_WISH_BYTES:
            self._hang_up(connection)
            return ()
        for line in lines:
            try:
                if connection in self._buffers:  # else it has asked, which was its last word
                    self._do(connection, read_json(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                why = "a request makes no sense: its connection is closed"
                self._tell(why, level="warning", error=repr(error)[:200])
                self._hang_up(connection)
        return ()

    def _do(self, connection: socket.socket, request: dict[str, Any]) -> None:
        match request["do"]:
            case "resume" | "release" as do:
                self._wish(connection, do, str(request["source"]), request)
            case _ if connection is self._agent:
                raise ValueError("whoever wishes asks by another connection")
            case "who-holds" | "who-runs" as what:
                self._ask(connection, what)
            case "diagnose":
                level, gpus = asked(request)
                self._forget(connection)
                if not self._in_a_thread(partial(self._diagnose, level, gpus, connection)):
                    connection.close()
            case other:
                raise ValueError(f"no such request: {other!r}")

    def _wish(self, connection: socket.socket, do: str, name: str, request: dict[str, Any]) -> None:
        if connection is not self._agent:  # the old one, if it is still there, is a process that ends
            if self._agent is not None:
                self._hang_up(self._agent)
            self._agent, self._heard = connection, 0
            self._tell("an agent is connected")
        seq, boot_id = request.get("seq"), str(request.get("boot_id") or "")
        if not _BOOT_ID.fullmatch(boot_id):  # it becomes an argument of a process
            raise ValueError("boot_id must be a word")
        gpus = frozenset(normalise_pci(pci) for pci in request.get("gpus", ()))
        known = Known(boot_id, None if seq is None else int(seq), gpus)
        wanted = self._wanted | {name} if do == "resume" else self._wanted - {name}
        self._wanted = wanted.intersection(self._supervisor.names)
        self._supervisor.want(self._wanted, known)
        self._heard += 1
        self._status = ""

    def _in_a_thread(self, work: Callable[[], None]) -> bool:
        """Whether there is one: the kubelet may take seconds and a diagnosis hours, and nothing else waits for it."""
        with contextlib.suppress(RuntimeError):  # the machine has no more
            threading.Thread(target=work, name="answer", daemon=True).start()
            return True
        return False

    def _ask(self, connection: socket.socket, what: str) -> None:
        """Whoever asks while an answer is on its way shares the next, which is no older than the question."""
        self._forget(connection)
        with self._lock:
            self._askers.append((connection, what))
            if len(self._askers) > _MOST_CONNECTIONS:
                self._askers.pop(0)[0].close()
            begin, self._asking = not self._asking, True
        if begin and not self._in_a_thread(self._answer):
            self._asking = False  # whoever asks next has them all answered

    def _answer(self) -> None:
        """One process after the other, until nobody waits for an answer."""
        while True:
            with self._lock:
                askers, self._askers = self._askers, []
                self._asking = bool(askers)
            if not askers:
                return
            answers = {what: self._asked(what) for what in {what for _, what in askers}}
            for connection, what in askers:
                with connection, contextlib.suppress(OSError):
                    say(connection, answers[what])

    def _asked(self, what: str) -> Any:
        try:
            if what == "who-runs":
                return dict(self._supervisor.who_runs())
            found = self._supervisor.who_holds()
            return {pod: None if uuids is None else sorted(uuids) for pod, uuids in found.items()}
        except UnaskedError as error:
            return {"unasked": str(error)}

    def _diagnose(self, level: int, gpus: tuple[str, ...], connection: socket.socket) -> None:
        """Tell the seconds so far, then the result. It ends with its asker, and until then a second one is refused."""
        self._tell("a diagnosis is asked for", diagnosis=level, gpus=gpus)
        with connection, contextlib.suppress(OSError):
            try:
                result = self._supervisor.diagnose(
                    level, gpus, lambda elapsed_s: say(connection, {"elapsed_s": round(elapsed_s, 1)})
                )
            except UndiagnosedError as error:
                result = {"error": str(error)}
            say(connection, result)

    def _send(self, text: str) -> None:
        if self._agent is not None and text:
            try:
                self._agent.sendall(text.encode())
            except OSError:  # a line that broke off ends with its connection
                self._hang_up(self._agent)

    def _send_status(self) -> None:
        """When something changed. Ages and counts of lines are the agent's own to know."""
        facts = {
            s.name: {k: v for k, v in asdict(s).items() if k not in ("name", "last_seen")}
            for s in self._supervisor.statuses
        }
        before, self._status = self._status, json.dumps({"status": facts, "heard": self._heard})
        if self._status != before:
            self._send(self._status + "\n")

    def _forget(self, connection: socket.socket) -> None:
        self._supervisor.selector.unregister(connection)
        del self._buffers[connection]

    def _hang_up(self, connection: socket.socket) -> None:
        if connection is self._agent:
            self._agent, self._wanted = None, frozenset()
            self._supervisor.want(self._wanted, Known())
            self._tell("the agent hung up; the sources end")
        self._forget(connection)
        connection.close()


def say(connection: socket.socket, answer: Any) -> None:
    """A line of an answer; OSError once the asker hung up."""
    connection.sendall(json.dumps(answer).encode() + b"\n")


def listen(path: Path) -> socket.socket:
    """The socket's folder is shared by the containers of one pod; the agent in the other is no root, and may be
    hostile. So nothing here follows a link: the socket is made with its mode, and takes its name once it listens.

    Who may reach it is decided by who mounts its folder.
    """
    fresh = path.with_name(f"{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o111)
    try:
        fresh.unlink(missing_ok=True)
        listener.bind(str(fresh))
        listener.listen(_MOST_CONNECTIONS)
        fresh.rename(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def tell(least: str, form: str, event: str, level: str = "info", **facts: object) -> None:
    """As the agent's log has it; structlog would double this process."""
    if _LEVELS.index(level) < _LEVELS.index(least):
        return
    now = rfc3339(time.time())
    line = json.dumps({**facts, "event": event, "level": level, "timestamp": now})
    if form == "console":
        line = " ".join((now, f"[{level}]", event, *(f"{key}={fact!r}" for key, fact in facts.items())))
    with contextlib.suppress(OSError):  # a log that nobody takes ends nothing
        sys.stderr.write(f"{line}\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.sources.process.serving", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--hung-s", type=float, required=True)
    parser.add_argument("--commands", type=json.loads, required=True, help="source → command line, as JSON")
    parser.add_argument("--pods", type=json.loads, required=True, help="the command line that asks for them, as JSON")
    parser.add_argument("--runs", type=json.loads, required=True, help="and how they are, as JSON")
    parser.add_argument("--diagnosis", type=json.loads, required=True, help="its command line, as JSON")
    parser.add_argument("--log-level", choices=_LEVELS, required=True)
    parser.add_argument("--log-format", choices=("console", "json"), required=True)
    options = parser.parse_args()
    told = partial(tell, options.log_level, options.log_format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        supervisor = Supervisor(options.commands, options.hung_s, options.pods, options.diagnosis, options.runs)
        serving = Serving(options.socket, supervisor, told)
    except OSError as error:
        sys.stderr.write(f"gpu-health-agent: --socket: {options.socket} can't be made ({error.strerror or error})\n")
        return EXIT_CONFIG
    told("started", socket=str(options.socket), sources=list(options.commands))
    return serving.run(stop)


if __name__ == "__main__":
    sys.exit(main())
