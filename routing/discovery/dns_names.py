"""Endpoints in DNS: the addresses of a name (A, AAAA), or the servers of a service (SRV, RFC 2782).

That a name does not exist, or has no such record, is an answer: there are no endpoints. A server that fails
or is silent leaves the last good copy. The priorities of SRV records become 0, 1, 2 in their order; weights
keep their proportion, scaled where the heaviest is above 1000, and 0 becomes 1, which is RFC 2782's "very
small chance".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.resolver
import msgspec
from dns.rdata import Rdata
from dns.rdtypes.IN.SRV import SRV

from routing.discovery.source import (
    PRIORITY_MAX,
    WEIGHT_MAX,
    DiscoveryError,
    Found,
    found,
    join_address,
    split_address,
)
from routing.gateway.routes_file import Endpoint

SERVERS_MAX: Final = 64
"""Targets of SRV records, each of which takes two more questions."""


class Service(msgspec.Struct, frozen=True):
    """One SRV record."""

    priority: int
    weight: int
    port: int
    target: str


class DnsSource:
    """One name. Asks `nameserver` (address:port), or those of the system when it is empty."""

    def __init__(self, name: str, *, record: str, port: int, nameserver: str, deadline_s: float) -> None:
        if record != "SRV" and not port:
            raise DiscoveryError("discovery by A or AAAA needs a port")
        self._name = name
        self._record = record
        self._port = port
        self._deadline_s = deadline_s
        self._resolver = _resolver(nameserver)

    async def poll(self) -> Found:
        """Ask; raises `DiscoveryError` when there is no answer."""
        if self._record != "SRV":
            addresses = await self._addresses(self._name, self._record)
            endpoints = [Endpoint(address=join_address(each, self._port)) for each in addresses]
        else:
            endpoints = await self._services()
        return found(endpoints, msgspec.json.encode(endpoints).hex())

    async def close(self) -> None:
        """Nothing is open between polls."""

    async def _services(self) -> list[Endpoint]:
        services = [
            Service(each.priority, each.weight, each.port, each.target.to_text(omit_final_dot=True))
            for each in await self._ask(self._name, "SRV")
            if isinstance(each, SRV) and each.target != dns.name.root  # `.`: decidedly not available
        ]
        targets = sorted({service.target for service in services})
        if len(targets) > SERVERS_MAX:
            raise DiscoveryError(f"{len(targets)} SRV targets, of which {SERVERS_MAX} are taken")
        addresses = {
            target: [*await self._addresses(target, "A"), *await self._addresses(target, "AAAA")]
            for target in targets
        }
        return endpoints_of(services, addresses)

    async def _addresses(self, name: str, record: str) -> list[str]:
        return sorted(each.to_text() for each in await self._ask(name, record))

    async def _ask(self, name: str, record: str) -> list[Rdata]:
        try:
            answer = await self._resolver.resolve(
                name, record, lifetime=self._deadline_s, search=False, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN:
            return []
        except (dns.exception.DNSException, OSError) as error:
            raise DiscoveryError(f"DNS: no {record} of {name}: {type(error).__name__}") from error
        return list(answer.rrset or [])


def endpoints_of(services: Sequence[Service], addresses: dict[str, list[str]]) -> list[Endpoint]:
    """Return the endpoints of SRV records whose targets have `addresses`; raises `DiscoveryError`."""
    priorities = sorted({service.priority for service in services})
    if len(priorities) > PRIORITY_MAX + 1:
        raise DiscoveryError(f"{len(priorities)} SRV priorities, of which {PRIORITY_MAX + 1} are taken")
    heaviest = max((service.weight for service in services), default=0)
    scale = max(1.0, heaviest / WEIGHT_MAX)
    return [
        Endpoint(
            address=join_address(address, service.port),
            weight=max(1, round(service.weight / scale)),
            priority=priorities.index(service.priority),
        )
        for service in sorted(services, key=lambda each: (each.priority, each.target, each.port))
        for address in addresses[service.target]
    ]


def _resolver(nameserver: str) -> dns.asyncresolver.Resolver:
    try:
        resolver = dns.asyncresolver.Resolver(configure=not nameserver)
    except dns.resolver.NoResolverConfiguration as error:
        raise DiscoveryError("the system has no name server: set nameserver") from error
    if nameserver:
        host, port = split_address(nameserver)
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise DiscoveryError("a nameserver is address:port") from error
        resolver.nameservers = [host]
        resolver.port = port
    return resolver
