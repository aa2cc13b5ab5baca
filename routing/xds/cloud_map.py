"""Endpoints of virtual nodes in AWS Cloud Map: asked for, and told to the control plane as they change.

Nodes that name the same service with the same attributes share one watcher. What was found last holds while
Cloud Map throttles or is away. Until there was an answer nothing is said of a node, so that proxies which
know endpoints from before keep them; that there is no such service is an answer. Where several regions are
asked, each has to have answered.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from routing.aws import AwsClient
from routing.discovery.cloud_map import IPV4, IPV6, CloudMapSource
from routing.discovery.source import Found, split_address
from routing.discovery.watcher import Watcher
from routing.mesh.compile.proxy import Endpoint
from routing.mesh.model.resources import VirtualNode
from routing.mesh.model.shape import IpPreference
from routing.mesh.snapshot import MeshSnapshot
from routing.xds.configurations import Endpoints

CONNECTIONS_MAX: Final = 16
DEADLINE_S: Final = 5.0
FAMILIES: Final = {
    "IPv4_ONLY": (IPV4,),
    "IPv6_ONLY": (IPV6,),
    "IPv4_PREFERRED": (IPV4, IPV6),
    "IPv6_PREFERRED": (IPV6, IPV4),
}
NO_PORT: Final = 1
"""Stands for the port of an instance that has none: nothing that speaks is there (tcpmux)."""
REGION: Final = re.compile(r"[a-z]{2}(?:-[a-z]+)+-\d+")
"""What a zone begins with: us-east-1a, us-west-2-lax-1a."""


class CloudMapTerms(msgspec.Struct, frozen=True):
    """The regions whose Cloud Map is asked, and how often."""

    regions: tuple[str, ...]
    endpoint: str = ""
    poll_s: float = 5.0


class Asked(msgspec.Struct, frozen=True):
    """What is asked for in a region: the instances of a service that have these attributes."""

    region: str
    namespace: str
    service: str
    attributes: tuple[tuple[str, str], ...]
    families: tuple[str, ...]


def asked_of(node: VirtualNode, preference: IpPreference | None, regions: Sequence[str]) -> tuple[Asked, ...]:
    """Return what is asked for a node, nothing where it is not there; `preference` is that of the mesh."""
    discovery = node.spec.service_discovery
    cloud_map = discovery.aws_cloud_map if discovery is not None else None
    if cloud_map is None:
        return ()
    attributes = tuple(sorted((each.key, each.value) for each in cloud_map.attributes or ()))
    families = FAMILIES[cloud_map.ip_preference or preference or "IPv4_PREFERRED"]
    return tuple(
        Asked(region, cloud_map.namespace_name, cloud_map.service_name, attributes, families)
        for region in regions
    )


def endpoints_of(found: Found, node: VirtualNode, asked_in: str) -> tuple[Endpoint, ...]:
    """Return the endpoints of a node; the port of an instance counts where the node has one listener.

    An instance whose zone says no region is in that which was asked.
    """
    alone = len(node.spec.listeners or ()) == 1
    made = []
    for each in found.endpoints:
        host, port = split_address(each.address)
        region = match[0] if (match := REGION.match(each.zone)) is not None else asked_in
        at = port if alone and port != NO_PORT else None
        made.append(Endpoint(host, at, region=region, zone=each.zone, weight=max(1, each.weight)))
    return tuple(made)


class CloudMapNodes:
    """The driver. `found` is told the endpoints of all nodes in Cloud Map, by path."""

    def __init__(
        self, terms: CloudMapTerms, found: Callable[[Endpoints], Awaitable[None]], *, log: Any
    ) -> None:
        self._terms = terms
        self._tell = found
        self._log = log
        self._clients = {
            region: AwsClient(
                "servicediscovery",
                region=region,
                endpoint=terms.endpoint,
                connections_max=CONNECTIONS_MAX,
            )
            for region in terms.regions
        }
        self._wanted: list[tuple[VirtualNode, tuple[Asked, ...]]] = []
        self._found: dict[Asked, Found] = {}
        self._running: dict[Asked, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def watch(self, meshes: Mapping[str, MeshSnapshot]) -> None:
        """Ask for what the nodes of these meshes name, and for nothing else any more."""
        wanted: list[tuple[VirtualNode, tuple[Asked, ...]]] = []
        for mesh in meshes.values():
            discovery = mesh.mesh.spec.service_discovery
            preference = discovery.ip_preference if discovery is not None else None
            found = ((each, asked_of(each, preference, self._terms.regions)) for each in mesh.nodes.values())
            wanted += [(node, asked) for node, asked in found if asked]
        self._wanted = wanted
        self._changed.set()

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints of the nodes for which there was an answer."""
        return {
            node.path: tuple(
                endpoint for each in asked for endpoint in endpoints_of(self._found[each], node, each.region)
            )
            for node, asked in self._wanted
            if all(each in self._found for each in asked)
        }

    async def run(self) -> None:
        """Ask for as long as it is not cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    self._start_and_end(tasks)
                    await self._tell(self.endpoints)
        finally:
            for client in self._clients.values():
                await client.close()

    def _start_and_end(self, tasks: asyncio.TaskGroup) -> None:
        wanted = {each for _, asked in self._wanted for each in asked}
        for asked in self._running.keys() - wanted:
            self._running.pop(asked).cancel()
            self._found.pop(asked, None)
        for asked in wanted - self._running.keys():
            self._running[asked] = tasks.create_task(self._watcher(asked).run())

    def _watcher(self, asked: Asked) -> Watcher:
        name = f"{asked.service}.{asked.namespace} in {asked.region}"

        def found(what: Found) -> None:
            self._found[asked] = what
            self._log.info("mesh_discovered", service=name, endpoints=len(what.endpoints))
            self._changed.set()

        source = CloudMapSource(
            _Shared(self._clients[asked.region]),
            namespace=asked.namespace,
            service=asked.service,
            port=NO_PORT,
            deadline_s=DEADLINE_S,
            attributes=dict(asked.attributes),
            families=asked.families,
            missing_is_none=True,
        )
        return Watcher(
            name,
            source,
            poll_s=self._terms.poll_s,
            deadline_s=2 * DEADLINE_S,
            found=found,
            heard=_Heard(self._log),
            random=secrets.SystemRandom().random,
        )


class _Shared:
    """A client that its users do not close."""

    def __init__(self, client: AwsClient) -> None:
        self._client = client

    async def call(self, operation: str, *, deadline_s: float, **arguments: Any) -> dict[str, Any]:
        return await self._client.call(operation, deadline_s=deadline_s, **arguments)

    async def close(self) -> None:
        """Leave it to the others."""


class _Heard:
    """Logs what a watcher says."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def discovery_failed(self, upstream: str, why: str, *, first: bool) -> None:
        if first:
            self._log.warning("mesh_discovery_failed", service=upstream, why=why)

    def discovery_recovered(self, upstream: str) -> None:
        self._log.info("mesh_discovery_recovered", service=upstream)
