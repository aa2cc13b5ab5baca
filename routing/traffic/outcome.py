"""What is said while traffic is shifted, and how it ends."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from routing.traffic.counts import Counts
from routing.traffic.judgement import QUANTILE


class Told(enum.Enum):
    """What an event is of."""

    STEP = "step"
    LOOK = "look"
    UNAVAILABLE = "unavailable"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    STOPPED = "stopped"


class Side(msgspec.Struct, frozen=True):
    """What was counted of one side in a step."""

    requests: int
    failures: int
    p99_ms: float | None


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened, with the weights by node; `share` is the canary's part of all."""

    event: Told
    at_s: float
    why: str = ""
    step: int | None = None
    share: float | None = None
    weights: dict[str, int] | None = None
    canary: Side | None = None
    baseline: Side | None = None


Tell = Callable[[Event], None]


def side(counts: Counts) -> Side:
    """Return what is said of counts."""
    quantile = counts.quantile_ms(QUANTILE)
    return Side(counts.requests, counts.failures, None if quantile is None else round(quantile, 3))


class Refused(Exception):
    """It cannot be done as things are; the text says why, and what can."""
