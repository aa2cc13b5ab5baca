"""The access log: one line a request, with what an operator asks about it and nothing that is secret.

Never in it: bodies, queries, headers, credentials. A credential is named by its fingerprint.
"""

from __future__ import annotations

from typing import Any, Final

from routing.gateway.exchange import Exchange

PATH_CHARACTERS_MAX: Final = 256


class AccessLog:
    """Writes a line for each request to a structlog logger."""

    def __init__(self, log: Any) -> None:
        self._info = log.info

    def record(self, exchange: Exchange, now_s: float) -> None:
        """Write the line of a request that is over."""
        principal = exchange.principal
        self._info(
            "request",
            trace=exchange.trace.trace_id,
            span=exchange.trace.span_id,
            method=exchange.request.method,
            path=exchange.path[:PATH_CHARACTERS_MAX],
            route=exchange.route.name if exchange.route is not None else "",
            version=exchange.version,
            status=exchange.status,
            ms=round((now_s - exchange.received_s) * 1000, 2),
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
        )
