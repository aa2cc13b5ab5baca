"""The driver: takes one request through all the steps, and streams the upstream's answer back.

match -> CORS preflight -> authorizer -> scopes and tenant -> usage plan -> body -> validation -> cache ->
upstream -> headers -> answer; in the end usage is released, and the request counted and logged.

What it needs of others is in the protocols here; `app.py` gives the real ones. Missing means closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, cast

from aiohttp import web
from multidict import CIMultiDict, MultiMapping

from routing.gateway import body as bodies
from routing.gateway import cache as caching
from routing.gateway import cors, handshake, head
from routing.gateway.access import Denied
from routing.gateway.cache import Cache, Kept
from routing.gateway.door import Connection
from routing.gateway.exchange import Exchange
from routing.gateway.headers import VIA, forwarded_for, given_back, passed_on
from routing.gateway.passport import HEADER as PASSPORT
from routing.gateway.passport import Passports
from routing.gateway.prepared import Prepared, Served
from routing.gateway.refusal import AuthorizerDown, Suspended
from routing.gateway.refused import Refused
from routing.gateway.routes_file import Route
from routing.gateway.table import BadPath, Match, NotFound, WrongMethod, is_plain
from routing.gateway.trace import BITS_SPAN, BITS_TRACE, begin
from routing.limits.usage import Admission
from routing.tenancy.identity import Unauthenticated
from routing.tenancy.principal import Principal
from routing.upstream.call import Answer, Call, UpstreamError
from runtime import clock
from runtime.problem import problem

TRACE_HEADER: Final = "X-Headworks-Trace"
SERVER: Final = "headworks"
CLIENT_GONE: Final = 499
"""As the status of a request whose caller went away, in the log and the metrics only."""
NO_BODY: Final = frozenset({204, 304})
CONDITIONS: Final = ("If-None-Match", "If-Modified-Since")
LASTING: Final = frozenset({"live"})
"""What is a call of its plan when it begins, and no longer under way there then: WebSockets."""
RANDOM_BITS: Final = BITS_TRACE + BITS_SPAN

Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]
Refusal = Callable[[Refused], web.Response]
"""Writes a refusal as the clients of an internal operation expect it."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


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


