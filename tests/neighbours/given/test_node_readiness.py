"""node-readiness-controller's own program beside the agent: when the taint of a new node goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from agent.model.names import DEGRADED, HARD_TAINT
from tests.cluster.conftest import OVERLAYS, Site, StartAgent
from tests.cluster.control_plane import ControlPlane
from tests.neighbours.beside import Place, beside
from tests.neighbours.programs import NODE_READINESS

RULE = OVERLAYS / "gate" / "nodereadinessrule.yaml"
TAINT = yaml.safe_load(RULE.read_text())["spec"]["taint"]["key"]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with beside(NODE_READINESS, "evict", tmp_path_factory.mktemp("plane"), _arguments) as made:
        yield made


def _arguments(place: Place) -> tuple[str, ...]:
    return ("--health-probe-bind-address", f"127.0.0.1:{place.health}")


@pytest.fixture
def rule(plane: ControlPlane) -> Iterator[list[str]]:
    """kubectl's words to apply the overlay's rule."""
    yield ["apply", "-f", str(RULE)]
    plane.kubectl("delete", "--ignore-not-found", "-f", str(RULE))


def test_the_taint_of_a_new_node_goes_once_its_agent_found_nothing_and_never_comes_back(
    site: Site, agent: StartAgent, rule: list[str]
) -> None:
    site.plane.kubectl(*rule)
    site.plane.wait("both are closed", lambda: site.taints(0) == site.taints(1) == [TAINT])
    running = agent(simulate="idle")
    site.plane.wait("open", lambda: site.taints() == [])
    assert site.taints(1) == [TAINT], "nobody has looked there"
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("withdrawn", lambda: HARD_TAINT in site.taints())
    site.plane.wait("it is told", lambda: site.condition("GpuUnhealthy")["status"] == "True")
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("returned", lambda: site.taints() == [])


def test_the_taint_of_a_new_node_stays_while_its_agent_reports_a_fault(
    site: Site, agent: StartAgent, rule: list[str]
) -> None:
    running = agent(simulate="idle")
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "171")
    site.plane.wait("it is told", lambda: site.condition(DEGRADED)["status"] == "True")
    site.plane.kubectl(*rule)
    site.plane.wait("closed", lambda: TAINT in site.taints())
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("open", lambda: TAINT not in site.taints())
    assert site.condition(DEGRADED)["status"] == "False"
