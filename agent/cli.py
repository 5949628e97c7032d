"""The command line, a function a command. Exit codes follow sysexits: 64 usage, 78 configuration."""

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
from typing import NoReturn

from agent import __version__, log
from agent.config import Config, ConfigError, load
from agent.world import CredentialsError, Hands, RefusedError, UnreachableError

_USAGE, _CONFIG, _FAILED = 64, 78, 1
_SWITCH_S = 0.0005


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse's own exit code 2 would read as the verdict 'unhealthy'."""
        self.print_usage(sys.stderr)
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(_USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except ConfigError as error:
        return _say(_CONFIG, str(error))
    except CredentialsError as error:
        return _say(_CONFIG, str(error))
    except (ValueError, FileNotFoundError) as error:  # an unknown scenario, a missing file, a bad request
        return _say(_USAGE, str(error))
    except (ConnectionError, RefusedError, UnreachableError) as error:
        return _say(_FAILED, str(error))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gpu-health-agent", description="Keeps broken GPUs away from pods, and says why.")
    parser.add_argument("--version", action="version", version=f"gpu-health-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="watch this node's GPUs and act on its Node object")
    _common(run)
    run.add_argument("--simulate", metavar="SCENARIO", nargs="?", const="idle", help="simulated GPUs instead of NVML")
    run.add_argument("--record", type=Path, metavar="F", help="write down what is seen and decided, for replay")
    run.add_argument("--dry-run", action="store_true", help="look and plan, write nothing at all")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="this node's verdict: exit 0 healthy, 1 degraded, 2 unhealthy, 3 unknown")
    check.add_argument("--config", metavar="F")
    check.add_argument("--json", action="store_true", help="the whole state, as /state has it")
    check.set_defaults(command=_check)

    explain = commands.add_parser("explain", help="each fault: evidence, what would clear it, what happens next")
    explain.add_argument("fault", nargs="?", metavar="FAULT", help="one fault's id (default: all that stand)")
    explain.add_argument("--config", metavar="F")
    explain.add_argument("--node", metavar="N", help="from this Node's annotation, instead of the agent that runs here")
    explain.add_argument("--recording", type=Path, metavar="F", help="as a recording of 'run --record' ends")
    explain.add_argument("--kubeconfig", metavar="F", help="credentials for --node")
    explain.add_argument("--json", action="store_true")
    explain.set_defaults(command=_explain)

    policy = commands.add_parser("policy", help="the rules in force: the defaults with the configuration's overrides")
    policy.add_argument("--config", metavar="F", help="validated without a cluster or a GPU")
    policy.add_argument("--gpu-model", default="", metavar="X", help="NVML's product name, for overrides by model")
    policy.add_argument("--node-label", default=[], action="append", metavar="K=V", help="for overrides by node label")
    form = policy.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true", help="the table of the README")
    policy.set_defaults(command=_policy)

    replay = commands.add_parser("replay", help="what was decided, or would be, from a recording or a kernel log")
    replay.add_argument("file", metavar="FILE", help="a recording, a source's lines or a raw kernel log; - for stdin")
    replay.add_argument("--config", metavar="OTHER", help="another policy than the recording's own")
    replay.add_argument("--profile", default="h100-8", metavar="P", help="the healthy GPUs beside a raw kernel log")
    replay.add_argument("--json", action="store_true", help="one JSON object a line and change, the only form there is")
    replay.set_defaults(command=_replay)

    simulate = commands.add_parser("simulate", help="the main job on simulated GPUs, told live on the terminal")
    simulate.add_argument("scenario", nargs="?", default="demo", help="a scenario's name or file (demo)")
    simulate.add_argument("--json", action="store_true", help="one JSON object a line")
    simulate.add_argument("--kubeconfig", metavar="F", help="a real cluster instead of the embedded one; needs --node")
    simulate.add_argument("--node", metavar="N", help="the Node object that the simulation writes to")
    _directory(simulate)
    simulate.set_defaults(command=_simulate)

    inject = commands.add_parser("inject", help="change a running simulation")
    inject.add_argument("--gpu", type=int, metavar="I", help="the GPU's index (with --clear: default all)")
    what = inject.add_mutually_exclusive_group(required=True)
    what.add_argument("--xid", type=int, metavar="CODE")
    what.add_argument("--temperature", type=float, metavar="C", help="°C")
    what.add_argument("--ecc-uncorrected", type=int, metavar="N", help="new uncorrectable memory errors")
    what.add_argument("--lost", action="store_true", help="the GPU falls off the bus")
    what.add_argument("--recovery-action", type=int, metavar="A", help="NVML field 230: 1 reset, 2 reboot …")
    what.add_argument("--set", metavar="SIGNAL=N", help="another reading, as remapped_rows_pending=1")
    what.add_argument("--hang", metavar="CALL", help="this call about the GPU does not return, as nvmlDeviceGetEccMode")
    what.add_argument("--clear", action="store_true", help="the proved remedy: new counters, and a boot if need be")
    _directory(inject)
    inject.set_defaults(command=_inject)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="the YAML configuration (default: all defaults, mode observe)")
    parser.add_argument("--node", metavar="N", help="the Node object to write to (default: NODE_NAME)")
    parser.add_argument("--kubeconfig", metavar="F", help="credentials (default: the pod's service account)")
    _directory(parser)


