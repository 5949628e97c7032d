"""The settings of the sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from agent.config.limits import Section, form


class NvmlSource(Section):
    enabled: bool = True  # read the GPUs through NVML


class KmsgSource(Section):
    enabled: bool = True  # read the kernel log
    path: Path = Path("/dev/kmsg")  # the kernel log, or a file of its form
    accept_userspace: bool = False
    """Believe records that user space wrote into the kernel log. For drills on a test cluster only:
    with it on, whoever may write to /dev/kmsg can drain the node."""


class PodsSource(Section):
    enabled: bool = True  # ask the kubelet; else every pod that may hold the GPU leaves
    socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """The kubelet's PodResources API: which pod holds which GPU, asked while pods leave a bad one."""
    pods_api: Path | None = None
    """The kubelet's Pods API (/var/lib/kubelet/pods-api/pods-api.sock, from Kubernetes 1.37 on): how those pods are,
    asked beside it while the API server does not answer. It tells whole pods, so it is off unless named."""


_ENGINE = form(r"auto|embedded|/.+|[^/\s]+:[0-9]{1,5}", "name host:port, a socket's path, auto or embedded")


class DcgmSource(Section):
    enabled: bool = True  # DCGM as a second witness, where there is an engine
    address: Annotated[str, *_ENGINE] = "auto"
    """host:port or a unix socket's path. auto: 127.0.0.1:5555 if an engine answers there, else none. embedded: an
    engine of our own, which NVIDIA doesn't support beside another one (that of dcgm-exporter, say)."""
    bindings: Path | None = None  # the folder with pydcgm.py; unset: where NVIDIA's packages of DCGM 4 and 3 put it
    library: Path | None = None  # the folder with libdcgm.so; unset: LD_LIBRARY_PATH, then the system's
    poll_s: Annotated[float, Field(gt=0, le=60)] = 10
    """Between two readings of its fields; the engine reads them as often."""
    health_s: Annotated[float, Field(gt=0, le=600)] = 30
    """Between two health checks: each is over a megabyte, and judges the samples of a minute."""


class TraceSource(Section):
    enabled: bool = False  # the driver's tracepoints as one more witness of Xids; they need release 575 or later
    path: Path = Path("/sys/kernel/tracing")
    """tracefs, in which the agent makes a trace instance of its own; or a FIFO that says the same as its trace_pipe."""


class SimulatedSource(Section):
    scenario: str | None = None
    """A scenario's name or file: simulated GPUs stand in for NVML. Off by default."""
    kernel_log: bool = True
    """Simulate the kernel log too; false: the machine's own is read, for a drill without GPUs."""


class Sources(Section):
    nvml: NvmlSource = NvmlSource()
    kmsg: KmsgSource = KmsgSource()
    dcgm: DcgmSource = DcgmSource()
    trace: TraceSource = TraceSource()
    pods: PodsSource = PodsSource()
    simulated: SimulatedSource = SimulatedSource()
