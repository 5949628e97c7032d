"""The image of the Dockerfile, started as a container: it runs, and holds what it should and no more."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import __version__
from tests.image.build import IMAGE, ROOT, images, sources, storage

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def podman() -> Iterator[Run]:
    with podman_with(images()[0]) as call:
        yield call


@contextmanager
def podman_with(archive: Path) -> Iterator[Run]:
    """podman with an image loaded; ``podman("run", …)`` gets what it takes to run inside of another container too."""
    with storage() as options:

        def call(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            how = ["--cgroup-manager=cgroupfs", "--runtime=runc", command]
            if command == "run":
                limits = [f"--ulimit={name}=1024:1024" for name in ("nofile", "nproc")]
                how += ["--rm", "--network=none", "--read-only", "--cap-drop=all", *limits]
            return subprocess.run(["podman", *options, *how, *arguments], capture_output=True, text=True, timeout=120)

        loaded = call("load", "--quiet", f"--input={archive}")
        assert loaded.returncode == 0, loaded.stderr
        try:
            yield call
        finally:
            call("rm", "--all", "--force", "--time=0")  # one that hangs holds its mounts


def test_it_is_built_anew_for_what_it_is_made_of_and_not_for_an_edit_of_the_readme() -> None:
    made_of = {str(path.relative_to(ROOT)) for path in sources()}
    assert made_of > {"Dockerfile", "pyproject.toml", "LICENSE", "agent/cli.py", "agent/diagnosis/rules/xid.csv"}
    assert not [name for name in made_of if name.startswith(("README", "tests/", "daemonset/"))]


def shell(podman: Run, script: str) -> str:
    done = podman("run", "--entrypoint=sh", IMAGE, "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_says_its_version(podman: Run) -> None:
    done = podman("run", IMAGE, "--version")
    assert (done.stdout, done.returncode) == (f"gpu-health-agent {__version__}\n", 0), done.stderr


def test_it_serves_a_moment_after_its_start(podman: Run) -> None:
    """Read-only, with simulated GPUs and no cluster: what is measured is the container and the program."""
    podman("run", IMAGE, "--version")  # the first run unpacks
    script = """import subprocess, time
began = time.monotonic()
with subprocess.Popen(["gpu-health-agent", "run", "--node=n", "--simulate"], stderr=subprocess.PIPE) as agent:
    while b'"started"' not in agent.stderr.readline():
        pass
    print(time.monotonic() - began)
    agent.terminate()
"""
    began = time.monotonic()
    done = podman("run", "--entrypoint=/opt/gpu-health-agent/bin/python", IMAGE, "-c", script)
    assert done.returncode == 0, done.stderr
    whole_s = time.monotonic() - began
    print(f"from its start to /metrics served {float(done.stdout):.2f} s; podman's whole run {whole_s:.2f} s")


def test_its_port_answers_on_ipv4_and_on_ipv6(podman: Run) -> None:
    """As it is configured by default, in a network of its own."""
    script = """import subprocess, urllib.request
with subprocess.Popen(["gpu-health-agent", "run", "--node=n", "--simulate"], stderr=subprocess.PIPE) as agent:
    while b'"started"' not in agent.stderr.readline():
        pass
    for host in ("127.0.0.1", "[::1]"):
        print(urllib.request.urlopen(f"http://{host}:9836/healthz", timeout=30).status)
    agent.terminate()
"""
    done = podman("run", "--entrypoint=/opt/gpu-health-agent/bin/python", IMAGE, "-c", script)
    assert done.stdout.split() == ["200", "200"], done.stderr


def test_check_runs_in_it_and_says_what_the_container_lacks(podman: Run) -> None:
    done = podman("run", IMAGE, "check", "--json")
    assert done.returncode == 3, done.stderr
    state = json.loads(done.stdout)
    assert state["status"] == "unknown"
    assert {why.partition(":")[0] for why in state["blind"]} == {"kmsg", "nvml"}


def test_it_runs_as_nobody_and_nothing_in_it_can_be_written(podman: Run) -> None:
    assert shell(podman, "id --user; id --group").split() == ["65532", "65532"]
    assert shell(podman, "touch /opt/gpu-health-agent/x 2> /dev/null || echo refused").strip() == "refused"


def test_no_compiler_and_no_installer_is_in_it(podman: Run) -> None:
    tools = "gcc cc g++ make pip pip3 git curl wget"
    assert shell(podman, f"for tool in {tools}; do command -v $tool || true; done") == ""


def test_every_module_of_ours_is_compiled_already(podman: Run) -> None:
    """A read-only container would compile them at each start."""
    script = """cd /opt/gpu-health-agent/lib/python3*/site-packages/agent
    find . -name '*.py' | while read -r file; do
      ls "$(dirname "$file")/__pycache__/$(basename "$file" .py)".*.pyc > /dev/null 2>&1 || echo "$file"
    done"""
    assert shell(podman, script) == ""


def test_its_labels_say_what_it_is_and_its_size_is_kept_small(podman: Run) -> None:
    (told,) = json.loads(podman("image", "inspect", IMAGE).stdout)
    assert told["Labels"]["org.opencontainers.image.version"] == __version__
    assert told["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    ours = int(shell(podman, "du --summarize --bytes /opt/gpu-health-agent").split()[0])
    print(f"image {told['Size'] / 1e6:.0f} MB, of which the agent and its libraries {ours / 1e6:.0f} MB")
    assert ours < 100e6
