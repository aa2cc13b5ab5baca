"""A routes file as it is served: the table, and what need not be worked out again for each request.

Pure. Made whole or refused (`RoutesRefused`), and swapped in one assignment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from routing.gateway import headers, versions
from routing.gateway.routes_file import PARAMETER, Cors, Route, Routes, parameters
from routing.gateway.table import RoutesRefused, Table, encoded, version_of

HASH_HEADER: Final = "header:"
HASH_BY: Final = frozenset({"tenant", "caller"})


IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class Prepared:
    """One route, ready to be served.

    `write` makes the path for the upstream of decoded parameters; unless the route `rewrites`, a plain path
    can go on as it came.
    """

    __slots__ = (
        "cors",
        "farewell",
        "internal",
        "keyed",
        "operation",
        "request_rules",
        "response_rules",
        "rewrites",
        "route",
        "version",
        "write",
    )

    def __init__(self, route: Route, routes: Routes) -> None:
        self.route = route
        self.version = version_of(route, routes.default_version)
        self.operation = route.operation.rpartition("#")[2] or route.name
        self.internal = routes.upstreams[route.upstream].kind == "internal"
        self.keyed = routes.upstreams[route.upstream].kind == "kinesis"
        self.cors: Cors | None = routes.cors[route.cors] if route.cors else None
        try:
            self.request_rules = headers.rules(route.request_headers)
            self.response_rules = headers.rules(route.response_headers)
            self.farewell = versions.farewell(route.deprecation) if route.deprecation else None
        except ValueError as error:
            raise RoutesRefused(f"route {route.name}: {error}") from error
        self.rewrites = bool(route.upstream_path)
        self.write = _target(route)
        _check_hash_by(route)

    def is_repeatable(self, method: str, given: Mapping[str, str]) -> bool:
        """Return whether a request may be done twice, so that it may be tried again (RFC 9110 9.2.2)."""
        return method in IDEMPOTENT or (self.route.retries.keyed and "Idempotency-Key" in given)

    def hash_key(self, given: Mapping[str, str], tenant: str, caller: str, parameters: dict[str, str]) -> str:
        """Return what the choice of an endpoint hangs on, where that is by hash; or of a shard."""
        by = self.route.hash_by
        if not by:
            return f"{tenant}/{parameters.get('device', caller)}" if self.keyed else ""
        if by == "tenant":
            return tenant
        if by == "caller":
            return caller
        if by.startswith(HASH_HEADER):
            return given.get(by.removeprefix(HASH_HEADER), "")
        return parameters.get(by, "")


class Served:
    """All routes. `handlers` are the names that internal routes may have as their operation."""

    def __init__(self, routes: Routes, *, handlers: frozenset[str]) -> None:
        self.routes = routes
        self.table = Table(routes.routes, default_version=routes.default_version)
        self.prepared = {route.name: Prepared(route, routes) for route in routes.routes}
        for prepared in self.prepared.values():
            if prepared.internal and prepared.operation not in handlers:
                known = ", ".join(sorted(handlers))
                raise RoutesRefused(
                    f"route {prepared.route.name}: the gateway has no {prepared.operation}, but {known}"
                )


def _target(route: Route) -> Callable[[dict[str, str]], str]:
    """Return what writes the upstream's path from decoded parameters."""
    template = route.upstream_path or route.path
    parts: list[tuple[str, str, bool]] = []
    position = 0
    for found in PARAMETER.finditer(template):
        parts.append((template[position : found.start()], found[1], bool(found[2])))
        position = found.end()
    tail = template[position:]

    def write(values: dict[str, str]) -> str:
        return "".join(text + encoded(values[name], rest=rest) for text, name, rest in parts) + tail

    return write


def _check_hash_by(route: Route) -> None:
    by = route.hash_by
    if by and by not in HASH_BY and not by.startswith(HASH_HEADER) and by not in parameters(route.path):
        raise RoutesRefused(
            f"route {route.name}: hash_by is tenant, caller, header:NAME or a parameter of its path"
        )
