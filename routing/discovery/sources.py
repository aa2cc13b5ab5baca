"""Makes the source that a routes file asks for."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from routing.aws import AwsClient
from routing.discovery.cloud_map import CloudMapSource
from routing.discovery.dns_names import DnsSource
from routing.discovery.file import FileSource
from routing.discovery.source import DiscoveryError, Source
from routing.discovery.static import StaticSource
from routing.gateway.routes_file import Discovery


def source_of(discovery: Discovery) -> Source:
    """Return the source; raises `DiscoveryError` when what it needs is not set."""
    match discovery.kind:
        case "static":
            return StaticSource(discovery.endpoints)
        case "file":
            if not discovery.file:
                raise DiscoveryError("discovery by file needs file")
            return FileSource(Path(discovery.file))
        case "dns":
            if not discovery.name:
                raise DiscoveryError("discovery by dns needs name")
            return DnsSource(
                discovery.name,
                record=discovery.record,
                port=discovery.port,
                nameserver=discovery.nameserver,
                deadline_s=discovery.deadline_s,
            )
        case "cloud_map":
            if not (discovery.namespace and discovery.service and discovery.region):
                raise DiscoveryError("discovery by cloud_map needs namespace, service and region")
            client = AwsClient(
                "servicediscovery", region=discovery.region, endpoint=discovery.endpoint, connections_max=1
            )
            return CloudMapSource(
                client,
                namespace=discovery.namespace,
                service=discovery.service,
                port=discovery.port,
                deadline_s=discovery.deadline_s,
            )
        case _:
            assert_never(discovery.kind)
