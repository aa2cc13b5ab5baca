"""What a route matches, and which of several is looked at first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from routing.mesh.compile.messages import Config
from routing.mesh.model.gateway_routes import (
    GatewayRouteHostnameMatch,
    GrpcGatewayRouteMatch,
    HttpGatewayRouteMatch,
)
from routing.mesh.model.routes import (
    GrpcRouteMatch,
    GrpcRouteMetadata,
    HeaderMatchMethod,
    HttpPathMatch,
    HttpQueryParameter,
    HttpRouteHeader,
    HttpRouteMatch,
)

LAST: Final = 1000
"""The priority of a route that names none: App Mesh's lowest."""
Order = tuple[int, int, int, int, str]


class Match(msgspec.Struct, frozen=True):
    """What a route matches in Envoy's terms, and how specific that is."""

    config: Config
    order: tuple[int, int, int]


def http(match: HttpRouteMatch | HttpGatewayRouteMatch) -> Match:
    """Return the match of a route of HTTP."""
    headers = [_header(each) for each in match.headers or ()]
    if match.method is not None:
        headers.append(_equal(":method", match.method))
    if isinstance(match, HttpRouteMatch) and match.scheme is not None:
        headers.append(_equal(":scheme", match.scheme))
    if isinstance(match, HttpGatewayRouteMatch) and match.hostname is not None:
        headers.append(hostname(match.hostname))
    parameters = [_parameter(each) for each in match.query_parameters or ()]
    path, kind, length = _path(match.path, match.prefix)
    config: Config = {**path, "headers": headers, "query_parameters": parameters}
    return Match(config, (kind, -length, -len(headers) - len(parameters)))


def grpc(match: GrpcRouteMatch | GrpcGatewayRouteMatch) -> Match:
    """Return the match of a route of gRPC, whose path is `/service/method`."""
    headers = [_header(each) for each in match.metadata or ()]
    if isinstance(match, GrpcGatewayRouteMatch) and match.hostname is not None:
        headers.append(hostname(match.hostname))
    method = match.method_name if isinstance(match, GrpcRouteMatch) else None
    if match.service_name is not None and method is not None:
        path, kind, length = _path(HttpPathMatch(exact=f"/{match.service_name}/{method}"), None)
    else:
        path, kind, length = _path(None, f"/{match.service_name}/" if match.service_name else "/")
    return Match({**path, "headers": headers, "grpc": {}}, (kind, -length, -len(headers)))


def order(priority: int | None, match: Match, name: str) -> Order:
    """Return a key by which routes are sorted: the lowest priority first.

    Of equal ones, exact paths come first, then regular expressions, then prefixes, the longest before shorter
    ones; then whoever asks for more headers and parameters; then by name, so that the order is always the
    same.
    """
    return (LAST if priority is None else priority, *match.order, name)


def hostname(match: GatewayRouteHostnameMatch) -> Config:
    """Return a match of the host that is asked for, in any case and with any port."""
    if match.exact is not None:
        regex = f"(?i){re.escape(match.exact)}(:[0-9]+)?"
    else:
        regex = f"(?i).*{re.escape((match.suffix or '').removeprefix('*'))}(:[0-9]+)?"
    return {"name": ":authority", "string_match": {"safe_regex": {"regex": regex}}}


def _path(path: HttpPathMatch | None, prefix: str | None) -> tuple[Config, int, int]:
    """Return a match of the path, its kind (exact, regular expression, prefix) and its length."""
    if path is None:
        prefix = prefix or "/"
        return {"prefix": prefix}, 2, len(prefix)
    if path.exact is not None:
        return {"path": path.exact}, 0, len(path.exact)
    regex = path.regex or ""
    return {"safe_regex": {"regex": regex}}, 1, len(regex)


def _equal(name: str, value: str) -> Config:
    return {"name": name, "string_match": {"exact": value}}


def _header(header: HttpRouteHeader | GrpcRouteMetadata) -> Config:
    config: Config = {"name": header.name, "invert_match": bool(header.invert)}
    match header.match:
        case None:
            config["present_match"] = True
        case HeaderMatchMethod(range=bounds) if bounds is not None:
            config["range_match"] = {"start": bounds.start, "end": bounds.end}
        case HeaderMatchMethod(regex=regex) if regex is not None:
            config["string_match"] = {"safe_regex": {"regex": regex}}
        case method:
            kinds: Sequence[str] = ("exact", "prefix", "suffix")
            config["string_match"] = {
                kind: value for kind in kinds if (value := getattr(method, kind)) is not None
            }
    return config


def _parameter(parameter: HttpQueryParameter) -> Config:
    if parameter.match is None or parameter.match.exact is None:
        return {"name": parameter.name, "present_match": True}
    return {"name": parameter.name, "string_match": {"exact": parameter.match.exact}}
