"""What comes over the fleet: each kind begins, and ends where it says ``yield``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.config.settings import Mode
from agent.model.names import DEGRADED, DISMISS_ANNOTATION, MANAGED_LABEL
from tests.exploration.neighbours import (
    Trouble,
    endless_pods,
    error_label,
    labelled,
    lease_deleted,
    obstacle,
    others_taint,
    others_words,
    pause,
    reinstalled,
    stripped,
    unlabelled,
    webhook,
    without,
)
from tests.exploration.outage import crash_loop, death, kubelet, remade, server_clock
from tests.exploration.wire import Weather
from tests.observe import GPU, OTHER

if TYPE_CHECKING:
    from tests.exploration.fleet import Fleet
    from tests.exploration.node import Node

SELECTORS = ("nvidia.com/gpu.present=true,os!=windows", "os != windows, nvidia.com/gpu.present == true")
_OTHER_SELECTOR = "nvidia.com/gpu.present=true,os!=plan9"
_XIDS = (95, 95, 95, 79, 63, 74, 31)


def fault(fleet: Fleet) -> Trouble:
    """GPUs break: one, or the same on many at once, as a bad driver roll-out makes it look."""
    many = fleet.nodes if fleet.chance.random() < 0.2 else [fleet.any_node()]
    code = fleet.chance.choice(_XIDS)
    for node in many:
        if node.up and not node.asleep:
            node.breaks(fleet.chance.choice((GPU, OTHER)), code)
            node.due = min(node.due, fleet.now + 1)
    fleet.say(f"Xid {code} on {', '.join(node.name for node in many)}")
    yield


def weather(fleet: Fleet) -> Trouble:
    """The API server answers late, wrongly, or not at all."""
    share = fleet.chance.choice((0.02, 0.1, 0.3))
    for name in ("lost", "late", "mute", "refused"):
        setattr(fleet.wire.weather, name, share * fleet.chance.random())
    yield
    fleet.wire.weather = Weather(cut=fleet.wire.weather.cut)


def cut(fleet: Fleet) -> Trouble:
    """Some nodes reach no API server."""
    names = set(fleet.chance.sample(fleet.names, fleet.chance.randint(1, len(fleet.names))))
    fleet.wire.weather.cut |= names
    yield
    fleet.wire.weather.cut -= names


def crashes(fleet: Fleet) -> Trouble:
    """Agents die after their writes."""
    fleet.kills = fleet.chance.choice((0.02, 0.1))
    yield
    fleet.kills = 0.0


def stalls(fleet: Fleet) -> Trouble:
    """Agents stand still in mid-round, for longer than a permit is good for."""
    fleet.stalls_s = fleet.chance.choice((400.0, 1500.0))
    yield
    fleet.stalls_s = 0.0


def sleep(fleet: Fleet) -> Trouble:
    """Machines sleep, or virtual ones are paused, with their agents in mid-round."""
    fleet.stalls_s, fleet.sleeps = fleet.chance.choice((400.0, 1500.0)), True
    yield
    fleet.stalls_s, fleet.sleeps = 0.0, False


def clock(fleet: Fleet) -> Trouble:
    """A wall clock steps."""
    node = fleet.any_node()
    node.skew = fleet.chance.choice((-10800.0, -600.0, 600.0, 10800.0))
    fleet.say(f"{node.name} is off by {node.skew:.0f} s")
    yield
    node.skew = 0.0


def not_ready(fleet: Fleet) -> Trouble:
    name = fleet.chance.choice(fleet.names)
    ready = {"type": "Ready", "status": "False"}
    fleet.server.change("nodes", name, {"status": {"conditions": [ready]}})
    yield
    fleet.server.change("nodes", name, {"status": {"conditions": [{**ready, "status": "True"}]}})


def cordon(fleet: Fleet) -> Trouble:
    name = fleet.chance.choice(fleet.names)
    fleet.server.change("nodes", name, {"spec": {"unschedulable": True}})
    yield
    fleet.server.change("nodes", name, {"spec": {"unschedulable": None}})


def person(fleet: Fleet) -> Trouble:
    """Somebody reboots a node, puts other cards in, or dismisses what stands."""
    node = fleet.any_node()
    match fleet.chance.randrange(3):
        case 0 if node.up:
            node.reboots()
        case 1 if node.up:
            node.another_card()
        case _:
            _dismisses(fleet, node)
    yield
    _note(fleet, node.name, {DISMISS_ANNOTATION: None})


def _dismisses(fleet: Fleet, node: Node) -> None:
    for one in (*fleet.nodes, *fleet.twins):
        one.pardoned = one.now if one.name == node.name else one.pardoned
    text = " ".join(f"xid-{code}@{pci}" for *_, pci, code in node.log[-3:])
    _note(fleet, node.name, {DISMISS_ANNOTATION: text})


def _note(fleet: Fleet, name: str, annotations: dict[str, str | None]) -> None:
    fleet.server.change("nodes", name, {"metadata": {"annotations": annotations}})


def restart(fleet: Fleet) -> Trouble:
    """An agent is away for a while."""
    node = fleet.any_node()
    node.dies()
    yield
    node.rises()


def two_agents(fleet: Fleet) -> Trouble:
    """The old agent has not ended when the new one begins."""
    node = fleet.any_node()
    if node.up and node.alive and not any(one.name == node.name for one in fleet.twins):
        fleet.twins.append(node.twin())
    yield
    fleet.untwin(node.name)


def another_limit(fleet: Fleet) -> Trouble:
    """Another configuration is rolled out, and back again: for a while both are in force."""
    limits: dict[str, Any] = {"max_withdrawn": fleet.chance.choice((1, 2, 3, "20%", "60%"))}
    limits |= {"max_draining": fleet.chance.choice((1, 2)), "per_hour": fleet.chance.choice((0, 8))}
    return _rolled_out(fleet, {"budget": fleet.config.budget.model_copy(update=limits)})


def another_pool(fleet: Fleet) -> Trouble:
    """Another selector is rolled out, and back again: each has permits of its own."""
    return _rolled_out(fleet, {"budget": fleet.config.budget.model_copy(update={"pool_selector": _OTHER_SELECTOR})})


def another_mode(fleet: Fleet) -> Trouble:
    """The same with a milder mode."""
    return _rolled_out(fleet, {"mode": fleet.chance.choice((Mode.OBSERVE, Mode.TAINT))})


def _rolled_out(fleet: Fleet, update: dict[str, Any]) -> Trouble:
    other = fleet.config.model_copy(update=update)
    changed = fleet.chance.sample(fleet.nodes, fleet.chance.randint(1, len(fleet.nodes)))
    for node in changed:
        _configured(node, other)
    yield
    for node in changed:
        _configured(node, fleet.config)


def _configured(node: Node, config: Any) -> None:
    node.config = config
    if node.alive and not node.busy:
        node._begin()


def late_of_the_dead(fleet: Fleet) -> Trouble:
    """What an agent sent may arrive after its end: another life of it doesn't know of that."""
    fleet.outlives, fleet.kills = True, 0.05
    fleet.wire.weather.late = 0.1
    yield
    fleet.outlives, fleet.kills, fleet.wire.weather.late = False, 0.0, 0.0


