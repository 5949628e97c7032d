"""``gpu-health-agent drill`` from its arguments to its exit code; whatever happens, it cleans up after itself."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent.actions.api import connect
from agent.actions.credentials import configure
from agent.commands.setup import persons
from agent.drill.cluster import Cluster
from agent.drill.course import EXERCISES
from agent.drill.course import run as play
from agent.drill.kit import Object, Settings, errands, load, objects, ranks
from agent.drill.outcome import Outcome, as_json
from agent.drill.pod_exec import executor
from agent.drill.report import page, text
from agent.drill.scene import Scene
from agent.drill.targets import targets
from agent.model.errors import AgentError, RefusedError, UsageError
from agent.model.names import DRILL_LABEL

_CLEAN_S = 180.0
_REQUEST_S, _MOST_BYTES = 60.0, 1 << 30  # it lists every pod of the cluster, on a person's machine


EXAMPLES = (
    ("gpu-health-agent drill", "what would be done"),
    ("gpu-health-agent drill --yes --html drill.html", "do it, and write a report"),
    ("gpu-health-agent drill --yes --node node-1 --inject", "on a node whose GPUs are simulated"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kubeconfig", metavar="F", help="the cluster (default: as kubectl finds it)")
    parser.add_argument("--yes", action="store_true", help="without it nothing is done but to say what would be")
    parser.add_argument("--namespace", default="gpu-health-drill", metavar="S", help="made for it; a kit there is used")
    parser.add_argument("--node", metavar="N", help="the node to withdraw (default: the one with the training)")
    parser.add_argument("--image", metavar="I", help="Python 3.11 and the kit's requirements.txt")
    parser.add_argument("--ranks-image", metavar="I", help="the same with PyTorch; without it ranks is left out")
    parser.add_argument("--kit", type=Path, metavar="D", help="the folder daemonset/kit (default: of this checkout)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--storage-class", metavar="C", help="for checkpoints, ReadWriteMany (default: the cluster's)")
    where.add_argument("--shared-path", metavar="P", help="a folder that is the same on every node, instead")
    parser.add_argument("--inject", action="store_true", help="the fault by the simulation of the agent's GPUs")
    parser.add_argument("--rate", type=_positive, default=20.0, metavar="R", help="requests a second (20)")
    parser.add_argument("--interval-s", type=_positive, default=20.0, metavar="S", help="between checkpoints (20)")
    parser.add_argument("--step-s", type=_positive, default=0.5, metavar="S", help="of the training (0.5)")
    parser.add_argument("--only", metavar="E,...", help=f"some exercises of {', '.join(EXERCISES)} (default: all)")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=VALUE", help="another than the default")
    parser.add_argument("--agent-namespace", default="gpu-health-agent", metavar="S", help="where the agents run")
    parser.add_argument("--json", type=Path, metavar="F", help="write the report as JSON")
    parser.add_argument("--html", type=Path, metavar="F", help="and as HTML")
    parser.add_argument("--keep", action="store_true", help="leave the kit in its namespace, until the next drill")


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise ValueError(text)
    return number


def run(arguments: argparse.Namespace) -> int:
    """0 if every target was met, 1 if not. UsageError for arguments that can't be."""
    kubeconfig = persons(arguments.kubeconfig)
    server = configure(kubeconfig).host
    if not arguments.yes:
        raise UsageError(_warning(server, arguments))
    wanted, most = _chosen(arguments), targets(arguments.target)
    execute = executor(kubeconfig) if arguments.inject else None
    api = connect(kubeconfig, _REQUEST_S, _MOST_BYTES)
    cluster = Cluster(api, arguments.namespace, arguments.agent_namespace, execute)
    outcome = Outcome(server, str(cluster.get("/version").get("gitVersion", "")), arguments.namespace, time.time())
    settings, kit = _kit(cluster, arguments)
    for path in filter(None, (arguments.json, arguments.html)):
        _try(path)
    _clear_the_way(cluster)
    _on_signals(_interrupt)
    scene = Scene(cluster, settings, outcome, _say, most)
    if settings.own:
        scene.ranks = ranks(arguments.kit, settings)
        scene.errands = errands(arguments.kit, settings, scene.nonce)
    try:
        try:
            play(scene, kit, wanted)
        finally:
            _on_signals(signal.SIG_IGN)  # what follows has an end of its own
    except AgentError as error:
        outcome.trouble = str(error)
    except KeyboardInterrupt:
        outcome.trouble = "it was interrupted"
    finally:
        outcome.cleaning = time.time()
        _clean(cluster, scene.nonce, outcome, arguments.keep)
    outcome.ended = time.time()
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(outcome), indent=1) + "\n", encoding="utf-8")
    if arguments.html:
        arguments.html.write_text(page(outcome), encoding="utf-8")
    sys.stdout.write("\n" + text(outcome))
    return 0 if outcome.passed else 1


