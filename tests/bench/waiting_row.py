"""What one pool of ``make bench-fleet`` showed, as the row of a table, and the same said of ten thousand nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.bench.api_cost import OWN_NODE, PAUSE, Cost

FLEET = 10_000
_COLUMNS = (
    "nodes",
    "act loops",
    "requests",
    "kB",
    "beside Node, pause",
    "their kB",
    "CPU ms",
    "watch kB",
    "first 10 s: reads",
    "writes",
    "most withdrawn",
    "free permit taken",
    "10,000 in etcd",
)


@dataclass(frozen=True, slots=True)
class Each:
    """What one agent cost the API server, in a minute or in another stretch of time."""

    requests: float
    size: float  # bytes
    beside: float  # requests beside the own Node and the pause
    beside_size: float
    reads: float
    watched: float  # bytes
    cpu_s: float

    @classmethod
    def of(cls, spent: Cost, idle: Cost, share: float) -> Each:
        """``share``: one agent's, of what was spent; ``idle``: what the server does anyway."""
        beside = {what for what in spent.requests if what not in (OWN_NODE, PAUSE)}
        return cls(
            spent.requests.total() * share,
            spent.size.total() * share,
            sum(spent.requests[what] for what in beside) * share,
            sum(spent.size[what] for what in beside) * share,
            sum(count for what, count in spent.requests.items() if what.startswith(("GET", "LIST"))) * share,
            spent.watched * share,
            (spent.cpu_s - idle.cpu_s * spent.at / idle.at) * share,
        )

    def __str__(self) -> str:
        return (
            f"{self.requests:.2f} requests, {self.size / 1000:.1f} kB, {1000 * self.cpu_s:.1f} ms of API-server CPU; "
            f"beside the own Node and the pause {self.beside:.2f} requests, {self.beside_size / 1000:.1f} kB"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One pool."""

    nodes: int
    loops: int
    first: Each  # in its first ten seconds
    waiting: Each  # in a minute
    most: int  # withdrawn at any instant
    allowed: int
    served_s: float  # until the free permit was taken
    etcd: float  # bytes that ten thousand sick nodes are

    def cells(self) -> tuple[str, ...]:
        each, first = self.waiting, self.first
        return (
            f"{self.nodes:,}",
            str(self.loops),
            f"{each.requests:.2f}",
            f"{each.size / 1000:.1f}",
            f"{each.beside:.2f}",
            f"{each.beside_size / 1000:.1f}",
            f"{1000 * each.cpu_s:.1f}",
            f"{each.watched / 1000:.1f}",
            f"{first.reads:.1f}",
            f"{first.requests - first.reads:.1f}",
            f"{self.most} of {self.allowed}",
            f"{self.served_s:.0f} s",
            f"{self.etcd / 1e6:.0f} MB",
        )

    def of_the_fleet(self) -> str:
        """If ten thousand nodes, of which a tenth is out, cost as much each."""
        each, scale = self.waiting, FLEET * 0.9 / 60
        sent = (each.size + each.watched) * scale / 1e6
        return f"{each.requests * scale:.0f} requests and {sent:.1f} MB a second, {each.cpu_s * scale:.2f} cores"


def tell(rows: Iterable[Row]) -> None:
    """A table of them."""
    rows = [*rows]
    table = [_COLUMNS, tuple("-" for _ in _COLUMNS), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(_COLUMNS))]
    print("\nwhat one agent that waits costs the API server in a minute, and in its first ten seconds:")
    for line in table:
        print(
            "| "
            + " | ".join(
                cell.ljust(width, "-" if cell == "-" else " ") for cell, width in zip(line, widths, strict=True)
            )
            + " |"
        )
    for row in rows:
        print(f"{FLEET:,} nodes, each as in the pool of {row.nodes:,}: {row.of_the_fleet()} of API server", flush=True)
