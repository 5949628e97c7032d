"""A scenario: what happens to which simulated GPUs and when, read from YAML and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from agent.model.errors import UsageError
from agent.simulation.gpu import SIGNALS, SimulatedGpu, a100_8_mig, h100_8, h100_16, t4_1, v100_8
from agent.simulation.nvml_answers import SYMBOLS

PROFILES: Mapping[str, Callable[[], list[SimulatedGpu]]] = {
    "h100-8": h100_8,
    "h100-16": h100_16,
    "a100-8-mig": a100_8_mig,
    "v100-8": v100_8,
    "t4-1": t4_1,
}
_REQUEST_KEYS = frozenset(
    {
        "gpu",
        "xid",
        "pid",
        "name",
        "temperature",
        "ecc_uncorrected",
        "lost",
        "recovery_action",
        "set",
        "hang",
        "process",
        "clear",
        "kernel",
    }
)
_ACTIONS = _REQUEST_KEYS - {"gpu", "pid", "name"}
_STEP_KEYS = _REQUEST_KEYS | {"at_s", "say"}
_LONGEST_LINE = 900  # the kernel cuts what user space writes at about 1,000 bytes


@dataclass(frozen=True, slots=True)
class Step:
    at_s: float
    request: Mapping[str, Any]
    say: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens to which GPUs and when; ``expect_*`` is how the story of ``simulate`` should end."""

    profile: str
    duration_s: float | None = None
    steps: tuple[Step, ...] = ()
    expect_faults: tuple[str, ...] = ()
    expect_steps: Mapping[str, int] = field(default_factory=dict)
    expect_status: str = ""


def load_scenario(name: str) -> Scenario:
    """A shipped scenario by name, or a file. UsageError names the field, or the scenarios there are."""
    folder = files("agent.simulation").joinpath("scenarios")
    shipped = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in shipped and not Path(name).is_file():
        raise UsageError(f"scenario: {name!r} is neither a file nor one of {', '.join(shipped)}")
    file = folder.joinpath(f"{name}.yaml") if name in shipped else Path(name)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"scenario {name}: can't be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8, or a date that is none
        raise UsageError(f"scenario {name}: not valid YAML: {str(error).splitlines()[0]}") from error
    return _scenario(name, data)


def _scenario(name: str, data: Any) -> Scenario:
    if not isinstance(data, dict) or data.keys() - {"profile", "duration_s", "steps", "expect"}:
        raise UsageError(f"scenario {name}: use the keys profile, duration_s, steps and expect")
    profile = str(data.get("profile"))
    if profile not in PROFILES:
        raise UsageError(f"scenario {name}: profile: {profile!r} is none of {', '.join(PROFILES)}")
    duration_s, expect = data.get("duration_s"), data.get("expect") or {}
    if duration_s is not None and not _is_number(duration_s):
        raise UsageError(f"scenario {name}: duration_s: {duration_s!r} is not a number from 0 on")
    if not isinstance(expect, dict):
        raise UsageError(f"scenario {name}: expect: use the keys faults, steps and status")
    faults, counts = expect.get("faults") or [], expect.get("steps") or {}
    if not (isinstance(faults, list) and isinstance(counts, dict)):
        raise UsageError(f"scenario {name}: expect: faults must be a list, and steps a mapping to counts")
    listed = data.get("steps") or []
    if not isinstance(listed, list):
        raise UsageError(f"scenario {name}: steps: must be a list, each with at_s")
    steps = []
    for number, step in enumerate(listed):
        where = f"scenario {name}: steps.{number}"
        if not isinstance(step, dict) or step.keys() - _STEP_KEYS:
            raise UsageError(f"{where}: use the keys {', '.join(sorted(_STEP_KEYS))}")
        if not _is_number(step.get("at_s")):
            raise UsageError(f"{where}.at_s: must be seconds from the start")
        request = {key: value for key, value in step.items() if key in _REQUEST_KEYS}
        if error := wrong(request, profile, len(PROFILES[profile]())):
            raise UsageError(f"{where}.{error}")
        steps.append(Step(float(step["at_s"]), request, str(step.get("say", ""))))
    return Scenario(
        profile,
        duration_s,
        tuple(sorted(steps, key=lambda step: step.at_s)),
        tuple(faults),
        counts,
        str(expect.get("status", "")),
    )


def wrong(request: Mapping[str, Any], profile: str, count: int) -> str:
    """What is wrong with a request, in a sentence that names the field; empty if nothing is."""
    if unknown := request.keys() - _REQUEST_KEYS:
        return f"{min(unknown)}: not known; use {', '.join(sorted(_REQUEST_KEYS))}"
    actions = request.keys() & _ACTIONS
    gpu = request.get("gpu")
    if gpu is None and actions not in ({"clear"}, {"kernel"}):
        return "gpu: name the GPU's index"
    if gpu is not None and (type(gpu) is not int or not 0 <= gpu < count):
        return f"gpu: {gpu!r} is not in the profile {profile}, use 0..{count - 1}"
    if not actions:
        return f"gpu: say what happens to it, use {', '.join(sorted(_ACTIONS))}"
    for key in actions & {"lost", "clear"}:
        if request[key] is not True:
            return f"{key}: {request[key]!r} is not true; clear is what ends a fault"
    for key in ("xid", "temperature", "ecc_uncorrected", "recovery_action", "pid", "process"):
        if key in request and not _is_number(request[key]):
            return f"{key}: {request[key]!r} is not a number from 0 on"
    if "hang" in request and request["hang"] not in SYMBOLS:
        return f"hang: {request['hang']!r} is none of the calls about a GPU, such as nvmlDeviceGetEccMode"
    text = request.get("kernel", "")
    if not isinstance(text, str) or len(text) > _LONGEST_LINE:
        return f"kernel: must be a line of at most {_LONGEST_LINE} characters"
    for name, value in numbers(request).items():
        if name not in SIGNALS or type(value) is not int or value < 0:
            return f"set: {name}={value!r} is not a whole number for one of {', '.join(sorted(SIGNALS))}"
    return ""


def numbers(request: Mapping[str, Any]) -> dict[str, Any]:
    asked = request.get("set", {})
    return asked if isinstance(asked, dict) else {"set": asked}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
