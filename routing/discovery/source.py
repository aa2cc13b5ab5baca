"""What every source of endpoints promises."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from routing.gateway.routes_file import Endpoint

ENDPOINTS_MAX: Final = 1024
"""Of one upstream; a source that finds more has failed, so that nothing is left out in silence."""
PRIORITY_MAX: Final = 15
WEIGHT_MAX: Final = 1000


class DiscoveryError(Exception):
    """A poll failed: no answer, or one that is of no use. The last good copy holds."""


class Found(msgspec.Struct, frozen=True):
    """The endpoints at one moment, each address once. Two with the same revision are the same."""

    endpoints: tuple[Endpoint, ...]
    revision: str


class Source(Protocol):
    """Something that knows endpoints. An empty `Found` is an answer: there are none."""

    async def poll(self) -> Found:
        """Return what is there now; raises `DiscoveryError`. The caller sets the deadline."""

    async def close(self) -> None:
        """Close what is open."""


def found(endpoints: list[Endpoint], revision: str) -> Found:
    """Return a `Found` with each address once, the first of them; raises `DiscoveryError`."""
    once: dict[str, Endpoint] = {}
    for endpoint in endpoints:
        once.setdefault(endpoint.address, endpoint)
    if len(once) > ENDPOINTS_MAX:
        raise DiscoveryError(f"{len(once)} endpoints, of which {ENDPOINTS_MAX} are taken")
    for address in once:
        split_address(address)
    return Found(tuple(once.values()), revision)


def split_address(address: str) -> tuple[str, int]:
    """Return (host, port) of `host:port` or `[v6]:port`; raises `DiscoveryError`."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host.removeprefix("[").removesuffix("]")
    known = bool(host) and all(each.isalnum() or each in "-._:" for each in host)
    if not colon or not known or (":" in host) != bracketed or not _is_port(port):
        raise DiscoveryError(f"{address!r} is not host:port")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with the brackets that IPv6 needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65_535
