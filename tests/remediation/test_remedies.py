"""A remedy is a row of which nothing can be forgotten, and whatever is configured no withdrawn node is silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.actions.kube import KubeClient
from agent.config.config_file import load
from agent.config.settings import Config, Deadlines, Mode, Repair
from agent.model.fault import Fault, Severity, Status, Verdict
from agent.model.names import HARD_TAINT
from agent.model.remedy import LADDER, ROWS, Proof, Remedy
from agent.model.steps import On, Wait
from agent.model.world import Local
from agent.remediation.plan import plan
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import cluster, node, taints
from tests.life import CONFIG, TEMPLATES, UUID, Life
from tests.observe import GPU, Judge, alive, reading, xid

DAEMONSET = Path(__file__).parents[2] / "daemonset"
OF_THE_SITE = (Remedy.REPLACE_NODE,)  # how a node is replaced only its cloud knows: no template is shipped


def test_every_remedy_has_a_row_and_the_words_are_in_the_order_of_their_ranks() -> None:
    assert list(ROWS) == list(Remedy)
    assert [remedy.rank for remedy in Remedy] == list(range(len(Remedy)))


def test_the_ladder_is_climbed_from_the_milder_to_the_harder_and_each_rung_has_a_template() -> None:
    assert [remedy.row.rung for remedy in LADDER] == list(range(1, len(LADDER) + 1))
    assert [remedy.rank for remedy in LADDER] == sorted(remedy.rank for remedy in LADDER)
    assert {remedy for remedy in Remedy if remedy.row.template} == {*LADDER}


def test_what_a_row_names_is_a_setting() -> None:
    assert {row.template for row in ROWS.values()} - {""} <= Repair.model_fields.keys()
    assert {row.deadline for row in ROWS.values()} == Deadlines.model_fields.keys()
    for remedy in LADDER:
        repair = Repair.model_validate({remedy.row.template: "a-template"})
        assert (repair.templates, repair.offers(remedy)) == ({remedy: "a-template"}, True)


def test_a_template_is_shipped_for_every_remedy_or_known_to_be_the_sites_own() -> None:
    shipped = list(yaml.safe_load_all((DAEMONSET / "components" / "repair" / "templates.yaml").read_text()))
    configured = load(DAEMONSET / "overlays" / "repair" / "config.yaml").repair.templates
    assert {*configured} == {*LADDER} - {*OF_THE_SITE}
    assert {*configured.values(), "gpu-collect"} == {one["metadata"]["name"] for one in shipped}, "which is opt-in"


def test_what_proves_a_cure_is_said_and_what_nothing_proves_is_a_persons() -> None:
    for remedy, row in ROWS.items():
        assert bool(row.ends) is (row.proof is not Proof.NOTHING), remedy
        assert row.to_do, remedy


def verdict(remedy: Remedy, pci: str, severity: Severity, at: float) -> Verdict:
    """One fault of this remedy, of a GPU or of the node itself."""
    judge = Judge()
    judge.after(0, alive(), reading())
    seen = judge.after(1, xid(95))
    finding = replace(seen.faults[0].finding, remedy=remedy, severity=severity, pci=pci, clear_s=None)
    fault: Fault = replace(seen.faults[0], finding=finding, uuid=UUID if pci else "", joined=())
    status = Status.UNHEALTHY if severity is Severity.FATAL else Status.DEGRADED
    return replace(seen, at=at, status=status, remedy=remedy, faults=(fault,), standing=(fault,))


def site(config: Config) -> tuple[InMemoryCluster, KubeClient]:
    made = cluster("n1", "n2", "n3")
    for name in (*TEMPLATES.values(), "node-check"):
        job: dict[str, object] = {"spec": {"template": {"spec": {"containers": []}}}}
        body = {"metadata": {"name": name}, "spec": {"suspend": True, "jobTemplate": job}}
        made._store("cronjobs", "gpu-health-agent", body)
    return made, KubeClient(made, "n1", config)


def end(made: InMemoryCluster, how: str) -> None:
    """Every Job that runs ends."""
    over = {"type": how, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    for (kind, *_), job in made._objects.items():
        if kind == "jobs":
            job.setdefault("status", {"conditions": [over]})


configs = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(Mode),
        "budget": st.just({"max_withdrawn": 2}),
        "repair": st.fixed_dictionaries(
            {"max_attempts": st.integers(1, 2), "pause_s": st.sampled_from((0, 60)), "prove_s": st.just(60)},
            optional={
                **{name: st.just(template) for name, template in TEMPLATES.items()},
                "request_replacement": st.booleans(),
                "reset_when_idle": st.booleans(),
                "check": st.just("node-check"),
            },
        ),
    }
)
faults = st.tuples(
    st.sampled_from(Remedy), st.sampled_from((GPU, "")), st.sampled_from((Severity.FATAL, Severity.DEGRADED))
)
locals_ = st.builds(
    Local,
    gathered=st.booleans(),
    released=st.booleans(),
    clients=st.sampled_from(({}, {UUID: {}}, {UUID: {"4711": ""}})),
    holders=st.sampled_from((None, {})),
)


@settings(max_examples=150, deadline=None)
@given(
    told=configs,
    fault=faults,
    local=locals_,
    ends=st.lists(st.sampled_from(("Complete", "Failed")), max_size=6),
    read=st.booleans(),
)
def test_whatever_the_remedy_and_the_configuration_a_withdrawn_node_says_what_it_waits_for(
    told: dict[str, Any], fault: tuple[Remedy, str, Severity], local: Local, ends: list[str], read: bool
) -> None:
    config = Config.model_validate(told)
    made, client = site(config)
    at = 1_760_000_000.0
    for how in (*ends, ""):
        for _ in range(20):
            world = client.look(closely=True)
            world = world if read else replace(world, jobs=None)
            steps = plan(verdict(*fault, at), world, config, local).steps
            acts = [step for step in steps if not isinstance(step, Wait)]
            for step in acts:
                client.do(step)
            if not acts:
                break
        assert steps or HARD_TAINT not in taints(made), node(made)
        end(made, how)
        at += 300


def test_where_nobody_set_up_a_repair_a_drained_node_says_so_and_alerts_nobody() -> None:
    life = Life(95, CONFIG.model_copy(update={"repair": Repair()}))
    life.run(50)
    (wait,) = (step for step in life.planned.steps if isinstance(step, Wait))
    assert wait == Wait("no repair is configured for reset_gpu: a person must decide", On.OTHER)
    life.reboots()
    life.run(20)
    assert life.waits == ("the GPUs were cured by somebody else: they must stay well for a while first",)
    life.run(50)
    assert not life.tainted()
