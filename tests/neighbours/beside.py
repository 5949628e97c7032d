"""A control plane on which the agent's manifests and another project's controller are installed."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.build import assets
from tests.cluster.conftest import OVERLAYS
from tests.cluster.control_plane import ControlPlane, _free_ports
from tests.neighbours.programs import MANIFESTS, PROGRAM, Controller, built

# What runs here as a process, and what is asked by nobody here.
_LEFT_OUT = ("Deployment", "PodDisruptionBudget", "APIService", "Certificate", "Issuer")


@dataclass(frozen=True)
class Place:
    """Where a controller runs: its folder, that of its certificate, and its ports on loopback."""

    folder: Path
    certificate: Path
    webhooks: int
    health: int


@contextmanager
def beside(
    controller: Controller, overlay: str | Path, folder: Path, arguments: Callable[[Place], tuple[str, ...]]
) -> Iterator[ControlPlane]:
    """Its program runs with the rights that its own manifests give it, beside an overlay as it is shipped or one of the
    test's; yields once it is ready.
    """
    program = built(controller)
    plane = ControlPlane(folder, assets())
    plane.up(nodes=0)
    process = None
    try:
        plane.install(OVERLAYS / overlay)
        place = Place(folder, folder / "certificate", *_free_ports(2))
        place.certificate.mkdir()
        manifests = [one for one in yaml.safe_load_all((program / MANIFESTS).read_text()) if one]
        (deployment,) = (one for one in manifests if one["kind"] == "Deployment")
        namespace, pod = deployment["metadata"]["namespace"], deployment["spec"]["template"]["spec"]
        _install(plane, controller, manifests, namespace, place)
        kubeconfig = plane.account_kubeconfig(namespace, pod["serviceAccountName"])
        log = folder / "log" / "controller.log"
        with log.open("wb") as out:
            command = ["setpriv", "--pdeathsig", "KILL", str(program / PROGRAM), *arguments(place)]
            own = {"KUBECONFIG": str(kubeconfig), "DEPLOYMENT_NAMESPACE": namespace}
            environment = {**own, "PATH": os.environ["PATH"]}
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out)
        try:
            if controller.certifies_itself:
                (secret,) = (volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume)
                _mount(plane, f"/api/v1/namespaces/{namespace}/secrets/{secret}", place.certificate)
            plane.wait("the controller is ready", lambda: _is_ready(place.health))
            yield plane
        finally:
            print(log.read_text()[-20_000:])
    finally:
        if process:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        plane.down()


def _install(
    plane: ControlPlane, controller: Controller, manifests: list[dict[str, Any]], namespace: str, place: Place
) -> None:
    """The API server reaches the webhooks by their Service as always; it leads to loopback."""
    wanted = [one for one in manifests if one["kind"] not in _LEFT_OUT]
    if not controller.has_webhooks:
        wanted = [one for one in wanted if not one["kind"].endswith("WebhookConfiguration")]
        for one in wanted:
            if one["kind"] == "CustomResourceDefinition":
                one["spec"]["conversion"] = {"strategy": "None"}
    clients = [client for one in wanted for client in _clients(one)]
    for service in {client["service"]["name"] for client in clients}:
        authority = "" if controller.certifies_itself else _certify(place.certificate, f"{service}.{namespace}.svc")
        for client in clients:
            client["service"]["port"] = place.webhooks
            if authority:
                client["caBundle"] = authority
        for one in wanted:
            if one["kind"] == "Service" and one["metadata"]["name"] == service:
                one["spec"] = {"type": "ExternalName", "externalName": "localhost"}
    plane.kubectl("apply", "--server-side", "-f", "-", text=yaml.safe_dump_all(wanted))


def _clients(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """How the API server reaches each webhook of a manifest."""
    if manifest["kind"].endswith("WebhookConfiguration"):
        yield from (hook["clientConfig"] for hook in manifest["webhooks"])
    elif manifest["kind"] == "CustomResourceDefinition":
        conversion = manifest["spec"].get("conversion", {})
        if conversion.get("strategy") == "Webhook":
            yield conversion["webhook"]["clientConfig"]


def _certify(folder: Path, name: str) -> str:
    """A certificate that vouches for itself, as a webhook's caBundle."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    who = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    files = ["-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.crt"]
    subprocess.run(["openssl", "req", "-x509", *curve, *who, *files], check=True, capture_output=True)
    return base64.b64encode((folder / "tls.crt").read_bytes()).decode()


def _mount(plane: ControlPlane, secret: str, folder: Path) -> None:
    """As a kubelet would."""
    plane.wait("it has a certificate", lambda: plane.must("GET", secret).get("data"))
    for name, value in plane.must("GET", secret)["data"].items():
        (folder / name).write_bytes(base64.b64decode(value))


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
