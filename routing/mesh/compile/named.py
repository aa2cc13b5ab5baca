"""Names that a route and a cluster say of themselves, for access logs, spans and statistics.

Envoy's own name of a route is that which its router gives it, and not that of the router.
"""

from __future__ import annotations

from typing import Final

from routing.mesh.compile.messages import Config

NAMED: Final = "headworks"
ROUTE: Final = "route"
CALLEE: Final = "callee"


def route(name: str) -> Config:
    """Return what a route says of itself; Envoy counts under its name too."""
    return {"metadata": _metadata(ROUTE, name), "stat_prefix": name}


def callee(name: str) -> Config:
    """Return what a cluster says of the node that it leads to."""
    return {"metadata": _metadata(CALLEE, name)}


def _metadata(key: str, value: str) -> Config:
    return {"filter_metadata": {NAMED: {"fields": {key: {"string_value": value}}}}}
