"""Logs: a console for a person on a terminal, JSON lines elsewhere; always on standard error."""

from __future__ import annotations

import sys

import structlog


def configure(node: str | None) -> None:
    """Set structlog up once per process and bind the node's name."""
    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            lambda _, __, facts: {**({"node": node} if node else {}), **facts},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def tell(event: str, **facts: object) -> None:
    """One line: a short sentence in lower case, facts as keys."""
    structlog.get_logger().info(event, **facts)
