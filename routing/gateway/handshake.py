"""The opening handshake of a WebSocket: credentials of browsers, and which pages may connect.

A page cannot set headers of a WebSocket, but it names subprotocols. So besides the headers of any request,
`headworks.bearer.TOKEN` is taken for `Authorization: Bearer TOKEN`, and `headworks.key.KEY` for
`X-API-Key: KEY`. A browser wants one of its subprotocols back, so it names `headworks`, or one of the API's
own, as well. The query is no place for a credential: it is written to logs on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from routing.tenancy.identity import Credential, Unauthenticated

PROTOCOL: Final = "headworks"
BEARER: Final = "headworks.bearer."
KEY: Final = "headworks.key."
PROTOCOL_HEADER: Final = "Sec-WebSocket-Protocol"
PROTOCOLS_MAX: Final = 16


def is_upgrade(request: web.BaseRequest) -> bool:
    """Return whether a request asks for a WebSocket (RFC 6455, 4.2.1)."""
    return request.headers.get("Upgrade", "").strip().lower() == "websocket"


def with_credentials(request: web.BaseRequest) -> web.BaseRequest:
    """Return a request whose credential is in its headers, and nowhere else.

    Whoever reads or logs subprotocols comes after this. Raises `Unauthenticated` when there is more than one.
    """
    headers = CIMultiDict(request.headers)
    offered = protocols(request)
    plain = [name for name in offered if not name.startswith((BEARER, KEY))]
    if len(plain) == len(offered):
        return request
    shown = [name for name in offered if name not in plain]
    if len(shown) > 1 or "Authorization" in headers or "X-API-Key" in headers:
        raise Unauthenticated("more than one credential")
    if shown[0].startswith(BEARER):
        headers["Authorization"] = f"Bearer {shown[0].removeprefix(BEARER)}"
    else:
        headers["X-API-Key"] = shown[0].removeprefix(KEY)
    headers.popall(PROTOCOL_HEADER)
    if plain:
        headers[PROTOCOL_HEADER] = ", ".join(plain)
    return request.clone(headers=headers)


def protocols(request: web.BaseRequest) -> list[str]:
    """Return the subprotocols that a client offers; raises `Unauthenticated` for a list without end."""
    lines = request.headers.getall(PROTOCOL_HEADER, [])
    names = [name.strip() for line in lines for name in line.split(",") if name.strip()]
    if len(names) > PROTOCOLS_MAX:
        raise Unauthenticated(f"more than {PROTOCOLS_MAX} subprotocols")
    return names


def offering(request: web.BaseRequest, known: AbstractSet[str]) -> web.BaseRequest:
    """Return a request that offers only `known` subprotocols; aiohttp would log those that fit none."""
    offered = protocols(request)
    kept = [name for name in offered if name in known]
    if kept == offered:
        return request
    headers = CIMultiDict(request.headers)
    headers.popall(PROTOCOL_HEADER)
    if kept:
        headers[PROTOCOL_HEADER] = ", ".join(kept)
    return request.clone(headers=headers)


def may_connect(origin: str | None, credential: Credential, allowed: Sequence[str]) -> bool:
    """Return whether a page of `origin` may connect; programs other than browsers send none.

    A browser shows a client certificate for any page that asks, so there a page must be named. Other
    credentials are the page's own, so they are good from everywhere unless pages are named.
    """
    if origin is None or "*" in allowed:
        return True
    if not allowed:
        return credential is not Credential.CERTIFICATE
    return origin.lower() in {entry.lower() for entry in allowed}
