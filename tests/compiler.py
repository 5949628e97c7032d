"""The C compiler that makes the tests' stand-ins: the machine's own, else PyPI's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.cache import made_once, pip_install, say

_ZIG = "ziglang==0.13.0"  # clang with headers and a linker, 80 MB
_SAFE = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fno-sanitize=undefined"]


def shared_library(made: Path, *sources: Path, options: Iterable[str] = ()) -> None:
    """Compile to ``made``; CalledProcessError, with the compiler's words on standard error, where that fails."""
    subprocess.run([*_compiler(), *_SAFE, *options, "-o", str(made), *map(str, sources)], check=True)


def _compiler() -> list[str]:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found:
        return [found]
    return [str(made_once(_ZIG.replace("==", "-"), _install) / "ziglang" / "zig"), "cc"]


def _install(folder: Path) -> None:
    say(f"no C compiler on this machine: installing {_ZIG} from PyPI")
    pip_install(folder, _ZIG)
