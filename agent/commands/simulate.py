"""``simulate``: the main job told live on the terminal, on simulated GPUs and an embedded or real cluster."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agent.actions.api import connect as reach
from agent.actions.kube import KubeClient
from agent.commands.setup import add_directory, private, stop_on_signals
from agent.config.limits import Limits
from agent.config.settings import Config, Drain, Http, Mode, Recurrence
from agent.config.source_settings import PodsSource, SimulatedSource, Sources
from agent.model.cluster_client import ClusterClient
from agent.model.errors import ConfigError, UsageError
from agent.model.fault import Verdict
from agent.model.names import HARD_TAINT
from agent.model.observation import Observation, Signal
from agent.model.steps import Evict, Retaint, Step
from agent.model.text import printable
from agent.model.world import Taint
from agent.runtime import absent_values
from agent.runtime.actor import Actor
from agent.runtime.daemon import Daemon, serve
from agent.simulation.in_memory_cluster import InMemoryCluster
from agent.simulation.scenario import Scenario, load_scenario
from agent.sources.process.command_lines import supervisor
from agent.status.server import Server

# A minute's story needs shorter limits than a node in service; they are said at the start.
_LIMITS = {"temperature_confirm_s": 3, "temperature_clear_s": 5, "flag_confirm_s": 1, "soak_s": 5, "notice_clear_s": 15}
_GATHER_S, _POLL_S = 2, 1
_NODE = "node-1"


EXAMPLES = (
    ("gpu-health-agent simulate", "the main job, in a minute"),
    ("gpu-health-agent simulate demo --json", "the same for a program"),
    ("gpu-health-agent simulate idle", "healthy GPUs, to break by 'inject'"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", nargs="?", default="demo", help="a scenario's name or file (demo)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--kubeconfig", metavar="F", help="a real cluster instead of the embedded one; needs --node")
    parser.add_argument("--node", metavar="N", help="the Node object that the simulation writes to")
    add_directory(parser)


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.kubeconfig) != bool(arguments.node):
        raise UsageError("--kubeconfig and --node go together: name both, or neither for the embedded cluster")
    connect = partial(_stage, arguments.kubeconfig, arguments.node) if arguments.kubeconfig else None
    private(arguments.simulation_dir)
    return simulate(
        arguments.scenario, arguments.simulation_dir, stop_on_signals(), arguments.json, connect, arguments.node
    )


def _stage(kubeconfig: str, node: str, config: Config) -> ClusterClient:
    """The client of a real cluster, which may lack the namespace that keeps the permits."""
    api = reach(kubeconfig)
    api("POST", "/api/v1/namespaces", {"metadata": {"name": config.budget.namespace}})
    return KubeClient(api, node, config)


def simulate(
    name: str,
    directory: Path,
    stop: threading.Event,
    as_json: bool,
    connect: Callable[[Config], ClusterClient] | None,
    node: str | None,
) -> int:
    """Play a scenario; 0 if the story went as the scenario expects, else 1."""
    scenario = load_scenario(name)
    config = _config(name)
    if connect is None:
        cluster = _embedded()
        client: Callable[[], ClusterClient] = lambda: KubeClient(cluster, _NODE, config)  # noqa: E731
    else:
        real = connect(config)  # a story that can't reach its cluster is not begun
        client = lambda: real  # noqa: E731
    node = node or _NODE
    story = Story(as_json)
    actor = Actor(config, client, False, story.tell)
    _clean(directory)
    daemon = Daemon(config, node, actor, story.tell, supervisor(config, directory))
    timers = [threading.Timer(step.at_s, story.say, (step.say,)) for step in scenario.steps if step.say]
    if scenario.duration_s:
        timers.append(threading.Timer(scenario.duration_s, stop.set))
    waiting = list(timers)

    def see(observation: Observation) -> None:
        """The steps are played from NVML's start on, which takes its time on a busy machine."""
        while observation.source == "nvml" and waiting:
            waiting.pop().start()
        story.see(observation)

    daemon.listener, daemon.judged, actor.did = see, story.judged, story.did
    server = _serve(config, daemon)
    story.open(scenario, config, node, server.port, connect is None)
    for timer in timers:
        timer.daemon = True
    daemon.run(stop)
    for timer in timers:
        timer.cancel()
    server.shutdown()
    _clean(directory)
    shot = daemon.snapshot
    # Which pods a real node has is not the story's to say.
    ignored = () if connect is None else ("evict",)
    return story.close(scenario, str(shot.verdict.status) if shot else "unknown", ignored)


def _clean(directory: Path) -> None:
    """Each story is told on a machine of its own, and an agent that is started afterwards finds no fault of it."""
    for left in ("kmsg", "boot_id", "gpus"):
        (directory / left).unlink(missing_ok=True)


