"""``config``: the settings in force, or the schema of the configuration file."""

from __future__ import annotations

import argparse
import json
import sys

import yaml

from agent.commands.setup import configured
from agent.config.settings import Config

EXAMPLES = (
    ("gpu-health-agent config --config config.yaml", "what is in force, or what is wrong"),
    ("gpu-health-agent config --schema", "for an editor or a pipeline"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="validated without a cluster or a GPU")
    parser.add_argument("--schema", action="store_true", help="the file's JSON schema, for an editor or a pipeline")


def run(arguments: argparse.Namespace) -> int:
    if arguments.schema:
        sys.stdout.write(json.dumps(Config.model_json_schema(), indent=2) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump(configured(arguments.config).model_dump(mode="json"), sort_keys=False))
    return 0
