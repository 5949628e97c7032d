"""The command line, a function a command. Exit codes follow sysexits: 64 usage, 75 not now, 78 configuration."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from agent import __version__
from agent.arguments import USAGE, parser
from agent.config.settings import Config, ConfigError, load
from agent.model.world import CredentialsError, Hands, RefusedError, UnreachableError
from agent.runtime import log

_CONFIG, _NOT_NOW, _FAILED = 78, 75, 1
_SWITCH_S = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except ConfigError as error:
        return _say(_CONFIG, str(error))
    except CredentialsError as error:
        return _say(_CONFIG, str(error))
    except (ValueError, FileNotFoundError) as error:  # an unknown scenario, a missing file, a bad request
        return _say(USAGE, str(error))
    except (ConnectionError, RefusedError, UnreachableError) as error:
        return _say(_FAILED, str(error))


def _run(arguments: argparse.Namespace) -> int:
    from agent.recording.recording import recorder
    from agent.runtime.actor import Actor
    from agent.runtime.daemon import Daemon, serve
    from agent.runtime.diag_runner import Checkup
    from agent.sources.process.command_lines import names, supervisor
    from agent.sources.process.remote import Remote
    from agent.sources.process.supervisor import Sources

    config = configured(arguments.config)
    node = arguments.node or config.node or os.environ.get("NODE_NAME")
    if not node:
        raise ConfigError("node: not named; set it in the file, with --node, or in the environment's NODE_NAME")
    directory = None
    if not arguments.sources:
        config, directory = _simulation(arguments, config)
    log.configure(node)
    there = arguments.sources
    sources: Sources = Remote(there, names(config)) if there else supervisor(config, directory)
    connect = partial(hands, arguments.kubeconfig, node, config)
    able = (lambda: Checkup(connect(), sources.diagnose)) if config.repair.diagnose else connect
    actor = Actor(config, able, arguments.dry_run, log.tell)
    daemon = Daemon(config, node, actor, log.tell, sources)
    if arguments.record:
        daemon.record(recorder(arguments.record, config, node, sources.names))
    server = serve(config, daemon)
    log.tell("started", version=__version__, mode=str(config.mode), port=server.port, dry_run=arguments.dry_run)
    # The act thread must not wait Python's default 5 ms for the judge to let go of the interpreter.
    sys.setswitchinterval(_SWITCH_S)
    daemon.run(_stop_on_signals())
    server.shutdown()
    return 0


def _sources(arguments: argparse.Namespace) -> int:
    """Becomes a process without this one's libraries: it runs on each node for the sake of nothing but the sources."""
    from agent.sources.process.command_lines import commands, diagnosis, hung_s

    config, directory = _simulation(arguments, configured(arguments.config))
    if directory:
        (directory / "kmsg").touch()
    facts = {"socket": arguments.socket, "kubelet": config.sources.pods.socket, "hung-s": hung_s(config),
             "commands": json.dumps(commands(config, directory)),
             "diagnosis": json.dumps(diagnosis(config))}  # fmt: skip
    options = [text for name, fact in facts.items() for text in (f"--{name}", str(fact))]
    os.execv(sys.executable, [sys.executable, "-m", "agent.sources.process.serving", *options])  # noqa: S606 - this very Python


def _simulation(arguments: argparse.Namespace, config: Config) -> tuple[Config, Path | None]:
    """The configuration with simulated GPUs, if any; an unknown scenario is said before anything starts."""
    from agent.simulation.scenario import load_scenario

    scenario = arguments.simulate or config.sources.simulated.scenario
    if not scenario:
        return config, None
    load_scenario(scenario)
    held = config.sources.pods.socket.is_socket()  # by nobody, unless a kubelet is there to be asked
    update = {
        "simulated": config.sources.simulated.model_copy(update={"scenario": scenario}),
        "pods": config.sources.pods.model_copy(update={"enabled": config.sources.pods.enabled and held}),
    }
    sources = config.sources.model_copy(update=update)
    return config.model_copy(update={"sources": sources}), private(arguments.simulation_dir)


