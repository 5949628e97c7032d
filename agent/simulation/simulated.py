"""Simulated GPUs that follow a scenario and take injections, read by the very loop that reads real ones."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pynvml as nv

from agent.model.errors import AgentError, NotRunningError, UsageError
from agent.model.text import normalise_pci, read_json
from agent.simulation.gpu import SimulatedGpu
from agent.simulation.library import Library
from agent.simulation.scenario import PROFILES, Scenario, load_scenario, numbers, wrong
from agent.sources.nvml import session as nvml

_REBOOT_XIDS, _RESET_XIDS = (79,), (46, 48, 62, 64, 95, 110, 119, 120, 140, 143, 158, 169, 175)
_REBOOT_ACTIONS = (2, 7)
_REPLY_S = 3.0
_LONGEST = 64 * 1024  # of a request
_DRIVER, _USER = 3, 12  # priorities: the kernel's own error, a warning that user space wrote (facility 1)


class Simulation:
    """The GPUs, the simulated kernel log and the boot id in one folder."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self.scenario, self.directory = scenario, directory
        self.library = Library(PROFILES[scenario.profile]())
        self._sequence = 1000
        self._lock = threading.Lock()
        self._needs_reboot: set[int] = set()
        self._injected: dict[int, dict[str, Any]] = {}  # since the last clear
        directory.mkdir(parents=True, exist_ok=True)
        # A new process is no new boot: the machine's kernel log and boot id are as the last one left them.
        (directory / "kmsg").touch()
        self._sequence += len((directory / "kmsg").read_bytes().splitlines())
        if not (directory / "boot_id").exists():
            self._boot()
        self._restore()
        self._bus()

    def _restore(self) -> None:
        """The GPUs as they were left, by a process that ended for a reset or that crashed."""
        path = self.directory / "gpus"
        try:
            kept = json.loads(path.read_text())
        except FileNotFoundError:
            return
        except ValueError as error:
            raise UsageError(f"{path}: not what a simulation writes ({error}): remove it") from error
        if kept["profile"] == self.scenario.profile:
            self._needs_reboot = set(kept["needs_reboot"])
            self._injected = {int(gpu): what for gpu, what in kept["injected"].items()}
            for gpu, state in zip(self.library.gpus, kept["gpus"], strict=True):
                gpu.restore(state)

    def _keep(self) -> None:
        _whole(
            self.directory / "gpus",
            json.dumps(
                {
                    "profile": self.scenario.profile,
                    "needs_reboot": sorted(self._needs_reboot),
                    "injected": self._injected,
                    "gpus": [gpu.kept() for gpu in self.library.gpus],
                }
            ),
        )

    def _bus(self) -> None:
        """The PCI bus as sysfs shows it, with every GPU held by the NVIDIA driver, each in a slot of its own."""
        for gpu in self.library.gpus:
            device = self.directory / "bus" / normalise_pci(gpu.pci)
            device.mkdir(parents=True, exist_ok=True)
            (device / "vendor").write_text("0x10de\n")
            (device / "class").write_text("0x030200\n")
            (device / "driver").unlink(missing_ok=True)
            (device / "driver").symlink_to("../../drivers/nvidia")
            slot = self.directory / "slots" / f"{gpu.index + 1}"
            slot.mkdir(parents=True, exist_ok=True)
            (slot / "address").write_text(normalise_pci(gpu.pci).partition(".")[0] + "\n")

    def request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Change the simulation; the reply says what was done or what is wrong."""
        if request == {"state": True}:
            with self._lock:
                return {"state": {str(gpu): dict(what) for gpu, what in sorted(self._injected.items())}}
        gpus = self.library.gpus
        if (uuid_ := request.get("gpu")) in (uuids := [gpu.uuid for gpu in gpus]):
            request = {**request, "gpu": uuids.index(uuid_)}
        if error := wrong(request, self.scenario.profile, len(gpus)):
            return {"error": error}
        with self._lock:
            if "kernel" in request:
                self._kernel(str(request["kernel"]), _USER)
            for gpu in gpus if request.get("gpu") is None else [gpus[request["gpu"]]]:
                self._change(gpu, request)
            self._keep()
        return {"done": dict(request)}

    def _change(self, gpu: SimulatedGpu, request: Mapping[str, Any]) -> None:
        injected = {key: value for key, value in request.items() if key not in ("gpu", "clear", "kernel")}
        if request.get("clear"):
            self._injected.pop(gpu.index, None)
            reboots = gpu.lost or gpu.recovery_action in _REBOOT_ACTIONS or gpu.index in self._needs_reboot
            self._needs_reboot.discard(gpu.index)
            gpu.new_epoch()
            if reboots:  # last: whoever sees the new boot id sees a GPU that is well
                self._boot()
        if injected:
            self._injected.setdefault(gpu.index, {}).update(injected)
        if "temperature" in request:
            gpu.temperature_c = float(request["temperature"])
        if "ecc_uncorrected" in request:
            gpu.ecc_uncorrected += int(request["ecc_uncorrected"])
            gpu.ecc_uncorrected_aggregate += int(request["ecc_uncorrected"])
            self.library.event(gpu, nv.nvmlEventTypeDoubleBitEccError)
        if "recovery_action" in request:
            gpu.recovery_action = int(request["recovery_action"])
            self.library.event(gpu, nv.nvmlEventTypeGpuRecoveryAction)
        gpu.numbers.update(numbers(request))
        if "hang" in request:
            gpu.hanging.add(str(request["hang"]))
        if "process" in request:
            gpu.processes.add(int(request["process"]))
        if request.get("lost"):
            gpu.lost = True
            self._needs_reboot.add(gpu.index)
        if "xid" in request:
            self._xid(gpu, int(request["xid"]), request)

    def _xid(self, gpu: SimulatedGpu, code: int, request: Mapping[str, Any]) -> None:
        if code in _REBOOT_XIDS:
            gpu.lost, gpu.recovery_action = True, 2
            self._needs_reboot.add(gpu.index)
        elif code in _RESET_XIDS:
            gpu.recovery_action = 1
        address = normalise_pci(gpu.pci).rpartition(".")[0]
        pid, name = request.get("pid", "'<unknown>'"), request.get("name", "<unknown>")
        self._kernel(f"NVRM: Xid (PCI:{address}): {code}, pid={pid}, name={name}, simulated")
        self.library.event(gpu, nv.nvmlEventTypeXidCriticalError, code)

    def _kernel(self, text: str, priority: int = _DRIVER) -> None:
        self._sequence += 1
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)  # as the kernel does
        with (self.directory / "kmsg").open("a") as log:
            log.write(f"{priority},{self._sequence},{int(time.monotonic() * 1e6)},-;{text}\n")

    def _boot(self) -> None:
        _whole(self.directory / "boot_id", f"{uuid.uuid4()}\n")

    def play(self) -> None:
        """The scenario's steps, each at its time."""
        began = time.monotonic()
        for step in self.scenario.steps:
            time.sleep(max(0.0, began + step.at_s - time.monotonic()))
            self.request(step.request)

    def listen(self) -> socket.socket:
        """Take the folder's control socket: from now on injections are heard."""
        path = self.directory / "control"
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        path.chmod(0o600)
        server.listen()
        self._keep()
        return server

    def serve(self, server: socket.socket) -> None:
        """Answer injections: one JSON request a connection, one JSON reply."""
        with server:
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(_REPLY_S)
                    try:
                        request = read_json(connection.makefile().readline(_LONGEST))
                        reply = self.request(request) if isinstance(request, dict) else {"error": "not an object"}
                    except (OSError, ValueError) as error:
                        reply = {"error": str(error)}
                    try:
                        connection.sendall(json.dumps(reply).encode() + b"\n")
                    except OSError:
                        continue  # whoever asked is gone


