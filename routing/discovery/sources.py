"""Makes the source that a routes file asks for."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

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
        case "dns" | "cloud_map":
            raise DiscoveryError("not yet")
        case _:
            assert_never(discovery.kind)