def _chosen(arguments: argparse.Namespace) -> tuple[str, ...]:
    only = arguments.only
    names = tuple(EXERCISES) if only is None else tuple(only.split(","))
    if only and "ranks" in names and not arguments.ranks_image:
        raise UsageError("--only ranks: name an image with PyTorch, by --ranks-image")
    if wrong := [name for name in names if name not in EXERCISES]:
        raise UsageError(f"--only: {wrong[0]!r} is none of {', '.join(EXERCISES)}")
    return names


def _clear_the_way(cluster: Cluster) -> None:
    """What a drill left that was killed is removed; one that lives is left alone. UsageError, MissedError."""
    marked = cluster.marked()
    where = ", ".join(path.removeprefix("/api/v1/") for path in marked)
    if marked:
        _say(f"{where}: there a drill's annotation is; looking whether that drill still lives")
        if cluster.alive(marked):
            raise UsageError(f"another drill is under way ({where}): wait until it has ended")
    for sentence in cluster.sweep(None):
        _say(f"left by a drill before: {sentence}")
    cluster.wait(f"namespace {cluster.namespace} is free", cluster.free, _CLEAN_S)


def _kit(cluster: Cluster, arguments: argparse.Namespace) -> tuple[Settings, list[Object]]:
    """The kit to deploy; where the namespace is there already, its kit is used as it is."""
    if cluster.state() == "theirs":
        path = f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs/training"
        try:
            (container,) = cluster.get(path)["spec"]["template"]["spec"]["containers"]
            words = dict(word.split("=", 1) for word in container["command"] if word.startswith("--") and "=" in word)
            image, interval_s = container["image"], float(words.get("--interval-s", 300))
        except (RefusedError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"--namespace: {cluster.namespace} is there and holds no kit ({error}): name another"
            ) from error
        settings = Settings(
            cluster.namespace,
            image,
            interval_s,
            rate=arguments.rate,
            node=arguments.node,
            inject=arguments.inject,
            own=False,
        )
        return settings, load(settings)
    if not arguments.image:
        raise UsageError("--image: name an image with Python 3.11 and the kit's requirements.txt installed")
    settings = Settings(
        cluster.namespace,
        arguments.image,
        arguments.interval_s,
        arguments.step_s,
        arguments.rate,
        arguments.storage_class,
        arguments.shared_path,
        arguments.node,
        arguments.inject,
        ranks_image=arguments.ranks_image or "",
    )
    return settings, objects(arguments.kit, settings)


def _clean(cluster: Cluster, nonce: str, outcome: Outcome, keep: bool) -> None:
    """Bounded tries; what then is left is said, and swept by the next drill or over by itself."""
    end = time.monotonic() + _CLEAN_S
    while True:
        try:
            outcome.cleaned += cluster.release(nonce)
            if not keep:
                cluster.stop()
                cluster.wait(
                    "the kit's pods have ended",
                    lambda: cluster.state() != "ours" or not cluster.pods(),
                    max(0.0, end - time.monotonic()),
                )
            outcome.cleaned += cluster.sweep(nonce, keep)
            if outcome.drilled:
                cluster.wait(
                    f"{' and '.join(outcome.drilled)} are back in service",
                    lambda: not any(cluster.tainted(node) for node in outcome.drilled),
                    max(0.0, end - time.monotonic()),
                )
            if keep:
                outcome.cleaned.append(f"namespace {cluster.namespace} is kept, as --keep asks")
                return
            cluster.wait(
                "the namespace is gone",
                lambda: cluster.state() in ("absent", "theirs"),
                max(0.0, end - time.monotonic()),
            )
            return
        except AgentError as error:
            if time.monotonic() > end:
                outcome.cleaned.append(f"NOT cleaned up: {error}; run the drill again, it begins with that")
                return
            time.sleep(1)


def _warning(server: str, arguments: argparse.Namespace) -> str:
    node = arguments.node or "the one with its training" + (", then that of a rank" if arguments.ranks_image else "")
    by = "in the simulation of its agent" if arguments.inject else "from a privileged pod"
    return (
        f"--yes: say it to drill the cluster at {server}. It would deploy the kit in namespace {arguments.namespace} "
        "with a load on it, delete one of its pods, kill or stop replicas, a gateway and the training from "
        f"privileged pods, withdraw one node at a time on which no GPU pods of others run ({node}) by a marked kernel "
        f"record {by} in namespace {arguments.agent_namespace}, move its own checkpoint folder away, and remove all of "
        f"that again (label and annotation {DRILL_LABEL})"
    )


def _try(path: Path) -> None:
    """A report that can't be written is said before the drill, not after it."""
    try:
        path.touch()
    except OSError as error:
        raise UsageError(f"{path} can't be written ({error.strerror}): name another file") from error


def _interrupt(*_: object) -> None:
    """Once: who presses Ctrl-C again does not keep it from cleaning up."""
    _on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def _on_signals(handler: Callable[..., object] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _say(sentence: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {sentence}\n")
    sys.stdout.flush()
