"""Which headers go on: what is of one hop, what is ours alone, and the rules of a route.

Pure. What ends here, `X-Headworks-*` above all, never reaches an upstream, however it is written: some
servers take `_` for `-`. Credentials end here: an upstream gets the passport instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

import msgspec
from multidict import CIMultiDict, MultiMapping

from routing.gateway.routes_file import HeaderRules

OURS: Final = "x-headworks-"
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110 7.6.1, with what older peers send."""
NOT_PASSED_ON: Final = HOP_BY_HOP | {
    "authorization",
    "x-api-key",
    "host",
    "content-length",
    "expect",
    "traceparent",
    "tracestate",
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
}
NOT_SET: Final = HOP_BY_HOP | {"content-length", "host"}
"""What no rule may set: it says how a message is framed, or whom it is for."""
NOT_GIVEN_BACK: Final = HOP_BY_HOP | {"content-length", "server", "date"}
VIA: Final = "1.1 headworks"


class Rules(msgspec.Struct, frozen=True):
    """The header rules of a route, with names in lower case where they are compared."""

    remove: frozenset[str]
    set: tuple[tuple[str, str], ...]
    add: tuple[tuple[str, str], ...]

    def apply(self, headers: CIMultiDict[str]) -> None:
        """Change `headers`: remove, then set, then add."""
        for name in self.remove:
            headers.popall(name, None)
        for name, value in self.set:
            headers[name] = value
        for name, value in self.add:
            headers.add(name, value)


def rules(written: HeaderRules) -> Rules | None:
    """Return the rules as they are applied, None when there are none; raises ValueError."""
    for name, value in (*written.set.items(), *written.add.items()):
        if not name.replace("-", "").isalnum() or not name.isascii():
            raise ValueError(f"{name!r} is not the name of a header")
        if not value.isprintable() or name.lower().startswith(OURS) or name.lower() in NOT_SET:
            raise ValueError(f"{name} cannot be set")
    if not (written.set or written.add or written.remove):
        return None
    removed = frozenset(name.lower() for name in written.remove)
    return Rules(removed, tuple(written.set.items()), tuple(written.add.items()))


def passed_on(headers: MultiMapping[str]) -> CIMultiDict[str]:
    """Return a caller's headers without what ends here."""
    dropped: frozenset[str] = NOT_PASSED_ON
    if "Connection" in headers:
        dropped |= _named(headers.getall("Connection"))
    kept = []
    for name, value in headers.items():
        lower = name.lower()
        if "_" in lower:
            lower = lower.replace("_", "-")
        if lower not in dropped and not lower.startswith(OURS):
            kept.append((name, value))
    return CIMultiDict(kept)


def given_back(headers: MultiMapping[str]) -> CIMultiDict[str]:
    """Return an upstream's headers without what is of its connection."""
    dropped: frozenset[str] = NOT_GIVEN_BACK
    if "Connection" in headers:
        dropped |= _named(headers.getall("Connection"))
    return CIMultiDict(
        [
            (name, value)
            for name, value in headers.items()
            if (lower := name.lower()) not in dropped and not lower.startswith(OURS)
        ]
    )


def forwarded_for(
    peer: str, given: Iterable[str], trusted: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> str:
    """Return X-Forwarded-For: the lines that a trusted proxy gave and its address, else only the peer's."""
    if given and any(_in(peer, network) for network in trusted):
        return ", ".join((*given, peer))
    return peer


def _in(peer: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(peer) in network
    except ValueError:
        return False


def _named(connection: Iterable[str]) -> frozenset[str]:
    return frozenset(part.strip().lower() for line in connection for part in line.split(","))
