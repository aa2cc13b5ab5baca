"""What every answer has: who it is from, its trace, the caller's plan, a farewell, what pages may read."""

from __future__ import annotations

from typing import Final

from multidict import CIMultiDict

from routing.gateway import cors
from routing.gateway.exchange import Exchange

TRACE_HEADER: Final = "X-Headworks-Trace"
SERVER: Final = "headworks"


def dress(exchange: Exchange, headers: CIMultiDict[str]) -> None:
    """Set what every answer of ours has."""
    headers["Server"] = SERVER
    headers[TRACE_HEADER] = exchange.trace.trace_id
    prepared = exchange.prepared
    if exchange.plan_headers:
        headers.update(exchange.plan_headers)
    if prepared is None:
        return
    if prepared.farewell is not None:
        for name, value in prepared.farewell.headers:
            headers.add(name, value)
    if prepared.route.version:
        headers.add("Vary", "Accept")
    if prepared.cors is not None:
        for name in [name for name in headers if name.lower().startswith("access-control-")]:
            headers.popall(name, None)
        for name, value in cors.actual(prepared.cors, exchange.request.headers.get("Origin")).items():
            headers.add(name, value)
