"""``explain`` tells a person everything about a fault, from a state and from what a Node stores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.commands.explain import in_words, stored
from agent.config.limits import Limits
from agent.config.settings import Config, Mode
from agent.diagnosis.advice import ADVICE, clears, next_step
from agent.diagnosis.rules import ROWS
from agent.model.errors import UsageError
from agent.model.fault import Severity
from agent.model.remedy import Remedy
from agent.model.world import Taint, World
from agent.remediation.records import Attempt, Records, Stage
from agent.remediation.stored import dump
from agent.status.state import fault
from tests.observe import GPU, Judge, alive, lost, reading, xid

LINE = "NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus.\x1b[2J"


def lost_gpu() -> Judge:
    judge = Judge(expected=("nvml", "kmsg"))
    judge.after(0, alive(), alive("kmsg"), reading())
    judge.after(1, xid(79, source="kmsg", raw=LINE), lost())
    return judge


def test_a_fault_is_told_with_its_lines_its_end_and_what_to_do() -> None:
    verdict = lost_gpu().after(1, alive())
    state = {"node": "n", "status": "unhealthy", "at": "", "blind": [], "waits": ["pod a/b may not be evicted yet"]}
    text = in_words({**state, "faults": [fault(f, Limits()) for f in verdict.faults]}, None)
    for part in (
        f"xid-79@{GPU}: fatal, remedy reboot_node",
        "GPU has fallen off the bus",
        f"explains:  gpu-lost@{GPU}",
        "a reboot (another boot id)",
        f"gpu-health-agent/dismiss=xid-79@{GPU}",
        "reboot the node",
        "waiting: pod a/b",
        f"paste:     kubectl annotate node NODE gpu-health-agent/dismiss=xid-79@{GPU},gpu-lost@{GPU}",
    ):
        assert part in text
    assert "\x1b" not in text, "kernel text never reaches a terminal as it came"


def test_a_proved_cure_promises_the_faults_end_and_no_return() -> None:
    """The node may never have left, another fault may stand on it, or it is held."""
    (one,) = lost_gpu().after(1, alive()).faults
    assert next_step(replace(one, proved=True)) == "the cure is proved; the fault ends by itself after the soak"


def test_the_nodes_annotation_explains_without_the_agent() -> None:
    verdict = lost_gpu().after(1, alive())
    tried = Attempt(Remedy.RESET_GPU, 1, "gpu-health-reset-gpu-1", (), "", Stage.FAILED, said="no permission to reset")
    told = dump(verdict, 7, verdict.at, Records((tried,)))
    world = World("n", "uid", stored=told, labels={"gpu-health-agent/state": "drained"})
    state = stored(world, Config())
    assert "n is drained" in in_words(state, f"xid-79@{GPU}")
    (only,) = state["faults"]
    assert only["explains"] == [f"gpu-lost@{GPU}"], "one incident is one fault, as the agent tells it"
    attempt = "reset_gpu, attempt 1 (Job gpu-health-reset-gpu-1): failed, no permission to reset"
    assert f"waiting: {attempt}" in in_words(state, None)
    with pytest.raises(UsageError, match="no such fault stands"):
        in_words(state, "xid-1@0000:00:00.0")
    with pytest.raises(UsageError, match="no agent ran there"):
        stored(World("n", "uid"), Config())
    with pytest.raises(UsageError, match="it is not what this agent writes"):
        stored(World("n", "uid", stored="{}"), Config())


def test_a_degraded_gpu_that_is_reset_by_itself_asks_nobody_to_do_it() -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    (waits,) = judge.after(1, xid(63)).faults
    assert next_step(waits).endswith("nvidia-smi --gpu-reset -i GPU-0000:1b:00.0")
    assert fault(waits, Limits(), resets=True)["next"] == (
        "running pods stay, new ones prefer other nodes or stay away; its GPU is reset once nobody uses it"
    )


@pytest.mark.parametrize("rule", sorted(ROWS))
def test_every_rule_says_what_ends_it_and_what_comes_next(rule: str) -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    seen = judge.memory.history.readings[GPU]
    finding = ROWS[rule].found(seen, Limits())
    assert f"dismiss={rule}@{GPU}" in clears(finding, Limits())
    standing = judge.after(1, xid(79)).faults[0]
    told = next_step(standing.__class__(finding, 0, 0, 0))
    acts = {Severity.NOTICE: "no pod is moved", Severity.DEGRADED: "running pods stay", Severity.FATAL: "withdrawn"}
    assert acts[finding.severity] in told
    assert finding.remedy is Remedy.NONE or len(told) > 60


def test_heat_is_answered_with_cooling_and_no_advice_is_for_a_rule_that_is_none() -> None:
    assert ADVICE.keys() <= ROWS.keys()
    hot = {"temperature_c": 95.0, "temperature_slowdown_c": 93.0}
    verdict = Judge().each_poll(90, alive(), reading(**hot))
    assert "cooling" in next_step(verdict.faults[0])


@pytest.mark.parametrize(
    ("mode", "effect", "words"),
    [
        ("evict", "PreferNoSchedule", "running pods stay, new ones prefer other nodes; "),
        ("evict", "NoSchedule", "running pods stay, no new ones come; "),
        ("evict", "", "running pods stay; "),  # the taint is yet to be set
        ("evict", None, "running pods stay, new ones prefer other nodes or stay away; "),
        ("observe", None, "running pods stay; "),
    ],
)
def test_what_becomes_of_new_pods_on_a_degraded_node_is_what_its_taint_does(
    mode: str, effect: str | None, words: str
) -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    (degraded,) = judge.after(1, xid(63)).faults
    assert fault(degraded, Limits(), mode, effect=effect)["next"].startswith(words)
    kept = dump(judge.after(0), 1, 0.0, Records())
    taints = (Taint("gpu-health-agent/degraded", "", effect),) if effect else ()
    told = stored(World("n", "uid", stored=kept, taints=taints), Config(mode=Mode.EVICT))["faults"][0]["next"]
    assert told.startswith(words) if effect else told.startswith("running pods stay; ")
