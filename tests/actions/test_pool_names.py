"""A pool is its selector: nobody can rename a pool beneath its budget."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from agent.actions.kube import KubeClient
from agent.config.config_file import load
from agent.config.settings import Budget
from agent.model.names import SELECTOR_ANNOTATION
from tests.actions.test_kube import cluster, drive, fatal
from tests.actions.test_pool import tainting

REQUIREMENTS = ("site=a", "gpu in (h100, a100)", "!spot", "os!=windows")


def named(selector: str) -> str:
    return Budget(pool_selector=selector).pool


def test_a_selector_names_the_same_permits_however_it_is_written() -> None:
    for order in itertools.permutations(REQUIREMENTS):
        assert named(",".join(order)) == named(",".join(REQUIREMENTS))
    for written in (
        "os != windows, gpu in(a100,h100) ,! spot,site==a",
        " site = a,gpu  in ( h100,a100 ),!spot,os!=windows,site=a",
        "site in (a), gpu in (a100,h100), !spot, os notin ( windows )",
    ):
        assert named(written) == named(",".join(REQUIREMENTS))


def test_another_selector_names_other_permits() -> None:
    others = {
        "",
        "site",
        "!site",
        "site=a",
        "site!=a",
        "site=b",
        "site in (a,b)",
        "site notin (a,b)",
        "site in (a,b,c)",
        "site=a,gpu",
        "site=a,!gpu",
        "sitein",
    }
    assert len({named(selector) for selector in others}) == len(others)
    assert all(len(named(selector)) == 8 for selector in others)


def test_an_upgrade_of_what_is_shipped_keeps_its_permits() -> None:
    """Agents of 0.1.0 named them so."""
    shipped = Path(__file__).parents[2] / "daemonset" / "base" / "config.yaml"
    assert load(shipped).budget.pool == Budget().pool == "gpu"


def test_a_permit_says_for_people_which_pool_it_is_of() -> None:
    made, config = cluster("n1"), tainting(pool_selector="nvidia.com/gpu.present=true,os!=windows")
    drive(KubeClient(made, "n1", config), fatal(), config)
    lease = made.read("leases", f"gpu-health-agent-withdrawn-{config.budget.pool}-0", "gpu-health-agent")
    assert lease["metadata"]["annotations"][SELECTOR_ANNOTATION] == config.budget.pool_selector


def test_a_name_of_the_pool_that_is_still_set_is_told_and_stops_no_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("mode: taint\nbudget: {pool: a100, max_withdrawn: 3}\n")
    config = load(file)
    assert (config.budget, config.mode) == (Budget(max_withdrawn=3), "taint")
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"gpu-health-agent: {file}: budget.pool: has no effect any more")
    file.write_text("mode: taint\n")
    assert load(file).budget == Budget()
    assert capsys.readouterr().err == ""
