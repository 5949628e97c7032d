"""``release``: takes everything of ours off one node or all of them."""

from __future__ import annotations

import argparse
import sys

from agent.actions.api import connect
from agent.actions.removal import release
from agent.commands.setup import configured, persons

EXAMPLES = (
    ("gpu-health-agent release --node node-1", "with its agent gone"),
    ("gpu-health-agent release --all --kubeconfig ~/.kube/config", "every node, and the permits"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--node", metavar="N", help="one node, whose agent must be gone or opted out")
    whose.add_argument("--all", action="store_true", help="every node, and the permits")
    parser.add_argument("--config", metavar="F", help="for budget.namespace")
    parser.add_argument("--kubeconfig", metavar="F", help="credentials (default: as kubectl finds them)")


def run(arguments: argparse.Namespace) -> int:
    config = configured(arguments.config)
    for sentence in release(connect(persons(arguments.kubeconfig)), config.budget.namespace, arguments.node):
        sys.stdout.write(sentence + "\n")
    return 0
