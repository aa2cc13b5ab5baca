"""Endpoints that the routes file itself names."""

from __future__ import annotations

from collections.abc import Sequence

from routing.discovery.source import Found, found
from routing.gateway.routes_file import Endpoint


class StaticSource:
    """Always the same; what it is made of changes with the routes file."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.found = found(list(endpoints), "static")

    async def poll(self) -> Found:
        """Return the endpoints."""
        return self.found

    async def close(self) -> None:
        """Nothing is open."""
