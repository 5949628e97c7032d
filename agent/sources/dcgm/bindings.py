"""NVIDIA's Python bindings of DCGM, imported late: they come with DCGM itself, not from a package index."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from agent.model.errors import AgentError
from agent.model.text import printable

# Where NVIDIA's packages put them: DCGM 4 (datacenter-gpu-manager-4-core), then DCGM 3.
FOLDERS = (Path("/usr/share/datacenter-gpu-manager-4/bindings/python3"), Path("/usr/local/dcgm/bindings/python3"))


class NoBindingsError(AgentError):
    """DCGM's bindings are not there, or can't be used."""


@dataclass(frozen=True, slots=True)
class Bindings:
    """The modules that are used. Only numbers are taken from their constants: 4.6 renamed many of them."""

    pydcgm: ModuleType
    agent: ModuleType
    structs: ModuleType
    fields: ModuleType
    errors: ModuleType


def versions(bindings: Bindings, handle: Any) -> Iterator[tuple[str, str]]:
    """The engine's own, and the library's that is loaded here: each may be upgraded without the other."""
    from ctypes import byref  # 1 MB that a node without an engine has no use for

    structs = bindings.structs
    for name, call, *of in (("dcgm_version", "dcgmHostengineVersionInfo", handle), ("dcgm_library", "dcgmVersionInfo")):
        info = structs.c_dcgmVersionInfo_v2()
        info.version = structs.dcgmVersionInfo_version2
        with suppress(structs.DCGMError):  # one that has no word for it
            structs._dcgmCheckReturn(structs._dcgmGetFunctionPointer(call)(*of, byref(info)))
            parts = str(info.rawBuildInfoString).split(";")
            yield name, next((printable(part[8:40]) for part in parts if part.startswith("version:")), "")


def said(error: Exception) -> str:
    """What an exception of the bindings says: the engine's own words, where it has some."""
    return printable(str(getattr(error, "info", None) or error))[:200]


def load(folder: Path | None = None, library: Path | None = None) -> Bindings:
    """The bindings of one folder (unset: NVIDIA's own) with the library of another (unset: where they look for it).

    A library that can't be loaded is the bindings' own error, LIBRARY_NOT_FOUND.
    """
    found = next((one for one in ((folder,) if folder else FOLDERS) if (one / "pydcgm.py").is_file()), None)
    if found is None:
        where = folder or " nor in ".join(str(one) for one in FOLDERS)
        raise NoBindingsError(f"DCGM's Python bindings are not in {where}")
    if str(found) not in sys.path:
        sys.path.append(str(found))  # never first: they bring a package named "common"
    try:
        with redirect_stdout(io.StringIO()):  # some chat while they are imported; that is for our own lines
            import dcgm_agent
            import dcgm_errors
            import dcgm_fields
            import dcgm_structs
            import pydcgm
    except (ImportError, SyntaxError, AttributeError) as error:
        raise NoBindingsError(f"DCGM's Python bindings in {found} can't be used: {error}"[:300]) from error
    dcgm_structs._dcgmInit(str(library) if library else None)
    return Bindings(pydcgm, dcgm_agent, dcgm_structs, dcgm_fields, dcgm_errors)
