"""One Config from one YAML file; an error names the field and the fix."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from agent.config.limits import Override
from agent.config.pool_name import old_name
from agent.config.settings import Config
from agent.model.errors import ConfigError

# Where the validator's own words would name a type of this program.
_WANTED = {
    "model_type": "write a mapping of its settings, as {name: value}",
    "dict_type": "write a mapping, as {name: value}",
    "tuple_type": "write a list, as [value]",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
}


class _Loader(yaml.SafeLoader):
    """Reads no file in which a key stands twice: the first would be passed over, a budget's limit maybe."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                why = f"{key.value} stands twice in one mapping, again in line {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, f"{why}: write it once")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: str | os.PathLike[str] | None) -> Config:
    """Read the configuration file; no file is the default configuration. ConfigError."""
    if path is None:
        return Config()
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is safe, as its base
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}): name an existing file with --config") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply: write it as the guide has it") from error
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8, or a date that is none
        raise ConfigError(f"{path}: is not valid YAML: {_where(error)}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping such as 'mode: observe', not a {type(data).__name__}")
    if notice := old_name(data):
        sys.stderr.write(f"gpu-health-agent: {path}: {notice}\n")
    try:
        return Config.model_validate(data or {})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(error)}") from error


def _where(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else str(error).splitlines()[0]


def _sentence(error: ValidationError) -> str:
    """One error only: it is enough to mend, and the next run names the next. A wrong name may be why one is missing."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained-", "function-")))
    if first["type"] == "extra_forbidden":
        return f"{field}: no such setting{_nearest(first['loc'])}"
    if first["type"] == "missing":
        return f"{field}: must be given"
    said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    wanted = _WANTED.get(first["type"], said)
    return f"{field}: {wanted}, not {first['input']!r}"[:300]


def _nearest(loc: tuple[int | str, ...]) -> str:
    from difflib import get_close_matches

    section: type[BaseModel] = Config
    for part in loc[:-1]:
        if isinstance(part, int):  # a list, of which there is one: policy.overrides
            section = Override
            continue
        annotation = section.model_fields[part].annotation
        if annotation == tuple[Override, ...]:
            continue
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    known = list(section.model_fields)
    near = get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
