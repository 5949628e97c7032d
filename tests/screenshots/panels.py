"""The dashboard's panels over a real Prometheus, drawn in a browser by Grafana's own panel components."""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.cache import key, made_once
from tests.monitoring.stack import FOLDER

_SOURCES = [Path(__file__).with_name(name) for name in ("package.json", "panels.jsx")]
_PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="panels.css"><body>
<script type="module" src="panels.js"></script>"""


@contextmanager
def served(prometheus: str) -> Iterator[str]:
    """The address of a page that draws the dashboard from this Prometheus; ``&node=`` chooses nodes."""
    handler = functools.partial(_Quiet, directory=str(_built()))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/?prometheus={prometheus}"
        server.shutdown()


def _built() -> Path:
    """The folder of the page, built once from npm's packages into a cache outside the tree."""

    def make(folder: Path) -> None:
        for source in _SOURCES:
            shutil.copy(source, folder)
        for command in (["install", "--no-audit", "--no-fund", "--ignore-scripts"], ["run", "build"]):
            subprocess.run(["npm", *command], cwd=folder, check=True)
        shutil.rmtree(folder / "node_modules")  # 600 MB
        (folder / "out" / "index.html").write_text(_PAGE)

    out = made_once(f"panels/{key(_SOURCES)}", make) / "out"
    shutil.copy(FOLDER / "dashboard.json", out)
    return out


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """The pictures tell enough."""
