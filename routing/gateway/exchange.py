"""One request as it goes through the gateway; each part fills in what it learns."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from routing.gateway.prepared import Prepared
from routing.gateway.routes_file import Route
from routing.gateway.trace import TraceContext
from routing.tenancy.principal import Principal


class Exchange:
    """A request, what was found out about it, and how it was answered.

    `tenant` is whose data it is about, `refused` the slug of the problem that it was answered with, or empty.
    """

    __slots__ = (
        "attempts",
        "body",
        "bytes_in",
        "bytes_out",
        "cached",
        "endpoint",
        "parameters",
        "path",
        "plan_headers",
        "prepared",
        "principal",
        "query",
        "received_s",
        "refused",
        "request",
        "route",
        "status",
        "tenant",
        "trace",
        "version",
    )

    def __init__(self, request: web.BaseRequest, trace: TraceContext, received_s: float) -> None:
        self.request = request
        self.trace = trace
        self.received_s = received_s
        self.path = ""
        self.query = ""
        self.prepared: Prepared | None = None
        self.route: Route | None = None
        self.version = ""
        self.parameters: dict[str, str] = {}
        self.principal: Principal | None = None
        self.tenant = ""
        self.body = b""
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.refused = ""
        self.attempts = 0
        self.endpoint = ""
        self.cached = False
        self.plan_headers: Mapping[str, str] = {}
