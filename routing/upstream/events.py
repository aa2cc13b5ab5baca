"""What happens between the gateway and its upstreams, as metrics and log lines: one function an event."""

from __future__ import annotations

import enum
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from routing.upstream.call import Reason


class Again(enum.Enum):
    """Why a call is tried once more."""

    RETRY = "retry"
    HEDGE = "hedge"


class UpstreamEvents:
    """All upstreams of a gateway. Labels are names of the routes file and closed sets."""

    def __init__(self, *, log: Any, registry: CollectorRegistry) -> None:
        self._log = log
        self._tries = Counter(
            "headworks_upstream_tries",
            "Tries, by how they ended: answered, or why not.",
            ["upstream", "outcome"],
            registry=registry,
        )
        self._ended: dict[tuple[str, Reason | None], Counter] = {}
        """What `labels` finds, which takes its time."""
        self._again = Counter(
            "headworks_upstream_retries",
            "Calls that were tried once more: retry or hedge.",
            ["upstream", "kind"],
            registry=registry,
        )
        self._over_budget = Counter(
            "headworks_upstream_retries_refused",
            "Retries and hedges that the budget did not allow.",
            ["upstream"],
            registry=registry,
        )
        self._broken = Counter(
            "headworks_upstream_bodies_broken",
            "Answers whose body broke off.",
            ["upstream"],
            registry=registry,
        )
        self._ejections = Counter(
            "headworks_upstream_ejections",
            "Endpoints ejected for their failures.",
            ["upstream"],
            registry=registry,
        )
        self._changes = Counter(
            "headworks_upstream_health_changes",
            "Endpoints that active checks found healthy or unhealthy.",
            ["upstream", "health"],
            registry=registry,
        )
        self._polls = Counter(
            "headworks_upstream_discovery_failures",
            "Polls of discovery that failed, while the last good copy held.",
            ["upstream"],
            registry=registry,
        )

    def tried(self, upstream: str, failure: Reason | None) -> None:
        """Count a try that ended."""
        ended = self._ended.get((upstream, failure))
        if ended is None:
            ended = self._tries.labels(upstream, failure.value if failure else "answered")
            self._ended[upstream, failure] = ended
        ended.inc()

    def tried_again(self, upstream: str, kind: Again) -> None:
        """Count a retry or a hedge."""
        self._again.labels(upstream, kind.value).inc()

    def over_budget(self, upstream: str) -> None:
        """Count what the budget did not allow."""
        self._over_budget.labels(upstream).inc()

    def body_broken(self, upstream: str, endpoint: str) -> None:
        """Count a body that broke off."""
        self._broken.labels(upstream).inc()
        self._log.warning("upstream_body_broken", upstream=upstream, endpoint=endpoint)

    def ejected(self, upstream: str, endpoint: str, for_s: float) -> None:
        """Say that an endpoint is left out."""
        self._ejections.labels(upstream).inc()
        self._log.warning("upstream_ejected", upstream=upstream, endpoint=endpoint, for_s=round(for_s, 3))

    def health_changed(self, upstream: str, endpoint: str, *, healthy: bool) -> None:
        """Say what active checks found."""
        self._changes.labels(upstream, "healthy" if healthy else "unhealthy").inc()
        self._log.warning("upstream_health", upstream=upstream, endpoint=endpoint, healthy=healthy)

    def endpoints_changed(self, upstream: str, *, joined: list[str], left: list[str]) -> None:
        """Say what discovery found."""
        self._log.info("upstream_endpoints", upstream=upstream, joined=joined[:10], left=left[:10])

    def discovery_failed(self, upstream: str, why: str, *, first: bool) -> None:
        """Count a failed poll, and say so the first time in a row."""
        self._polls.labels(upstream).inc()
        if first:
            self._log.warning("upstream_discovery_failed", upstream=upstream, why=why[:200])

    def discovery_recovered(self, upstream: str) -> None:
        """Say that discovery answers again."""
        self._log.info("upstream_discovery_recovered", upstream=upstream)