def _whole(path: Path, text: str) -> None:
    """Written so that it is whole at any instant that it is read."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


def inject(directory: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Change the simulation in this folder, also one that let go of its GPUs, as for a reset.

    NotRunningError if there is none, or it dies meanwhile; UsageError if it refuses.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_REPLY_S)
        try:
            client.connect(str(directory / "control"))
        except OSError as error:
            reply = {**_released(directory, error).request(request), "note": "no process simulates it now"}
        else:
            try:
                client.sendall(json.dumps(request).encode() + b"\n")
                reply = json.loads(client.makefile().readline())
            except (OSError, ValueError) as error:
                raise NotRunningError(f"the simulation in {directory} gave no answer: is it still there?") from error
    if "error" in reply:
        raise UsageError(str(reply["error"]))
    return dict(reply)


def _released(directory: Path, error: OSError) -> Simulation:
    """The simulation whose process ended and left its GPUs behind."""
    try:
        profile = json.loads((directory / "gpus").read_text())["profile"]
    except OSError:
        raise NotRunningError(
            f"no simulation runs in {directory}: start one with 'simulate' or 'run --simulate'"
        ) from error
    return Simulation(Scenario(profile), directory)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.simulation.simulated", description=__doc__)
    parser.add_argument("--scenario", required=True, help="a shipped scenario's name, or a file")
    parser.add_argument("--dir", type=Path, required=True, help="where kmsg, boot_id and control are kept")
    parser.add_argument("--poll-s", type=float, default=5.0)
    parser.add_argument("--known", nargs="*", default=[], metavar="PCI", help="GPUs that this node is known to have")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="PCI", help="GPUs at which calls hung")
    options = parser.parse_args()
    try:
        simulation = Simulation(load_scenario(options.scenario), options.dir)
        server = simulation.listen()
    except (OSError, AgentError) as error:
        sys.exit(str(error))
    simulation.library.install()
    threading.Thread(target=simulation.serve, args=(server,), name="control", daemon=True).start()
    threading.Thread(target=simulation.play, name="scenario", daemon=True).start()
    code = nvml.run(options.poll_s, options.dir / "boot_id", options.dir / "bus", options.known, options.leave_out)
    (options.dir / "control").unlink(missing_ok=True)
    return code


if __name__ == "__main__":
    os._exit(main())  # the listener waits for ever by design