def _config(scenario: str) -> Config:
    return Config(
        mode=Mode.EVICT,
        poll_s=_POLL_S,
        sources=Sources(simulated=SimulatedSource(scenario=scenario), pods=PodsSource(enabled=False)),
        policy=Limits.model_validate(_LIMITS),
        drain=Drain(gather_s=_GATHER_S),
        recurrence=Recurrence(enabled=False),  # it is told again and again, on large clusters too, and in a minute
        http=Http(address="127.0.0.1"),
    )


def _embedded() -> InMemoryCluster:
    cluster = InMemoryCluster()
    for node in (_NODE, "node-2"):
        cluster.add_node(node)
    cluster.add_pod("research", "train-0", _NODE, gpus=4, owner="Job")
    cluster.add_pod("serving", "inference-a", _NODE, gpus=1)
    cluster.add_pod("serving", "web", _NODE, gpus=0)
    cluster.add_pod("monitoring", "exporter-x", _NODE, gpus=0, owner="DaemonSet")
    return cluster


def _serve(config: Config, daemon: Daemon) -> Server:
    try:
        return serve(config, daemon)
    except ConfigError:  # the default port is taken: a story needs none in particular
        return serve(config.model_copy(update={"http": Http(address="127.0.0.1", port=0)}), daemon)


class Story:
    """Tells what was seen, concluded and done, and remembers it for the ending."""

    def __init__(self, as_json: bool) -> None:
        self._json, self._began = as_json, time.monotonic()
        self._lock = threading.Lock()
        self._events: Counter[str] = Counter()
        self._faults: set[str] = set()

    def open(self, scenario: Scenario, config: Config, node: str, port: int, embedded: bool) -> None:
        where = "an embedded in-memory cluster" if embedded else "a real cluster"
        self._line("story", f"{scenario.profile}, simulated, on node {node} of {where}, mode {config.mode}")
        limits = ", ".join(f"{key} {value:g}" for key, value in _LIMITS.items())
        self._line("story", f"shorter limits than in service: {limits}, gather_s {_GATHER_S}; a cured node is not held")
        self._line("story", f"http://127.0.0.1:{port}/metrics and /state are being served meanwhile")

    def say(self, text: str) -> None:
        self._line("story", text)

    def see(self, observation: Observation) -> None:
        if observation.signal in (Signal.XID, Signal.LOST, Signal.RESET_REQUIRED):
            key = f"{observation.source} {observation.signal} {observation.pci}"
            if observation.signal is Signal.XID or not self._events[key]:  # a lost GPU is lost at every poll
                self._line("seen", f"{observation.source}: {observation.raw}")
            self._events[key] += 1

    def did(self, step: Step) -> None:
        match step:
            case Retaint(taints=()):
                self._events["untaint"] += 1
            case Retaint(taints=(Taint(key=key), *_)) if key == HARD_TAINT:
                self._events["taint"] += 1
            case Evict():
                self._events["evict"] += 1
            case _:
                self._events["other"] += 1

    def judged(self, verdict: Verdict) -> None:
        self._faults.update(fault.finding.rule for fault in verdict.faults)

    def tell(self, event: str, level: str = "info", **facts: object) -> None:
        """The daemon's and the act loop's words."""
        if level == "debug":
            return
        match event:
            case absent_values.NOT_SUPPORTED:
                pass  # which a simulation chose
            case "done":
                self._line("done", str(facts["step"]))
            case "waiting":
                self._line("waits", str(facts["why"]))
            case "fault confirmed" | "fault cleared":
                said = f"{event}: {facts['fault']}, {facts['severity']}, remedy {facts['remedy']}: {facts['message']}"
                self._line("concluded", said)
            case _:
                self._line("concluded", f"{event}: " + ", ".join(f"{k} {v}" for k, v in facts.items() if v))

    def close(self, scenario: Scenario, status: str, ignored: tuple[str, ...]) -> int:
        """Compare with what the scenario expects."""
        wrong = [f"fault {rule} was not found" for rule in scenario.expect_faults if rule not in self._faults]
        for event, wanted in scenario.expect_steps.items():
            if event not in ignored and self._events[event] != wanted:
                wrong.append(f"{event}: {self._events[event]} times, not {wanted}")
        if scenario.expect_status and status != scenario.expect_status:
            wrong.append(f"the node ended {status}, not {scenario.expect_status}")
        for sentence in wrong:
            self._line("story", f"WRONG: {sentence}")
        if not wrong:
            self._line("story", f"as it should be: the node ended {status}")
        return 1 if wrong else 0

    def _line(self, kind: str, text: str) -> None:
        at = time.monotonic() - self._began
        text = printable(text)
        line = (
            json.dumps({"t_s": round(at, 3), "kind": kind, "text": text})
            if self._json
            else (f"{at:6.1f} s  {kind:<9}  {text}")
        )
        with self._lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
