"""The cluster's DNS for real nodes: dnsmasq, told of the Services and their ready pods as these change."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster.control_plane import ControlPlane

_ZONE = "cluster.local"
_LOOK_S = 0.2


@contextlib.contextmanager
def dns(plane: ControlPlane, folder: Path, address: str) -> Iterator[None]:
    """Answers at ``address`` for as long as the context lasts; it forwards nothing."""
    hosts, stop = folder / "dns.hosts", threading.Event()
    hosts.write_text("")
    with (folder / "dns.log").open("ab") as out:
        process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                f"--addn-hosts={hosts}",
                f"--local=/{_ZONE}/",
                "--user=root",
                "--pid-file",
                f"--listen-address={address}",
                "--bind-interfaces",
                "--log-facility=-",
            ],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    thread = threading.Thread(target=_follow, args=(plane, hosts, process, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        process.terminate()
        process.wait(10)


def _follow(plane: ControlPlane, hosts: Path, process: subprocess.Popen[bytes], stop: threading.Event) -> None:
    while not stop.wait(_LOOK_S):
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
            services = plane.must("GET", "/api/v1/services")["items"]
            slices = plane.must("GET", "/apis/discovery.k8s.io/v1/endpointslices")["items"]
            text = "".join(f"{address} {name}\n" for name, address in sorted(records(services, slices)))
            if text != hosts.read_text():
                hosts.write_text(text)
                process.send_signal(signal.SIGHUP)  # reads the file anew


def records(services: list[dict[str, Any]], slices: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names and addresses: a Service has its own, a headless one those of its ready pods, which may have names too."""
    headless = set()
    for service in services:
        name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.{_ZONE}"
        if service["spec"].get("clusterIP") == "None":
            headless.add(name)
        else:
            yield name, service["spec"]["clusterIP"]
    for one in slices:
        service = one["metadata"].get("labels", {}).get("kubernetes.io/service-name")
        name = f"{service}.{one['metadata']['namespace']}.svc.{_ZONE}"
        for endpoint in one.get("endpoints") or () if name in headless else ():
            if endpoint.get("conditions", {}).get("ready"):
                own = [f"{endpoint['hostname']}.{name}"] if endpoint.get("hostname") else []
                yield from ((found, address) for address in endpoint["addresses"] for found in (name, *own))
