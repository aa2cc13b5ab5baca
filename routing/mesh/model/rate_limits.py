"""Rate limits: of each proxy by itself, and those that all proxies of a mesh share."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from routing.mesh.model.shape import Duration, FieldName, HostName, OneOf, PortNumber, Shape
from routing.mesh.model.tls import ClientPolicy

PER_MS_MIN: Final = 50
"""Envoy fills a bucket no more often."""
PER_MS_MAX: Final = 86_400_000
REQUESTS_MAX: Final = 1_000_000_000
ANSWER_MS_MAX: Final = 10_000
Requests = Annotated[int, Meta(ge=1, le=REQUESTS_MAX)]


class LocalRateLimit(Shape, frozen=True, kw_only=True):
    """How many requests are let through in a time, and how many at once (`burst`; as many unless said)."""

    requests: Requests
    per: Duration
    burst: Requests | None = None

    def __post_init__(self) -> None:
        """Refuse times in which no limit makes sense."""
        if not PER_MS_MIN <= self.per.milliseconds <= PER_MS_MAX:
            raise ValueError("per must be 50 ms at least and a day at most")


class RemoteAddress(Shape, frozen=True, kw_only=True):
    """Who has sent a request: the last address of X-Forwarded-For, or else of the connection."""


class RateLimitKey(OneOf, frozen=True, kw_only=True):
    """What is counted apart; requests without the header count together."""

    header: FieldName | None = None
    remote_address: RemoteAddress | None = None
    constant: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    """Counted together with other targets that have the same constant and limit."""


class GlobalRateLimit(LocalRateLimit, frozen=True, kw_only=True):
    """A limit that all proxies share; who is counted apart, and what is done while nobody counts."""

    on_failure: Literal["ALLOW", "DENY"]
    key: RateLimitKey | None = None


class RateLimitService(Shape, frozen=True, kw_only=True):
    """Where proxies find the service that counts, and how long they wait for it (250 ms)."""

    host: HostName
    port: PortNumber
    client_policy: ClientPolicy | None = None
    timeout: Duration | None = None

    def __post_init__(self) -> None:
        """Refuse to wait not at all, or so long that requests pile up."""
        if self.timeout is not None and not 0 < self.timeout.milliseconds <= ANSWER_MS_MAX:
            raise ValueError("timeout must be more than 0 and at most 10 s")
