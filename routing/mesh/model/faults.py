"""Faults on purpose: requests that are made to wait, or are answered with an error."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from routing.mesh.model.shape import Duration, Percent, Shape

DELAY_MS_MAX: Final = 3_600_000


class FaultDelay(Shape, frozen=True, kw_only=True):
    """How long requests wait before they go on, and how many of them do."""

    duration: Duration
    percent: Percent

    def __post_init__(self) -> None:
        """Refuse no time, and what nobody waits for."""
        if not 0 < self.duration.milliseconds <= DELAY_MS_MAX:
            raise ValueError("duration must be more than 0 and at most an hour")


class FaultAbort(Shape, frozen=True, kw_only=True):
    """With which status requests are answered in place of who was called, and how many of them are."""

    status: Annotated[int, Meta(ge=400, le=599)]
    percent: Percent


class Faults(Shape, frozen=True, kw_only=True):
    """A delay, an abort, or both, each for its share of requests by chance."""

    at_least_one = ("delay", "abort")

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None
