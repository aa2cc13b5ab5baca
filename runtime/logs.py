"""The log: JSON lines on standard error, or colours on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import Any, BinaryIO, TextIO

import structlog


class _LineWriter:
    """Writes whole lines, so that those of several processes do not mix, and survives a closed pipe.

    The log is not worth a connection: when nobody reads it, lines are dropped, and the metrics remain.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        """Write one line."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(message + "\n")
            self._file.flush()

    debug = info = warning = error = critical = msg


class Lines:
    """Whole lines that come in great number: those of one turn of the event loop are written together.

    A process that is killed loses those of that turn. `add` needs a running loop.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines: list[bytes] = []

    def add(self, line: bytes) -> None:
        """Write a line, soon."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        lines.append(b"")
        with contextlib.suppress(OSError, ValueError):
            self._file.write(b"\n".join(lines))
            self._file.flush()


def is_console(form: str) -> bool:
    """Return whether a log of this `form` is for people."""
    return form == "console" or (form == "auto" and sys.stderr.isatty())


def make_log(level: str, form: str) -> Any:
    """Return a logger that writes `level` and above; `form` is auto, json or console."""
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if is_console(form) else structlog.processors.JSONRenderer()
    )
    return structlog.wrap_logger(
        _LineWriter(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )
