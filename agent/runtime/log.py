"""Logs: a console for a person on a terminal, JSON lines elsewhere; always on standard error."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import structlog


def configure(node: str | None, level: str = "info", form: str | None = None) -> None:
    """Set structlog up once per process and bind the node's name.

    ``level``: debug, info, warning or error; what is below is not written. ``form``: console or json; None: console on
    a terminal, and json elsewhere.
    """
    console = form == "console" or (form is None and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            lambda _, __, facts: {**({"node": node} if node else {}), **facts},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def tell(event: str, level: str = "info", **facts: object) -> None:
    """One line: a short sentence in lower case, facts as keys. A log that nobody takes keeps nobody from acting."""
    with suppress(OSError):
        getattr(structlog.get_logger(), level)(event, **facts)
