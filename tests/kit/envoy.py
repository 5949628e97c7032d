"""A real Envoy with the shipped configuration, its names turned to replicas on loopback."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.kit.conftest import KIT, until

ENVOY, CONFIG = Path(sys.executable).parent / "envoy", KIT / "envoy" / "envoy.yaml"


class Envoy:
    """One Envoy in front of large replicas and those of the smaller model, given by their ports."""

    def __init__(
        self, folder: Path, large: list[int], smaller: list[int], change: Callable[[Any], None] = lambda _: None
    ) -> None:
        text = CONFIG.read_text()
        text = text.replace("0.0.0.0, port_value: 8080", "127.0.0.1, port_value: 0").replace(
            "port_value: 9901", "port_value: 0"
        )
        config = yaml.safe_load(text)
        cluster = config["static_resources"]["clusters"][0]
        for group, ports in zip(cluster["load_assignment"]["endpoints"], (large, smaller), strict=True):
            group["lb_endpoints"] = [endpoint(port) for port in ports]
        change(cluster)
        (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
        self._admin = folder / "admin"
        self.log = folder / "log"
        command = [
            str(ENVOY),
            "-c",
            str(folder / "envoy.yaml"),
            "--admin-address-path",
            str(self._admin),
            "--use-dynamic-base-id",
            "--concurrency",
            "1",
        ]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        self.port = int(until(self._listens))

    def _listens(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r"127\.0\.0\.1:([1-9]\d*)", self.admin("/listeners"))
        return found[1] if found else ""

    def admin(self, path: str) -> str:
        written = until(lambda: re.fullmatch(r"(.+):(\d+)", self._admin.read_text()))  # a moment after it is made
        connection = http.client.HTTPConnection(written[1], int(written[2]), timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def ask(self, path: str = "/infer") -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, b"{}")
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


def endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