def _directory(parser: argparse.ArgumentParser) -> None:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - the folder in it is made private
    default = Path(runtime) / f"gpu-health-agent-{os.getuid()}"
    parser.add_argument("--simulation-dir", type=Path, default=default, metavar="D", help=argparse.SUPPRESS)


def _run(arguments: argparse.Namespace) -> int:
    from agent.acting import Actor
    from agent.daemon import Daemon, serve
    from agent.recording import recorder

    config = configured(arguments.config)
    node = arguments.node or config.node or os.environ.get("NODE_NAME")
    if not node:
        raise ConfigError("node: not named; set it in the file, with --node, or in the environment's NODE_NAME")
    scenario = arguments.simulate or config.sources.simulated.scenario
    directory = None
    if scenario:
        config = simulated(config, scenario)
        directory = private(arguments.simulation_dir)
    log.configure(node)
    actor = Actor(config, partial(hands, arguments.kubeconfig, node, config), arguments.dry_run, log.tell)
    daemon = Daemon(config, node, actor, log.tell, directory)
    if arguments.record:
        daemon.record(recorder(arguments.record, config, node, daemon.sources))
    server = serve(config, daemon)
    log.tell("started", version=__version__, mode=str(config.mode), port=server.port, dry_run=arguments.dry_run)
    # The act thread must not wait Python's default 5 ms for the judge to let go of the interpreter.
    sys.setswitchinterval(_SWITCH_S)
    daemon.run(_stop_on_signals())
    server.shutdown()
    return 0


def simulated(config: Config, scenario: str) -> Config:
    """The configuration with simulated GPUs; an unknown scenario is said before anything starts."""
    from agent.sources.scenario import load_scenario

    load_scenario(scenario)
    section = config.sources.simulated.model_copy(update={"scenario": scenario})
    return config.model_copy(update={"sources": config.sources.model_copy(update={"simulated": section})})


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
    from agent.check import check, in_words

    state = check(configured(arguments.config))
    if arguments.json:
        sys.stdout.write(json.dumps(state, indent=2) + "\n")
    else:
        sys.stdout.write(in_words(state))
    return {"healthy": 0, "degraded": 1, "unhealthy": 2}.get(str(state["status"]), 3)


def _explain(arguments: argparse.Namespace) -> int:
    from agent.explain import in_words, recorded, running, stored

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

    from agent.policy.effective import entries, markdown, table

    labels = dict(label.partition("=")[::2] for label in arguments.node_label)
    listed = list(entries(configured(arguments.config).policy, arguments.gpu_model, labels))
    if arguments.json:
        sys.stdout.write("".join(json.dumps(asdict(entry)) + "\n" for entry in listed))
    else:
        sys.stdout.write(markdown(listed) if arguments.markdown else table(listed))
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from agent.replay import replay
    from agent.sources.scenario import PROFILES

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
    from agent.policy.effective import unknown_rule

    config = load(path)
    if wrong := unknown_rule(config.policy):
        raise ConfigError(f"{path}: {wrong}")
    return config


def _simulate(arguments: argparse.Namespace) -> int:
    from agent.simulate import simulate

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
    from agent.sources.simulated import inject

    fields = ("gpu", "xid", "temperature", "ecc_uncorrected", "lost", "recovery_action", "hang", "clear")
    request = {key: value for key in fields if (value := getattr(arguments, key)) is not None and value is not False}
    if arguments.set:
        name, _, number = arguments.set.partition("=")
        request["set"] = {name: int(number) if number.isdecimal() else number}
    if "gpu" not in request and not arguments.clear:
        raise ValueError("--gpu: name the GPU's index")
    reply = inject(arguments.simulation_dir, request)
    sys.stdout.write(json.dumps(reply) + "\n")
    return 0


def _say(code: int, sentence: str) -> int:
    sys.stderr.write(f"gpu-health-agent: {sentence}\n")
    return code