class Upstreams(Protocol):
    """Who answers."""

    def call(self, name: str, call: Call) -> AbstractAsyncContextManager[Answer]:
        """Ask an upstream; raises `UpstreamError`."""


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
        upstreams: Upstreams,
        handlers: Mapping[str, Handler],
        refusals: Mapping[str, Refusal],
        sockets: Sockets,
        passports: Passports,
        cache: Cache,
        recorded: Callable[[Exchange], None],
        failed: Callable[[BaseException], None],
        trusted_proxies: Sequence[Network],
        header_bytes_max: int,
        body_deadline_s: float,
        held_bytes_max: int,
    ) -> None:
        self.served = served
        self.documents = documents
        self._authorizers = authorizers
        self._access = access
        self._usage = usage
        self._upstreams = upstreams
        self._handlers = handlers
        self._refusals = refusals
        self._sockets = sockets
        self._passports = passports
        self._cache = cache
        self._recorded = recorded
        self._failed = failed
        self._trusted_proxies = trusted_proxies
        self._header_bytes_max = header_bytes_max
        self._body_deadline_s = body_deadline_s
        self._held_bytes_max = held_bytes_max
        self.under_way = 0

    def replace(self, served: Served, documents: Documents) -> None:
        """Serve other routes from now on."""
        self.served, self.documents = served, documents
        self._cache.clear()

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
        if not exchange.status:
            exchange.status = response.status
            if not response.prepared:
                _dress(exchange, response.headers)
                if "Upgrade" in headers:
                    response.force_close()  # the parser takes what follows for another protocol
                exchange.bytes_out = _length(response)
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
        call = self._call(exchange, prepared)
        if route.cache is not None and not call.body:
            return await self._cached(exchange, prepared, call)
        response, _ = await self._ask(exchange, prepared, call)
        return response

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

    def _call(self, exchange: Exchange, prepared: Prepared) -> Call:
        """Return what the upstream is asked."""
        request, route, principal = exchange.request, prepared.route, exchange.principal
        given = request.headers
        connection = cast("Connection", request.protocol)
        headers = passed_on(given)
        headers["traceparent"] = exchange.trace.traceparent
        if exchange.trace.state:
            headers["tracestate"] = exchange.trace.state
        headers["X-Forwarded-For"] = forwarded_for(
            connection.peer, given.getall("X-Forwarded-For", ()), self._trusted_proxies
        )
        headers["X-Forwarded-Proto"] = "https" if connection.secure else "http"
        headers["X-Forwarded-Host"] = given.get("Host", "")
        headers["Via"] = VIA
        caller = ""
        if principal is not None:
            caller = principal.name
            headers[PASSPORT] = self._passports.issue(principal, route.upstream, clock.unix_s())
        if prepared.request_rules is not None:
            prepared.request_rules.apply(headers)
        if not prepared.rewrites and is_plain(exchange.path):
            target = exchange.path
        else:
            target = prepared.write(exchange.parameters)
        return Call(
            method=request.method,
            target=f"{target}?{exchange.query}" if exchange.query else target,
            headers=headers,
            body=exchange.body,
            idempotent=prepared.is_repeatable(request.method, given),
            hash_key=prepared.hash_key(given, exchange.tenant, caller, exchange.parameters),
            retries=route.retries,
            timeout_s=route.timeout_s,
        )

    # The cache.

    async def _cached(self, exchange: Exchange, prepared: Prepared, call: Call) -> web.StreamResponse:
        route, given, principal = prepared.route, exchange.request.headers, exchange.principal
        assert route.cache is not None
        if not caching.may_look(given):
            response, _ = await self._ask(exchange, prepared, call)
            return response
        owner = f"{principal.tenant}\0{principal.name}\0{principal.fingerprint}" if principal else ""
        key = caching.key_of(route.name, call.target, f"{owner}\0{exchange.tenant}", route.cache.vary, given)
        kept = self._cache.get(key, clock.monotonic_s())
        if kept is None and exchange.request.method == "GET":
            under_way = self._cache.flight(key)
            if under_way is None:
                return await self._first(exchange, prepared, call, key)
            kept = await asyncio.shield(under_way)
        if kept is None:
            response, _ = await self._ask(exchange, prepared, call)
            return response
        exchange.cached = True
        return _of_kept(exchange, kept)

    async def _first(
        self, exchange: Exchange, prepared: Prepared, call: Call, key: caching.Key
    ) -> web.StreamResponse:
        """Ask the upstream for all who wait for the same, and keep the answer if that is allowed."""
        kept: Kept | None = None
        try:
            for name in CONDITIONS:
                call.headers.popall(name, None)
            response, kept = await self._ask(exchange, prepared, call, keep=True)
            if kept is not None and caching.may_store(exchange.request.headers):
                self._cache.put(key, kept)
        finally:
            self._cache.land(key, kept)
        return response if kept is None else _of_kept(exchange, kept)

    # The upstream.

    async def _ask(
        self, exchange: Exchange, prepared: Prepared, call: Call, *, keep: bool = False
    ) -> tuple[web.StreamResponse, Kept | None]:
        """Return the upstream's answer, with what may be kept of it; raises `Refused`."""
        try:
            async with self._upstreams.call(prepared.route.upstream, call) as answer:
                return await self._relay(exchange, prepared, answer, keep=keep)
        except UpstreamError as error:
            raise Refused(
                error.status, error.reason.value, str(error), retry_after_s=error.retry_after_s
            ) from error

    async def _relay(
        self, exchange: Exchange, prepared: Prepared, answer: Answer, *, keep: bool
    ) -> tuple[web.StreamResponse, Kept | None]:
        exchange.attempts, exchange.endpoint = answer.attempts, answer.endpoint
        headers = given_back(answer.headers)
        if prepared.response_rules is not None:
            prepared.response_rules.apply(headers)
        length = _content_length(answer)
        if exchange.request.method == "HEAD" or answer.status in NO_BODY:
            if length is not None and answer.status not in NO_BODY:
                headers["Content-Length"] = str(length)
            return web.Response(status=answer.status, headers=headers), None
        rule = prepared.route.cache if keep else None
        lifetime_s = (
            caching.lifetime_s(answer.status, answer.headers, rule.ttl_s, rule.vary)
            if rule is not None
            else 0.0
        )
        held_max = self._cache.entry_bytes_max if lifetime_s else self._held_bytes_max
        if length is not None and length <= held_max:
            body = await answer.read(held_max)
            if lifetime_s:
                assert rule is not None
                kept = _keep(
                    answer.status, headers, body, rule.vary, lifetime_s, private=not prepared.route.public
                )
                return web.Response(), kept
            return web.Response(status=answer.status, headers=headers, body=body), None
        if length is not None:
            headers["Content-Length"] = str(length)
        response = await self._stream(exchange, answer.status, headers, answer.chunks())
        return response, None

    async def _stream(
        self, exchange: Exchange, status: int, headers: CIMultiDict[str], chunks: AsyncIterator[bytes]
    ) -> web.StreamResponse:
        """Give an answer back as it comes; one that breaks off ends with its connection."""
        response = web.StreamResponse(status=status, headers=headers)
        _dress(exchange, response.headers)
        if "Upgrade" in exchange.request.headers:
            response.force_close()
        exchange.status = status
        await response.prepare(exchange.request)
        try:
            async for chunk in chunks:
                exchange.bytes_out += len(chunk)
                await response.write(chunk)
            await response.write_eof()
        except (UpstreamError, ConnectionError) as error:
            exchange.refused = "upstream-broke-off" if isinstance(error, UpstreamError) else "client-gone"
            cast("Connection", exchange.request.protocol).abort()
        return response


def _without_version(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return no headers: a preflight has not those of the request that it asks for."""
    del headers
    return {}


def _dress(exchange: Exchange, headers: CIMultiDict[str]) -> None:
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


def _keep(
    status: int, headers: CIMultiDict[str], body: bytes, vary: list[str], lifetime_s: float, *, private: bool
) -> Kept:
    etag = headers.get("ETag") or caching.etag_of(body)
    headers["ETag"] = etag
    if private and "Cache-Control" not in headers:
        headers["Cache-Control"] = "private, no-cache"
    if vary and "Vary" not in headers:
        headers["Vary"] = ", ".join(vary)
    now_s = clock.monotonic_s()
    return Kept(status, tuple(headers.items()), body, etag, now_s, now_s + lifetime_s)


def _of_kept(exchange: Exchange, kept: Kept) -> web.Response:
    headers = CIMultiDict(kept.headers)
    if exchange.cached:
        headers["Age"] = str(int(clock.monotonic_s() - kept.kept_s))
    if caching.is_unchanged(exchange.request.headers.get("If-None-Match"), kept.etag):
        for name in ("Content-Type", "Content-Encoding", "Content-Language"):
            headers.popall(name, None)
        return web.Response(status=304, headers=headers)
    return web.Response(status=kept.status, headers=headers, body=kept.body)


def _content_length(answer: Answer) -> int | None:
    length = answer.headers.get("Content-Length")
    return int(length) if length is not None and length.isdecimal() else None


def _length(response: web.StreamResponse) -> int:
    body = getattr(response, "body", None)
    return len(body) if isinstance(body, bytes) else 0
