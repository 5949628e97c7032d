"""From a process to its pod, by cgroup paths as hosts have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.sources.nvml.pod_of_process import pod_of

UID = "1f0e2d3c-4b5a-6978-8695-a4b3c2d1e0f9"
SYSTEMD = UID.replace("-", "_")


@pytest.mark.parametrize(
    ("text", "pod"),
    [
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice/cri-containerd-ab.scope",
            UID,
        ),
        (f"0::/../../kubepods-pod{SYSTEMD}.slice/cri-containerd-ab.scope", UID),
        (f"12:memory:/kubepods/besteffort/pod{UID}/ab\n1:name=systemd:/kubepods/besteffort/pod{UID}/ab", UID),
        ("0::/user.slice/user-1000.slice/session-1.scope", ""),
        (f"0::/pod{UID}0/x", ""),
        ("", ""),
        ("\x00\xff pod", ""),
    ],
)
def test_the_pod_is_in_the_cgroup_path(tmp_path: Path, text: str, pod: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(text, encoding="utf-8")
    assert pod_of(7, tmp_path) == pod


def test_a_process_that_is_gone_has_no_pod(tmp_path: Path) -> None:
    assert pod_of(7, tmp_path) == ""
