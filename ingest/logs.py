"""The log: JSON lines on standard error, or colours on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def make_log(level: str, form: str) -> Any:
    """Return a logger that writes `level` and above; `form` is auto, json or console."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )
