"""``--history``: what befell a node as data and as a table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.actions.fleet import read_fleet
from agent.config.settings import Config
from agent.model.names import HISTORY_ANNOTATION
from agent.remediation.ledger import Ledger
from agent.remediation.ledger_json import dump
from agent.status.fleet_view import fleet_state
from agent.status.ledger_view import as_table, incidents, lasted
from agent.status.state import state as shown
from tests.actions.test_kube import MERGE, cluster
from tests.observe import GPU
from tests.status.test_metrics import LEDGER, snapshot

ROWS = [
    [
        "NODE",
        "ONSET",
        "FAULT",
        "GPU",
        "DETECT",
        "WAIT",
        "DRAIN",
        "REPAIR",
        "PROVE",
        "OUT",
        "GPU-HOURS",
        "ENDED",
        "BY",
        "EVIDENCE",
    ],
    ["n1", "2025-10-09T08:53:20Z", "xid-79", GPU, "16m", "2001s", "0.1", "stands"],
    ["n1", "2025-09-27T19:06:40Z", "xid-48", GPU, "16m", "33m", "16m", "16m", "16m", "50m", "1.7", "proof"],
]


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_each_incident_is_a_row_with_its_parts_and_its_end_the_latest_first() -> None:
    rows = table(as_table([("n1", incidents(LEDGER, 1_760_000_121.0))]))
    assert [rows[0], rows[2]] == [ROWS[0], ROWS[2]]
    assert (rows[1][:4], rows[1][-2:]) == (ROWS[1][:4], ROWS[1][-2:])


def test_the_job_that_took_evidence_is_named_in_its_row() -> None:
    (entry, *_) = LEDGER.entries
    told = incidents(Ledger((replace(entry, collected="gpu-health-collect-1"),)), 1_760_000_121.0)
    assert table(as_table([("n1", told)]))[1][-1] == "gpu-health-collect-1"


def test_state_and_the_fleet_tell_the_same_incidents() -> None:
    made = cluster("n1", "n2")
    body = {"metadata": {"annotations": {HISTORY_ANNOTATION: dump(LEDGER)}}}
    made("PATCH", "/api/v1/nodes/n1", body, MERGE)
    told = fleet_state(read_fleet(made, Config().budget), Config(), 1_760_000_121.0)
    by_node = {one["node"]: one["incidents"] for one in told["nodes"]}
    assert (len(by_node["n1"]), by_node["n2"]) == (2, [])
    assert json.loads(json.dumps(by_node["n1"])) == json.loads(
        json.dumps(shown(snapshot(), Config().policy)["incidents"])
    )


def test_one_that_nobody_can_read_is_told_beside_the_others() -> None:
    made = cluster("n1", "n2")
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": {HISTORY_ANNOTATION: "{\x1b[2J"}}}, MERGE)
    told = fleet_state(read_fleet(made, Config().budget), Config(), 0.0)
    (sick,) = (one for one in told["nodes"] if one["node"] == "n1")
    assert any(why.startswith(f"a person: annotation {HISTORY_ANNOTATION}: ") for why in sick["waits"])
    assert "\x1b" not in as_table((one["node"], one["incidents"]) for one in told["nodes"])


def test_no_incident_is_said_in_words() -> None:
    assert as_table([("n1", [])]) == "No incident is noted: no fault withdrew a node, or would have.\n"


@pytest.mark.parametrize(("seconds", "word"), [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")])
def test_spans_are_written_as_kubectl_writes_ages(seconds: int, word: str) -> None:
    assert lasted(seconds) == word
