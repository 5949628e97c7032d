"""``make package``: the wheel and the chart, made as for a release."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

import yaml

from agent import __version__
from tests import artifacts


def test_the_wheel_and_the_chart_are_of_one_version_and_hold_what_they_should(tmp_path: Path) -> None:
    wheel, chart = artifacts.wheel(tmp_path), artifacts.chart(tmp_path)
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        about = f"gpu_health_agent-{__version__}.dist-info"
        metadata, programs = (packed.read(f"{about}/{name}").decode() for name in ("METADATA", "entry_points.txt"))
    assert f"\nVersion: {__version__}\n" in metadata
    assert {"agent/diagnosis/rows.csv", "agent/status/page.css", "agent/simulation/scenarios/demo.yaml"} <= {*names}
    assert not [name for name in names if not name.startswith(("agent/", "daemonset/kit/", about))]
    modules = re.findall(r"= ([\w.]+):", programs)
    assert {f"{one.replace('.', '/')}.py" for one in modules} <= {*names}, "a program without its code"
    with tarfile.open(chart) as packed_chart:
        described = packed_chart.extractfile("gpu-health-agent/Chart.yaml")
        assert described
        made = yaml.safe_load(described.read())
        held = {*packed_chart.getnames()}
    assert made["version"] == made["appVersion"] == __version__
    assert {"gpu-health-agent/values.schema.json", "gpu-health-agent/base/daemonset.yaml"} <= held
