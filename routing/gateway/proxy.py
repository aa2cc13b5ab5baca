"""The driver: takes one request through all the steps, of which the last is `relay.py` or an answer of ours.

match -> CORS preflight -> authorizer -> scopes and tenant -> usage plan -> body -> validation -> cache ->
upstream -> headers -> answer; in the end usage is released, and the request counted and logged.

What it needs of others is in the protocols here; `app.py` gives the real ones. Missing means closed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from aiohttp import web
from multidict import MultiMapping

from routing.gateway import body as bodies
from routing.gateway import cors, handshake, head
from routing.gateway.access import Denied
from routing.gateway.dress import dress
from routing.gateway.exchange import Exchange
from routing.gateway.prepared import Prepared, Served
from routing.gateway.refusal import AuthorizerDown, Suspended
from routing.gateway.refused import Refused
from routing.gateway.relay import Relay
from routing.gateway.routes_file import Route
from routing.gateway.table import BadPath, Match, NotFound, WrongMethod
from routing.gateway.trace import BITS_SPAN, BITS_TRACE, begin
from routing.limits.usage import Admission
from routing.tenancy.identity import Unauthenticated
from routing.tenancy.principal import Principal
from runtime import clock
from runtime.problem import problem

CLIENT_GONE: Final = 499
"""As the status of a request whose caller went away, in the log and the metrics only."""
LASTING: Final = frozenset({"live"})
"""What is a call of its plan when it begins, and no longer under way there then: WebSockets."""
RANDOM_BITS: Final = BITS_TRACE + BITS_SPAN

Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]
Refusal = Callable[[Refused], web.Response]
"""Writes a refusal as the clients of an internal operation expect it."""


class Authorizers(Protocol):
    """Finds out who calls."""

    async def identify(self, names: Iterable[str], request: web.BaseRequest) -> Principal:
        """Return the caller; raises `Unauthenticated`, `Suspended` or `AuthorizerDown`."""

    def challenge(self, names: Iterable[str]) -> str:
        """Return the WWW-Authenticate of a 401."""


class Usage(Protocol):
    """Usage plans."""

    async def admit(self, principal: Principal, tenant: str) -> Admission:
        """Decide about a call, and count it if it is allowed."""

    def release(self, admission: Admission) -> None:
        """Count a call out."""


class Documents(Protocol):
    """Whether requests are what their operations say."""

    def unsupported(self, route: Route, content_type: str, body: bytes) -> str:
        """Return why the media type of a body is not taken, or nothing."""

    def validate(
        self,
        route: Route,
        parameters: Mapping[str, str],
        query: MultiMapping[str],
        content_type: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> Sequence[object]:
        """Return what is wrong with a request."""


Access = Callable[[Route, Mapping[str, str], Principal], Denied | None]
Sockets = Callable[[str], Handler | None]


class Gateway:
    """Answers requests. `served` is swapped when the routes change; all else is there for good.

    `recorded` hears of each request in the end, `failed` of errors that should not be.
    """

    def __init__(
        self,
        served: Served,
        *,
        authorizers: Authorizers,
        access: Access,
        usage: Usage,
        documents: Documents,
        relay: Relay,
        handlers: Mapping[str, Handler],
        refusals: Mapping[str, Refusal],
        sockets: Sockets,
        recorded: Callable[[Exchange], None],
        failed: Callable[[BaseException], None],
        header_bytes_max: int,
        body_deadline_s: float,
    ) -> None:
        self.served = served
        self.documents = documents
        self._authorizers = authorizers
        self._access = access
        self._usage = usage
        self._relay = relay
        self._handlers = handlers
        self._refusals = refusals
        self._sockets = sockets
        self._recorded = recorded
        self._failed = failed
        self._header_bytes_max = header_bytes_max
        self._body_deadline_s = body_deadline_s
        self.under_way = 0

    def replace(self, served: Served, documents: Documents) -> None:
        """Serve other routes from now on."""
        self.served, self.documents = served, documents
        self._relay.forget()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        headers = request.headers
        trace = begin(headers.get("traceparent"), headers.get("tracestate"), random.getrandbits(RANDOM_BITS))
        exchange = Exchange(request, trace, clock.monotonic_s())
        self.under_way += 1
        try:
            response = await self._answer(exchange)
        except Refused as refused:
            response = self._refusal(exchange, refused)
        except asyncio.CancelledError:
            exchange.status, exchange.refused = CLIENT_GONE, "client-gone"
            raise
        except Exception as error:  # noqa: BLE001  # the driver's last line: logged, counted, answered
            self._failed(error)
            exchange.refused = "internal-error"
            response = problem(500, "internal-error", "an error that should not be possible; it was logged")
        finally:
            self.under_way -= 1
            if exchange.status:
                self._recorded(exchange)
        if exchange.status and not response.prepared and request.transport is not None:
            request.transport.abort()  # a head was sent before it went wrong
        if not exchange.status:
            exchange.status = response.status
            if not response.prepared:
                dress(exchange, response.headers)
                if "Upgrade" in headers:
                    response.force_close()  # the parser takes what follows for another protocol
                exchange.bytes_out = _length(response) if request.method != "HEAD" else 0
            self._recorded(exchange)
        return response

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        head.check(request, self._header_bytes_max)
        exchange.path, _, exchange.query = head.target(request).partition("?")
        if (socket := self._sockets(exchange.path)) is not None:
            return await socket(exchange)
        prepared = self._route(exchange)
        if isinstance(prepared, web.Response):
            return prepared
        if prepared.farewell is not None and prepared.farewell.is_gone(clock.unix_s()):
            raise Refused(410, "sunset", "this version is not served any more; see Link")
        if prepared.route.public:
            return await self._admitted(exchange, prepared)
        principal = await self._identify(exchange, prepared)
        admission = await self._usage.admit(principal, exchange.tenant)
        if not admission.allowed:
            raise Refused(
                admission.status,
                admission.slug,
                "the usage plan allows no more for now",
                retry_after_s=admission.retry_after_s,
                headers=admission.headers,
            )
        exchange.plan_headers = admission.headers
        if prepared.internal and prepared.operation in LASTING:
            self._usage.release(admission)
            return await self._admitted(exchange, prepared)
        try:
            return await self._admitted(exchange, prepared)
        finally:
            self._usage.release(admission)

    def _refusal(self, exchange: Exchange, refused: Refused) -> web.Response:
        exchange.refused = refused.slug
        prepared = exchange.prepared
        if prepared is not None and prepared.internal and prepared.operation in self._refusals:
            response = self._refusals[prepared.operation](refused)
        else:
            response = problem(
                refused.status,
                refused.slug,
                refused.detail,
                retry_after_s=refused.retry_after_s,
                headers=refused.headers,
                more=refused.more,
            )
        if refused.close:
            response.force_close()
        return response

    def _route(self, exchange: Exchange) -> Prepared | web.Response:
        """Return the route of a request, or the answer that it has already; raises `Refused`."""
        request, table = exchange.request, self.served.table
        try:
            if request.method == "OPTIONS":
                return self._options(exchange)
            found = table.match(request.method, exchange.path, request.headers)
        except BadPath as error:
            raise Refused(400, "bad-path", str(error)) from error
        if isinstance(found, Match):
            prepared = self.served.prepared[found.route.name]
            exchange.prepared, exchange.route = prepared, prepared.route
            exchange.version, exchange.parameters = prepared.version, found.parameters
            return prepared
        if isinstance(found, NotFound):
            raise Refused(404, "not-found", "no route has this path")
        if isinstance(found, WrongMethod):
            allow = ", ".join(found.allow)
            raise Refused(405, "method-not-allowed", f"this path has {allow}", headers={"Allow": allow})
        raise Refused(406, "unknown-version", f"this path has {', '.join(found.versions)}")

    def _options(self, exchange: Exchange) -> web.Response:
        request, table = exchange.request, self.served.table
        methods = table.methods(exchange.path)
        if not methods:
            raise Refused(404, "not-found", "no route has this path")
        if not cors.is_preflight("OPTIONS", request.headers):
            return web.Response(status=204, headers={"Allow": ", ".join(methods)})
        found = table.match(
            request.headers["Access-Control-Request-Method"], exchange.path, _without_version(request.headers)
        )
        prepared = self.served.prepared[found.route.name] if isinstance(found, Match) else None
        if prepared is None or prepared.cors is None:
            raise Refused(403, "cors-not-allowed", "pages of other origins may not call this")
        headers = cors.preflight(prepared.cors, request.headers, tuple(m for m in methods if m != "OPTIONS"))
        if headers is None:
            raise Refused(403, "cors-not-allowed", "pages of this origin may not call this")
        return web.Response(status=204, headers=headers)

    async def _identify(self, exchange: Exchange, prepared: Prepared) -> Principal:
        """Return who calls, and may; raises `Refused`."""
        route = prepared.route
        principal = await self.caller(exchange, route.authorizers)
        exchange.principal = principal
        exchange.tenant = exchange.parameters.get(route.tenant, principal.tenant)
        denied = self._access(route, exchange.parameters, principal)
        if denied is not None:
            raise Refused(403, denied.slug, denied.detail)
        return principal

    async def caller(self, exchange: Exchange, authorizers: Sequence[str]) -> Principal:
        """Return who calls, or raise `Refused`; a WebSocket may have its credential in a subprotocol."""
        try:
            if handshake.is_upgrade(exchange.request):
                exchange.request = handshake.with_credentials(exchange.request)
            return await self._authorizers.identify(authorizers, exchange.request)
        except Unauthenticated as error:
            challenge = {"WWW-Authenticate": self._authorizers.challenge(authorizers)}
            raise Refused(401, "unauthenticated", str(error), headers=challenge) from error
        except Suspended as error:
            raise Refused(403, "suspended", str(error)) from error
        except AuthorizerDown as error:
            raise Refused(503, "authorizer-down", str(error)) from error

    async def _admitted(self, exchange: Exchange, prepared: Prepared) -> web.StreamResponse:
        """Answer a request whose caller may: read and check its body, then ask who has the answer."""
        request, route = exchange.request, prepared.route
        body = await bodies.read(request, bytes_max=route.body_bytes_max, deadline_s=self._body_deadline_s)
        exchange.body = body
        exchange.bytes_in = len(body)
        if route.operation:
            self._check(exchange, route)
        if prepared.internal:
            return await self._handlers[prepared.operation](exchange)
        return await self._relay.answer(exchange, prepared)

    def _check(self, exchange: Exchange, route: Route) -> None:
        request, body = exchange.request, exchange.body
        content_type = request.headers.get("Content-Type", "")
        if body and request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(415, "unsupported-encoding", "this route takes no compressed body")
        if why := self.documents.unsupported(route, content_type, body):
            raise Refused(415, "unsupported-media-type", why)
        errors = self.documents.validate(
            route, exchange.parameters, request.query, content_type, body, request.headers
        )
        if errors:
            raise Refused(400, "invalid-request", "see errors", more={"errors": errors})


def _without_version(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return no headers: a preflight has not those of the request that it asks for."""
    del headers
    return {}


def _length(response: web.StreamResponse) -> int:
    body = getattr(response, "body", None)
    return len(body) if isinstance(body, bytes) else 0
