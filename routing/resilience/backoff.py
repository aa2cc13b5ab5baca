"""Exponential back-off with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter")."""

from __future__ import annotations

from collections.abc import Callable


def full_jitter_s(attempt: int, *, base_s: float, cap_s: float, random: Callable[[], float]) -> float:
    """Return how long to wait before try `attempt` + 1, `attempt` counting from 1."""
    assert attempt >= 1
    return random() * min(cap_s, base_s * 2.0 ** min(attempt - 1, 32))
