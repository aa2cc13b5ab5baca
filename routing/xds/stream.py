"""All types on one aggregated stream, in the order that breaks nothing.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol, "Eventual consistency
considerations": clusters, their endpoints, listeners, routes; then clusters that nothing leads to go.

Listeners and routes wait until the proxy has acknowledged clusters, secrets and endpoints, so that no route
leads to what it does not have: Envoy acknowledges clusters when they are warm, for which it needs their
endpoints and secrets. Where it refuses some, listeners and routes wait too, and stay as they were.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from routing.xds.snapshot import CLUSTERS, ENDPOINTS, LISTENERS, ORDER, ROUTES, SECRETS, Snapshot
from routing.xds.subscription import Response, Status, Subscription

TOWARDS: Final = (CLUSTERS, SECRETS, ENDPOINTS)
FROM: Final = (LISTENERS, ROUTES)
SubscriptionT = TypeVar("SubscriptionT", bound=Subscription)


class Stream(Generic[SubscriptionT]):
    """The subscriptions of a stream, of either variant."""

    def __init__(self, variant: type[SubscriptionT], *, names_max: int) -> None:
        self._variant = variant
        self._names_max = names_max
        self._of: dict[str, SubscriptionT] = {}

    def of(self, kind: str) -> SubscriptionT | None:
        """Return the subscription of a type, made when it is first asked for; None of one not served."""
        if kind not in ORDER:
            return None
        if kind not in self._of:
            self._of[kind] = self._variant(kind, names_max=self._names_max)
        return self._of[kind]

    def next(self, snapshot: Snapshot) -> Response | None:
        """Return what is to be sent now, or None until the proxy says something or the snapshot changes."""
        for kinds in (TOWARDS, FROM):
            settled = True
            for kind in kinds:
                subscription = self._of.get(kind)
                if subscription is None:
                    continue
                keep = kind in {CLUSTERS, ENDPOINTS}
                response = subscription.next(snapshot.of(kind), keep=keep)
                if response is not None:
                    self._warm_again(response, snapshot)
                    return response
                settled &= not subscription.waiting and not subscription.refuses(snapshot.of(kind), keep=keep)
            if not settled or self._lacks_endpoints(snapshot):
                return None
        return self._taken_away(snapshot)

    def _taken_away(self, snapshot: Snapshot) -> Response | None:
        """Return the response that takes from the proxy what nothing leads to any more."""
        for kind in (CLUSTERS, ENDPOINTS):
            subscription = self._of.get(kind)
            if subscription is None:
                continue
            response = subscription.next(snapshot.of(kind), keep=False)
            if response is not None or subscription.waiting:
                return response
        return None

    def statuses(self) -> list[Status]:
        """Return what the proxy has of each type that it asked for."""
        return [self._of[kind].status for kind in ORDER if kind in self._of]

    def _warm_again(self, response: Response, snapshot: Snapshot) -> None:
        """Send the endpoints of clusters that change again ("Resource warming")."""
        endpoints = self._of.get(ENDPOINTS)
        clusters = self._of.get(CLUSTERS)
        if response.kind != CLUSTERS or endpoints is None or clusters is None:
            return
        changed = [
            each.name
            for each in response.resources
            if each.name not in clusters.held or clusters.held[each.name].version != each.version
        ]
        endpoints.send_again(snapshot.endpoints_of[name] for name in changed if name in snapshot.endpoints_of)

    def _lacks_endpoints(self, snapshot: Snapshot) -> bool:
        """Return whether the proxy has yet to ask for the endpoints of a cluster that it took."""
        clusters, endpoints = self._of.get(CLUSTERS), self._of.get(ENDPOINTS)
        if clusters is None or endpoints is None:
            return False
        return any(
            not endpoints.wants(name) for of, name in snapshot.endpoints_of.items() if of in clusters.held
        )
