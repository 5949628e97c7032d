"""The fixtures of the cluster's tests; a file with a neighbour in the cluster has a control plane of its own."""

from __future__ import annotations

from tests.cluster.conftest import agent, plane, site

__all__ = ["agent", "plane", "site"]
