"""The command line: which command is asked for, and the exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from agent import __version__
from agent.model.errors import AgentError, UsageError
from agent.model.text import printable

# Each is the file agent/commands/NAME.py, which is imported only when it is asked for.
COMMANDS = {
    "run": "watch this node's GPUs and act on its Node object",
    "sources": "only the sources, for an agent without the host's privileges",
    "check": "this node's verdict: exit 0 healthy, 1 degraded, 2 unhealthy, 3 unknown",
    "door": "whether a job may join on this node, told over a unix socket to whoever asks",
    "nodes": "the fleet in one table: which nodes are sick, why, and what is waited for",
    "explain": "each fault: evidence, what would clear it, what happens next",
    "evidence": "what was seen around the last fatal faults, as one archive",
    "config": "the settings in force, or the schema of the configuration file",
    "policy": "the rules in force: the defaults with the configuration's overrides",
    "replay": "what was decided, or would be, from a recording or a kernel log",
    "simulate": "the main job on simulated GPUs, told live on the terminal",
    "inject": "change a running simulation",
    "diagnose": "DCGM's active diagnosis: exit 0 passed, 1 failed, 75 not run",
    "release": "take everything of ours off one node or all of them",
    "drill": "run a drill on a cluster: a deleted pod, a withdrawn node, a crash",
}


# In --help, beside those of each command's file.
EXAMPLES = (
    ("gpu-health-agent simulate", "the main job in a minute, without GPU or cluster"),
    ("gpu-health-agent nodes", "what is wrong on a cluster, and what is waited for"),
    ("gpu-health-agent COMMAND --help", "its arguments, with examples"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; the exit code. A bug's error is no sentence for a person: it ends with its traceback."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could stand there
        import argcomplete

        argcomplete.autocomplete(parser(os.environ["COMP_LINE"].split()))
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parser(given).parse_args(given)
    try:
        code: int = arguments.run(arguments)
        return code
    except AgentError as error:
        return _say(error.exit_code, str(error))
    except BrokenPipeError as error:  # whoever read our output is gone
        return _say(AgentError.exit_code, str(error))


def plugin() -> int:
    """``kubectl gpu-health``, for kubectl runs whatever is called ``kubectl-gpu_health``."""
    return main(["nodes", *sys.argv[1:]])


def plugin_completion() -> int:
    """What could stand next: kubectl runs ``kubectl_complete-gpu_health`` with the words behind ``kubectl gpu-health``.

    It reads one candidate a line, and at last what the shell is to add: 4, nothing.
    """
    import argcomplete

    *before, typed = ["gpu-health-agent", "nodes", *sys.argv[1:]]
    line = f"{shlex.join(before)} {typed}"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "COMP_LINE": line}
    os.environ.update(asked, COMP_POINT=str(len(line)))
    argcomplete.autocomplete(parser(before), exit_method=lambda _: None, output_stream=sys.stdout)
    sys.stdout.write("\n:4\n")
    return 0


def _say(code: int, sentence: str) -> int:
    sys.stderr.write(f"gpu-health-agent: {printable(sentence)}\n")
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse's own exit code 2 would read as the verdict 'unhealthy'."""
        self.print_usage(sys.stderr)
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(UsageError.exit_code)


def _show(command: argparse.ArgumentParser, examples: Sequence[tuple[str, str]]) -> None:
    """In its --help: a command line, and what it is for."""
    width = max(len(line) for line, _ in examples)
    lines = (f"  {line:<{width}}  {why}" for line, why in examples)
    command.epilog = "\n".join(("examples:", *lines))
    command.formatter_class = argparse.RawDescriptionHelpFormatter


def parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """Every command, and the arguments of each that is among the words given; ``command`` is its name."""
    whole = _Parser(prog="gpu-health-agent", description="Keeps broken GPUs away from pods, and says why.")
    _show(whole, EXAMPLES)
    whole.add_argument("--version", action="version", version=f"gpu-health-agent {__version__}")
    commands = whole.add_subparsers(required=True, dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what)
        if name in given:
            module = import_module(f"agent.commands.{name}")
            module.add_arguments(command)
            _show(command, module.EXAMPLES)
            command.set_defaults(run=module.run)
    return whole
