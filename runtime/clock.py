"""The clocks of the process; deciders take `now_s` as an argument instead."""

from __future__ import annotations

import time

monotonic_s = time.monotonic
"""Seconds that never go back, the same in every process of the machine."""


def unix_s() -> float:
    """Return Unix time in seconds."""
    return time.time()  # noqa: TID251  # this is the one place


def unix_ms() -> int:
    """Return Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
