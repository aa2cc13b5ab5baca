"""The driver of the last step: asks the cache or an upstream, and gives the answer back.

An answer that is small, or may be kept, is read whole; any other is streamed as it comes, and one that breaks
off ends with its connection. Misses of one key at the same time make one request.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, cast

from aiohttp import web
from multidict import CIMultiDict

from routing.gateway import cache as caching
from routing.gateway.cache import Cache, Kept
from routing.gateway.door import Connection
from routing.gateway.dress import dress
from routing.gateway.exchange import Exchange
from routing.gateway.headers import VIA, forwarded_for, given_back, passed_on
from routing.gateway.passport import HEADER as PASSPORT
from routing.gateway.passport import Passports
from routing.gateway.prepared import Prepared
from routing.gateway.refused import Refused
from routing.gateway.table import is_plain
from routing.upstream.call import Answer, Call, UpstreamError
from runtime import clock

NO_BODY: Final = frozenset({204, 304})
CONDITIONS: Final = ("If-None-Match", "If-Modified-Since")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Upstreams(Protocol):
    """Who answers."""

    def call(self, name: str, call: Call) -> AbstractAsyncContextManager[Answer]:
        """Ask an upstream; raises `UpstreamError`."""


class Relay:
    """Answers requests whose caller may, and whose body has come."""

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        passports: Passports,
        cache: Cache,
        trusted_proxies: Sequence[Network],
        held_bytes_max: int,
    ) -> None:
        self._upstreams = upstreams
        self._passports = passports
        self._cache = cache
        self._trusted_proxies = trusted_proxies
        self._held_bytes_max = held_bytes_max

    def forget(self) -> None:
        """Forget what was kept: routes have changed."""
        self._cache.clear()

    async def answer(self, exchange: Exchange, prepared: Prepared) -> web.StreamResponse:
        """Return the answer; raises `Refused`."""
        if prepared.route.cache is not None and not exchange.body:
            return await self._cached(exchange, prepared)
        response, _ = await self._ask(exchange, prepared)
        return response

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
        return Call(
            method=request.method,
            target=_target(exchange, prepared),
            headers=headers,
            body=exchange.body,
            idempotent=prepared.is_repeatable(request.method, given),
            hash_key=prepared.hash_key(given, exchange.tenant, caller, exchange.parameters),
            retries=route.retries,
            timeout_s=route.timeout_s,
        )

    async def _cached(self, exchange: Exchange, prepared: Prepared) -> web.StreamResponse:
        route, given, principal = prepared.route, exchange.request.headers, exchange.principal
        assert route.cache is not None
        if not caching.may_look(given):
            response, _ = await self._ask(exchange, prepared)
            return response
        owner = f"{principal.tenant}\0{principal.name}\0{principal.fingerprint}" if principal else ""
        target = _target(exchange, prepared)
        key = caching.key_of(route.name, target, f"{owner}\0{exchange.tenant}", route.cache.vary, given)
        kept = self._cache.get(key, clock.monotonic_s())
        if kept is None and exchange.request.method == "GET":
            flight = self._cache.flight(key)
            if flight is None:
                return await self._first(exchange, prepared, key)
            kept = await asyncio.shield(flight)
        if kept is None:
            response, _ = await self._ask(exchange, prepared)
            return response
        exchange.cached = True
        return _of_kept(exchange, kept)

    async def _first(self, exchange: Exchange, prepared: Prepared, key: caching.Key) -> web.StreamResponse:
        """Ask the upstream for all who wait for the same, and keep the answer if that is allowed."""
        kept: Kept | None = None
        flight = self._cache.lead(key)
        try:
            unkept = functools.partial(self._cache.land, key, flight, None)
            response, kept = await self._ask(exchange, prepared, unkept)
        finally:
            self._cache.land(key, flight, kept)
        return response if kept is None else _of_kept(exchange, kept)

    async def _ask(
        self, exchange: Exchange, prepared: Prepared, unkept: Callable[[], None] | None = None
    ) -> tuple[web.StreamResponse, Kept | None]:
        """Return the upstream's answer, with what may be kept of it; raises `Refused`.

        Something is kept only with `unkept`, which hears before a stream begins that this answer is not: who
        waits for it does not wait for its reader.
        """
        call = self._call(exchange, prepared)
        if unkept is not None:
            for name in CONDITIONS:  # what is kept is for others, who have not what this caller has
                call.headers.popall(name, None)
        try:
            async with self._upstreams.call(prepared.route.upstream, call) as answer:
                return await self._give_back(exchange, prepared, answer, unkept)
        except UpstreamError as error:
            raise Refused(
                error.status, error.reason.value, str(error), retry_after_s=error.retry_after_s
            ) from error

    async def _give_back(
        self, exchange: Exchange, prepared: Prepared, answer: Answer, unkept: Callable[[], None] | None
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
        rule = prepared.route.cache if unkept is not None else None
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
        if unkept is not None:
            unkept()
        response = await self._stream(exchange, answer.status, headers, answer.chunks())
        return response, None

    async def _stream(
        self, exchange: Exchange, status: int, headers: CIMultiDict[str], chunks: AsyncIterator[bytes]
    ) -> web.StreamResponse:
        """Give an answer back as it comes; one that breaks off ends with its connection."""
        response = web.StreamResponse(status=status, headers=headers)
        dress(exchange, response.headers)
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


def _target(exchange: Exchange, prepared: Prepared) -> str:
    """Return the path and query that the upstream is asked for."""
    if not prepared.rewrites and is_plain(exchange.path):
        path = exchange.path
    else:
        path = prepared.write(exchange.parameters)
    return f"{path}?{exchange.query}" if exchange.query else path


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
