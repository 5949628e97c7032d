"""The library in C: compiled for a driver's branch, and the file that says what it answers."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_from_bytes

from tests.compiler import shared_library
from tests.nvml.drivers import BRANCHES, FABRIC_V3_SINCE, lacking, without_fields
from tests.watched import Watched

SOURCE = Path(__file__).parent / "standin.c"
CALLS = tuple(re.findall(r"^(?:int |const char \*|\w+\()(nvml\w+)", SOURCE.read_text(), re.MULTILINE))
SYSTEM = tuple(
    call for call in CALLS if re.match(r"nvml(Init|Shutdown|Error|System|EventSet|DeviceGet(Count|Handle))", call)
)
OF_A_GPU = tuple(call for call in CALLS if call not in SYSTEM)
_SWITCH = "00000000:05:00.0"


def built(folder: Path, branch: int = BRANCHES[-1], without: Iterable[str] = ()) -> Path:
    """A libnvidia-ml.so.1 with just the calls of this branch, and not those of ``without``."""
    absent = lacking(branch) | set(without)
    folder.mkdir(parents=True, exist_ok=True)
    exported = folder / "exported"
    exported.write_text(f"{{ global: {' '.join(f'{call};' for call in CALLS if call not in absent)} local: *; }};\n")
    library = folder / "libnvidia-ml.so.1"
    shared_library(library, SOURCE, options=[f"-Wl,--version-script={exported}", "-Wl,-soname,libnvidia-ml.so.1"])
    return library


@dataclass
class Board:
    """A GPU as the script has it."""

    address: str
    name: str = "NVIDIA H100 80GB HBM3"
    lines: list[str] = field(default_factory=list)  # what it answers otherwise than an H100; "{}" is its number


def script(boards: Mapping[int, Board], *more: str, branch: int = BRANCHES[-1]) -> str:
    """These boards by number, with a healthy driver of this branch; ``more`` is said after it, and holds."""
    lines = [text("nvmlSystemGetDriverVersion", "*", f"{branch}.44.01")]
    lines += [text("nvmlSystemGetNVMLVersion", "*", f"13.{branch}.44.01")]
    lines += [f"field {number} * - 2" for number in without_fields(branch)]
    if branch < FABRIC_V3_SINCE:
        lines.append("numbers nvmlDeviceGetGpuFabricInfoV * 3 0 0x1AA 0 0")
    lines.append(text("nvmlDeviceGetNvLinkRemotePciInfo_v2", "*", _SWITCH))
    for number, board in boards.items():
        lines.append(f"gpu {number}")
        lines.append(text("nvmlDeviceGetPciInfo_v3", number, board.address))
        lines.append(text("nvmlDeviceGetUUID", number, f"GPU-c0de0000-0000-4000-8000-{number:012d}"))
        lines.append(text("nvmlDeviceGetName", number, board.name))
        lines.append(text("nvmlDeviceGetSerial", number, f"16512240{number:05d}"))
        lines += [line.format(number) for line in board.lines]
    return "\n".join((*lines, *more)) + "\n"


def text(call: str, gpu: int | str, words: str | bytes) -> str:
    """The line by which a call writes this text."""
    return f"text {call} {gpu} {quote_from_bytes(words if isinstance(words, bytes) else words.encode())}"


class Driver:
    """A library and what it answers; a source's process finds it as it finds NVIDIA's."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library, self.file = library, folder / "nvml"

    def answers(self, words: str) -> None:
        """From now on; swapped whole, for it may be read at any time."""
        new = self.file.with_suffix(".new")
        new.write_text(words)
        new.rename(self.file)

    def here(self) -> ctypes.CDLL:
        """The library in this process."""
        os.environ["NVML_STANDIN"] = str(self.file)
        return ctypes.CDLL(str(self.library))

    @contextmanager
    def source(self, *options: str, poll_s: float = 0.1) -> Iterator[Watched]:
        """The real source's process over this library."""
        found = {"LD_LIBRARY_PATH": str(self.library.parent), "NVML_STANDIN": str(self.file)}
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "agent.sources.nvml", "--poll-s", str(poll_s), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **found},
        ) as process:
            try:
                yield Watched(process)
            finally:
                process.kill()