def private(directory: Path) -> Path:
    """A folder that nobody else may write to: whoever can, can inject faults."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid() or directory.is_symlink():
        raise ConfigError(f"--simulation-dir: {directory} belongs to somebody else; name another folder")
    return directory


def hands(kubeconfig: str | None, node: str, config: Config) -> Hands:
    from agent.actions.api import connect
    from agent.actions.kube import KubeHands

    return KubeHands(connect(kubeconfig), node, config)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _check(arguments: argparse.Namespace) -> int:
    from agent.commands.check import check, in_words

    state = check(configured(arguments.config))
    if arguments.json:
        sys.stdout.write(json.dumps(state, indent=2) + "\n")
    else:
        sys.stdout.write(in_words(state))
    return {"healthy": 0, "degraded": 1, "unhealthy": 2}.get(str(state["status"]), 3)


def _explain(arguments: argparse.Namespace) -> int:
    from agent.commands.explain import in_words, recorded, running, stored

    config = configured(arguments.config)
    if arguments.node:
        world = hands(arguments.kubeconfig, arguments.node, config).look(closely=False)
        state = stored(world, config)
    elif arguments.recording:
        state = recorded(arguments.recording, config if arguments.config else None)
    elif (answer := running(config)) is not None:
        state = answer
    else:
        raise ConnectionError(f"no agent answers on port {config.http.port}: name a node with --node")
    text = in_words(state, arguments.fault)
    faults = [fault for fault in state["faults"] if arguments.fault in (None, fault["id"])]
    sys.stdout.write(json.dumps(faults, indent=2) + "\n" if arguments.json else text)
    return 0


def _policy(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from agent.diagnosis.effective import entries, markdown, table

    labels = dict(label.partition("=")[::2] for label in arguments.node_label)
    listed = list(entries(configured(arguments.config).policy, arguments.gpu_model, labels))
    if arguments.json:
        sys.stdout.write("".join(json.dumps(asdict(entry)) + "\n" for entry in listed))
    else:
        sys.stdout.write(markdown(listed) if arguments.markdown else table(listed))
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from agent.commands.replay import replay
    from agent.simulation.scenario import PROFILES

    if arguments.profile not in PROFILES:
        raise ValueError(f"--profile: {arguments.profile!r} is none of {', '.join(PROFILES)}")
    config = configured(arguments.config) if arguments.config else None
    with contextlib.ExitStack() as stack:
        if arguments.file == "-":
            lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace")
        else:
            if not Path(arguments.file).is_file():
                raise FileNotFoundError(f"{arguments.file}: no such file")
            lines = stack.enter_context(open(arguments.file, encoding="utf-8", errors="replace"))
        for decision in replay(lines, config, arguments.profile):
            sys.stdout.write(decision + "\n")
    return 0


def configured(path: str | None) -> Config:
    """The configuration file, its overrides checked against the rules that there are."""
    from agent.diagnosis.effective import wrong_override

    config = load(path)
    if wrong := wrong_override(config.policy):
        raise ConfigError(f"{path}: {wrong}")
    return config


def _simulate(arguments: argparse.Namespace) -> int:
    from agent.commands.simulate import simulate

    if bool(arguments.kubeconfig) != bool(arguments.node):
        raise ValueError("--kubeconfig and --node go together: name both, or neither for the embedded cluster")
    connect = partial(_stage, arguments.kubeconfig, arguments.node) if arguments.kubeconfig else None
    private(arguments.simulation_dir)
    return simulate(
        arguments.scenario, arguments.simulation_dir, _stop_on_signals(), arguments.json, connect, arguments.node
    )


def _stage(kubeconfig: str, node: str, config: Config) -> Hands:
    """The hands on a real cluster, which may lack the namespace that keeps the permits."""
    from agent.actions.api import connect
    from agent.actions.kube import KubeHands

    api = connect(kubeconfig)
    api("POST", "/api/v1/namespaces", {"metadata": {"name": config.budget.namespace}})
    return KubeHands(api, node, config)


def _inject(arguments: argparse.Namespace) -> int:
    from agent.simulation.simulated import inject

    fields = ("gpu", "xid", "pid", "temperature", "ecc_uncorrected", "lost", "recovery_action", "hang", "process",
              "kernel", "clear")  # fmt: skip
    request = {key: value for key in fields if (value := getattr(arguments, key)) is not None and value is not False}
    if arguments.set:
        name, _, number = arguments.set.partition("=")
        request["set"] = {name: int(number) if number.isdecimal() else number}
    if "gpu" not in request and not (arguments.clear or arguments.kernel):
        raise ValueError("--gpu: name the GPU's index")
    reply = inject(arguments.simulation_dir, request)
    sys.stdout.write(json.dumps(reply) + "\n")
    return 0


def _diagnose(arguments: argparse.Namespace) -> int:
    from agent.commands.check import check
    from agent.commands.diagnose import RefusedDiagnosisError, chosen, diagnose, on_terminal, refusal, uuids, withdrawn
    from agent.sources.dcgm.diag_process import UndiagnosedError

    config = configured(arguments.config)
    state = check(config)
    try:
        gpus = chosen(state, arguments.gpu)
        out = bool(state.get("withdrawn"))
        if arguments.node and arguments.level > 1:
            out = withdrawn(hands(arguments.kubeconfig, arguments.node, config).look(closely=False))
        if (why := refusal(state, out, arguments.level, gpus)) and not arguments.force:
            raise RefusedDiagnosisError(why)
        cards, tell = uuids(state, gpus), on_terminal(arguments.level, gpus)
        told = diagnose(config, arguments.sources, arguments.level, cards, tell)
    except (RefusedDiagnosisError, UndiagnosedError) as error:
        return _say(_NOT_NOW, str(error))
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
    return 0 if told["passed"] else _FAILED


def _release(arguments: argparse.Namespace) -> int:
    from agent.actions.api import connect
    from agent.actions.removal import release

    config = configured(arguments.config)
    for sentence in release(connect(arguments.kubeconfig), config.budget.namespace, arguments.node):
        sys.stdout.write(sentence + "\n")
    return 0


def _drill(arguments: argparse.Namespace) -> int:
    from agent.commands.drill import drill

    return drill(arguments)


def _say(code: int, sentence: str) -> int:
    sys.stderr.write(f"gpu-health-agent: {sentence}\n")
    return code


_COMMANDS = {
    "run": _run,
    "sources": _sources,
    "check": _check,
    "explain": _explain,
    "policy": _policy,
    "replay": _replay,
    "simulate": _simulate,
    "inject": _inject,
    "release": _release,
    "drill": _drill,
    "diagnose": _diagnose,
}