def overtaken(fleet: Fleet) -> Trouble:
    """A person ends what a write is for while that is on its way."""
    fleet.wire.weather.late = 0.2
    fleet.wire.when_late = lambda node: fleet.later(1.0, partial(_dismisses, fleet, node))
    yield
    fleet.wire.weather.late, fleet.wire.when_late = 0.0, bool
    for name in fleet.names:
        _note(fleet, name, {DISMISS_ANNOTATION: None})


def rewritten_selector(fleet: Fleet) -> Trouble:
    """The pool's selector is written down in another way, agent by agent: there is one set of permits all the same."""
    budget = fleet.config.budget.model_copy(update={"pool_selector": fleet.chance.choice(SELECTORS)})
    fleet.config = fleet.config.model_copy(update={"budget": budget})
    for node in fleet.nodes:
        fleet.later(fleet.chance.uniform(0, 600), partial(_configured, node, fleet.config))
    yield
    for node in fleet.nodes:
        _configured(node, fleet.config)


TROUBLES: dict[str, Callable[[Fleet], Trouble]] = {
    "fault": fault,
    "weather": weather,
    "cut": cut,
    "crashes": crashes,
    "stalls": stalls,
    "sleep": sleep,
    "clock": clock,
    "not-ready": not_ready,
    "cordon": cordon,
    "death": death,
    "remade": remade,
    "kubelet": kubelet,
    "server-clock": server_clock,
    "crash-loop": crash_loop,
    "person": person,
    "opt-out": labelled(MANAGED_LABEL, "false"),
    "driver-upgrade": labelled("nvidia.com/gpu-driver-upgrade-state", "pod-restart-required", "drain-required"),
    "mig": labelled("nvidia.com/mig.config.state", "pending"),
    "remediator": labelled("dgxc.nvidia.com/nvsentinel-state", "draining"),
    "others-taint": others_taint,
    "others-words": others_words,
    "pause": pause,
    "obstacle": obstacle,
    "endless-pods": endless_pods,
    "restart": restart,
    "two-agents": two_agents,
    "another-limit": another_limit,
    "another-mode": another_mode,
    "another-pool": another_pool,
    "lease-deleted": lease_deleted,
    "reinstalled": reinstalled,
    "rewritten-selector": rewritten_selector,
    "late-of-the-dead": late_of_the_dead,
    "overtaken": overtaken,
    "error-label": error_label,
    "unlabelled": unlabelled,
    "stripped": stripped,
    "webhook": webhook,
}


def is_degraded(raw: Any) -> bool:
    return any(one["type"] == DEGRADED and one["status"] == "True" for one in raw["status"]["conditions"])


def helps(fleet: Fleet) -> None:
    """A person does what each wait asks for."""
    server = fleet.server
    for key in server.ends:
        server.ends[key] = fleet.now
    for node in fleet.nodes:
        if any("a person must remove the taint" in why for why in node.waits):
            without(fleet, node)
        if any("a person must" in why or "it withdraws nothing" in why for why in node.waits):
            node.another_card()
            for raw in server.all("pods"):
                labels = raw["metadata"].get("labels") or {}
                if raw["spec"]["nodeName"] == node.name and "work" in labels:
                    server._objects.pop(("pods", raw["metadata"]["namespace"], raw["metadata"]["name"]))
        # An error between the last reading before a reset and the first after it may have come after that: its fault
        # stands until a person sees to it.
        stands = fleet.now > fleet.seconds + 3600 and node.raw and is_degraded(node.raw) and not node.bad
        if node.pending or stands:
            node.reboots()
        node.rises()
