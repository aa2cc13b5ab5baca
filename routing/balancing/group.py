"""The servers of one upstream: who is there, who is healthy, and who gets the next request."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from routing.balancing import ejection
from routing.balancing.consistent_hash import ConsistentHash
from routing.balancing.eligible import eligible
from routing.balancing.health import Checks
from routing.balancing.host import Host
from routing.balancing.least_request import LeastRequest
from routing.balancing.policy import Policy, Random
from routing.balancing.round_robin import RoundRobin
from routing.gateway.routes_file import Endpoint, Health, Upstream

UNCHECKED: Final = Health()
"""Nobody checks, so everybody stays healthy."""


class Group:
    """A decider: the set to choose from is worked out again when something changed or an ejection ends."""

    def __init__(self, terms: Upstream) -> None:
        self._terms = terms
        self._hosts: dict[str, Host] = {}
        self._policy = policy_of(terms)
        self._eligible: tuple[Host, ...] = ()
        self._until_s = float("-inf")

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All servers that discovery names, in its order."""
        return tuple(self._hosts.values())

    def replace(self, endpoints: Iterable[Endpoint], now_s: float) -> tuple[list[Host], list[Host]]:
        """Use `endpoints` from now on and return the servers that joined and that left.

        Who stays keeps its state, also when its weight, zone or priority is another.
        """
        before = self._hosts
        checks = self._terms.health
        after: dict[str, Host] = {}
        joined: list[Host] = []
        for endpoint in endpoints:
            host = before.get(endpoint.address)
            if host is None:
                terms = checks or UNCHECKED
                host = Host(
                    endpoint,
                    checks=Checks(
                        healthy_after=terms.healthy_after,
                        unhealthy_after=terms.unhealthy_after,
                        healthy=checks is None or not before,
                    ),
                )
                host.check_due_s = now_s
                joined.append(host)
            host.endpoint = endpoint
            after[endpoint.address] = host
        self._hosts = after
        self._renew(now_s, anew=True)  # weights may be others
        return joined, [host for address, host in before.items() if address not in after]

    def choose(self, key: str, avoid: Collection[Host], now_s: float, random: Random) -> Host | None:
        """Return who gets the next request, or None; not one of `avoid` if there is another."""
        if now_s >= self._until_s:
            self._renew(now_s)
        return self._policy.choose(key, avoid, random)

    def uses(self, host: Host) -> bool:
        """Return whether `host` is among those that new requests go to."""
        return host in self._eligible

    def served(self, host: Host, now_s: float) -> None:
        """Hear that `host` answered."""
        ejection.succeeded(host.record, self._terms.ejection, now_s)

    def failed(self, host: Host, now_s: float) -> bool:
        """Hear that `host` failed and return whether it is ejected for that."""
        if self._hosts.get(host.address) is not host:
            return False  # it has left
        out = sum(now_s < each.record.until_s for each in self._hosts.values())
        ejected = ejection.failed(
            host.record, self._terms.ejection, now_s, ejected=out, hosts=len(self._hosts)
        )
        if ejected:
            self._renew(now_s)
        return ejected

    def checked(self, host: Host, now_s: float, *, passed: bool) -> bool:
        """Hear the result of an active check and return whether that changed the host's health."""
        changed = host.checks.heard(passed=passed)
        if changed:
            self._renew(now_s)
        return changed

    def _renew(self, now_s: float, *, anew: bool = False) -> None:
        chosen = eligible(
            self._hosts.values(),
            now_s,
            local_zone=self._terms.local_zone,
            failover_share=self._terms.failover_share,
            zone_share=self._terms.zone_share,
        )
        ends = [host.record.until_s for host in self._hosts.values() if host.record.until_s > now_s]
        self._until_s = min(ends, default=float("inf"))
        if anew or chosen != self._eligible:
            self._eligible = chosen
            self._policy.renew(chosen)


def policy_of(terms: Upstream) -> Policy:
    """Return the policy that an upstream asks for."""
    if terms.balancing == "weighted_round_robin":
        return RoundRobin()
    if terms.balancing == "consistent_hash":
        return ConsistentHash(load_max=terms.hash_load_max)
    return LeastRequest()
