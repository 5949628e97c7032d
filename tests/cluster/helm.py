"""Builds helm once, from its Go module."""

from __future__ import annotations

from pathlib import Path

from tests.cache import go_program


def helm() -> Path:
    """The program, built if need be, in about 3 minutes on two cores."""
    return go_program("helm.sh/helm/v3/cmd/helm@v3.22.0", "helm")


if __name__ == "__main__":
    print(helm())
