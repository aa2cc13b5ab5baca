"""Rate limits: of each proxy by itself."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from routing.mesh.model.shape import Duration, Shape

PER_MS_MIN: Final = 50
"""Envoy fills a bucket no more often."""
PER_MS_MAX: Final = 86_400_000
Requests = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class LocalRateLimit(Shape, frozen=True, kw_only=True):
    """How many requests are let through in a time, and how many at once (`burst`; as many unless said)."""

    requests: Requests
    per: Duration
    burst: Requests | None = None

    def __post_init__(self) -> None:
        """Refuse times in which no limit makes sense."""
        if not PER_MS_MIN <= self.per.milliseconds <= PER_MS_MAX:
            raise ValueError("per must be 50 ms at least and a day at most")
