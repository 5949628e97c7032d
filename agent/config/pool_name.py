"""A pool is its selector: it names the Leases of the pool's permits, so that nobody renames it beneath its budget."""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import Any

DEFAULT_SELECTOR = "nvidia.com/gpu.present=true"
_WORD = r"[A-Za-z0-9][A-Za-z0-9_./-]*"
_ONE = rf"!?\s*{_WORD}|{_WORD}\s*(==?|!=)\s*({_WORD})?|{_WORD}\s*[<>]\s*[0-9]+|{_WORD}\s+(in|notin)\s*\([^()]*\)"
SELECTOR = rf"\s*|\s*({_ONE})\s*(,\s*({_ONE})\s*)*"  # an empty one selects everything
_DEFAULT_NAME = "gpu"  # as agents of 0.1.0 named every pool: so its permits outlast an upgrade
_NO_EFFECT = (
    "budget.pool: has no effect any more, as agents with the same budget.pool_selector share the permits: remove it"
)


@lru_cache(maxsize=64)
def pool_name(selector: str) -> str:
    """The same for each way to write a selector down: in any order and spacing, by ``==``, by ``in`` of one value."""
    normal = ",".join(sorted({_normal(one) for one in re.findall(r"(?:\([^)]*\)|[^,(])+", selector)} - {""}))
    return _DEFAULT_NAME if normal == DEFAULT_SELECTOR else sha256(normal.encode()).hexdigest()[:8]


def _normal(requirement: str) -> str:
    head, _, values = requirement.partition("(")
    if not values:
        return re.sub(r"\s", "", head).replace("==", "=")
    among = sorted({one.strip() for one in values.strip().removesuffix(")").split(",")})
    normal = f"{' '.join(head.split())} ({','.join(among)})"
    only = re.fullmatch(r"(\S+) (in|notin) \(([^,]*)\)", normal)
    return f"{only[1]}{'=' if only[2] == 'in' else '!='}{only[3]}" if only else normal


# A name of its own, as 0.1.0 had it, is told and otherwise passed over: no line that no longer matters stops an agent.


def old_name(config: Any) -> str:
    """What became of it, if the configuration sets it."""
    budget = config.get("budget") if config else None
    return _NO_EFFECT if isinstance(budget, dict) and "pool" in budget else ""


def without_old_name(budget: Any) -> Any:
    return {key: value for key, value in budget.items() if key != "pool"} if isinstance(budget, dict) else budget


def with_old_name(schema: dict[str, Any]) -> None:
    schema["properties"]["pool"] = {"deprecated": True, "description": _NO_EFFECT}
