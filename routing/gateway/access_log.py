"""The access log: one line a request, with what an operator asks about it and nothing that is secret.

Never in it: bodies, queries, headers, credentials. A credential is named by its fingerprint.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

import msgspec

from routing.gateway.exchange import Exchange

PATH_CHARACTERS_MAX: Final = 256
EVENT: Final = "request"
_ENCODE: Final = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="event", tag=EVENT):
    """A request that is over. `ms` is from its head to the end of its answer."""

    trace: str
    span: str
    method: str
    path: str
    route: str
    version: str
    status: int
    ms: float
    tenant: str
    caller: str
    credential: str
    fingerprint: str
    bytes_in: int
    bytes_out: int
    attempts: int
    endpoint: str
    cached: bool
    refused: str
    level: str
    timestamp: dt.datetime


def line_of(exchange: Exchange, monotonic_s: float, unix_s: float) -> Line:
    """Return the line of a request that is over."""
    principal, route = exchange.principal, exchange.route
    return Line(
        trace=exchange.trace.trace_id,
        span=exchange.trace.span_id,
        method=exchange.request.method,
        path=exchange.path[:PATH_CHARACTERS_MAX],
        route=route.name if route is not None else "",
        version=exchange.version,
        status=exchange.status,
        ms=round((monotonic_s - exchange.received_s) * 1000, 2),
        tenant=exchange.tenant,
        caller=principal.name if principal is not None else "",
        credential=principal.credential.value if principal is not None else "",
        fingerprint=principal.fingerprint if principal is not None else "",
        bytes_in=exchange.bytes_in,
        bytes_out=exchange.bytes_out,
        attempts=exchange.attempts,
        endpoint=exchange.endpoint,
        cached=exchange.cached,
        refused=exchange.refused,
        level="info",
        timestamp=dt.datetime.fromtimestamp(unix_s, dt.UTC),
    )


def encoded(line: Line) -> bytes:
    """Return a line as JSON.

    Hot: guarded by bench/test_callers.py::test_write_access_line.
    """
    return _ENCODE(line)


def shown(log: Any) -> Callable[[Line], None]:
    """Return what writes a line to the log of the process, for people."""

    def show(line: Line) -> None:
        values = msgspec.structs.asdict(line)
        del values["level"], values["timestamp"]  # which the log has of its own
        log.info(EVENT, **values)

    return show
