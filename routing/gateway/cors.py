"""Which pages of other origins may call, and what the answers say so (Fetch standard, CORS protocol).

Pure: takes headers, returns headers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from routing.gateway.routes_file import Cors

ANY: Final = "*"
ORIGIN: Final = "Access-Control-Allow-Origin"
VARY_PREFLIGHT: Final = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a browser asks whether it may."""
    return method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers


def allows(policy: Cors, origin: str) -> bool:
    """Return whether pages of `origin` may call."""
    return ANY in policy.origins or origin in policy.origins


def preflight(policy: Cors, headers: Mapping[str, str], methods: tuple[str, ...]) -> dict[str, str] | None:
    """Return the headers of a preflight's answer, or None when the origin may not call."""
    origin = headers.get("Origin", "")
    if not allows(policy, origin):
        return None
    answer = {
        **_origin(policy, origin),
        "Access-Control-Allow-Methods": ", ".join(methods),
        "Access-Control-Max-Age": str(policy.max_age_s),
        "Vary": VARY_PREFLIGHT,
    }
    if policy.headers:
        answer["Access-Control-Allow-Headers"] = ", ".join(policy.headers)
    return answer


def actual(policy: Cors, origin: str | None) -> dict[str, str]:
    """Return the headers that an answer to `origin` gets; errors get them too, for pages to read.

    Where the answer depends on the origin it says so to caches, even without one.
    """
    headers = {} if ANY in policy.origins and not policy.credentials else {"Vary": "Origin"}
    if origin is None or not allows(policy, origin):
        return headers
    headers.update(_origin(policy, origin))
    if policy.expose:
        headers["Access-Control-Expose-Headers"] = ", ".join(policy.expose)
    return headers


def _origin(policy: Cors, origin: str) -> dict[str, str]:
    headers = {ORIGIN: ANY if ANY in policy.origins else origin}
    if policy.credentials:
        headers["Access-Control-Allow-Credentials"] = "true"
    return headers
