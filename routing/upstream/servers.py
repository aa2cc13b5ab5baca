"""HTTP servers behind one upstream: who they are, how they are, and one try of a call at one of them.

At most `connections_max` requests are on the wire; more wait, within their deadline. A server that discovery
no longer names gets no new request; those that it has end as they would.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

from routing.balancing.group import Group
from routing.balancing.host import Host
from routing.balancing.policy import Random
from routing.discovery.source import Found, split_address
from routing.gateway.routes_file import Endpoint, Health, Upstream
from routing.resilience.breaker import State
from routing.upstream import http1
from routing.upstream.attempts import Attempts
from routing.upstream.call import Answer, Call, Reason, UpstreamError
from routing.upstream.events import UpstreamEvents
from routing.upstream.terms import breaker_of, budget_of
from runtime import clock

FAILURES: Final = frozenset({502, 503, 504})
"""Answers that say of the server, not of the request, that it failed. 500 may be the request's doing."""
IDLE_S: Final = 15.0
"""How long a connection that nobody uses is kept."""
CHECKER: Final = (("User-Agent", "headworks-check"),)
CHECK_BYTES_MAX: Final = 65_536


class Servers:
    """The driver of one HTTP upstream. Used by `Upstreams`, which gives it what discovery finds."""

    def __init__(
        self,
        name: str,
        terms: Upstream,
        *,
        context: ssl.SSLContext | None,
        events: UpstreamEvents,
        random: Random,
    ) -> None:
        self._name = name
        self._terms = terms
        self._context = context
        self._events = events
        self._random = random
        now_s = clock.monotonic_s()
        self._group = Group(terms)
        self._breaker = breaker_of(terms.breaker)
        self._slots = asyncio.Semaphore(terms.connections_max)
        self._attempts = Attempts(
            name, self._attempt, budget=budget_of(terms, now_s), events=events, random=random
        )
        self._pools: dict[str, http1.Pool] = {}
        self._left: list[http1.Pool] = []
        self._server_name = _server_name(terms)
        self._known = asyncio.Event()
        self._joined = asyncio.Event()
        self._revision = ""

    def found(self, found: Found) -> None:
        """Take what discovery found."""
        self._revision = found.revision
        self._known.set()
        joined, left = self._group.replace(found.endpoints, clock.monotonic_s())
        self._left = [pool for pool in self._left if pool.open]
        for host in left:
            if (pool := self._pools.pop(host.address, None)) is not None:
                pool.close()
                self._left.append(pool)
        if joined or left:
            self._joined.set()
            self._events.endpoints_changed(
                self._name,
                joined=[host.address for host in joined],
                left=[host.address for host in left],
            )

    async def call(self, call: Call) -> Answer:
        """Return the answer, which the caller closes; raises `UpstreamError`."""
        if not self._known.is_set():
            await self._wait_for_discovery(call.timeout_s)
        return await self._attempts.run(call)

    async def _wait_for_discovery(self, timeout_s: float) -> None:
        """Wait for the first answer of discovery, after which an empty one counts."""
        discovery = self._terms.discovery
        assert discovery is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(timeout_s, discovery.deadline_s)):
                await self._known.wait()

    async def _attempt(self, call: Call, timeout_s: float, asked: list[Any]) -> Answer:
        """Make one try at one server, which is added to `asked`."""
        if self._slots.locked():
            await self._wait_for_slot(timeout_s)
        else:
            await self._slots.acquire()
        try:
            host = self._chosen(call, asked)
            asked.append(host)
            return await self._ask(host, call, timeout_s)
        except BaseException:
            self._slots.release()
            raise

    def _chosen(self, call: Call, asked: list[Any]) -> Host:
        now_s = clock.monotonic_s()
        host = self._group.choose(call.hash_key, asked, now_s, self._random)
        if host is None:
            raise UpstreamError(Reason.NO_ENDPOINT, "the upstream has no server", retry_after_s=1.0)
        if not self._breaker.allows(now_s):
            wait_s = max(1.0, self._breaker.due_s(now_s))
            raise UpstreamError(Reason.BREAKER_OPEN, "the upstream failed too often", retry_after_s=wait_s)
        return host

    async def _wait_for_slot(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise UpstreamError(Reason.OVERFLOW, "no connection became free", retry_after_s=1.0) from error

    async def _ask(self, host: Host, call: Call, timeout_s: float) -> Answer:
        probe = self._breaker.state is State.HALF_OPEN
        host.in_flight += 1
        try:
            response = await self._request(host, call, timeout_s)
        except UpstreamError as error:
            host.in_flight -= 1
            self._events.tried(self._name, error.reason)
            self._heard(host, ok=False)
            raise
        except BaseException:
            host.in_flight -= 1
            if probe:
                self._breaker.failed(clock.monotonic_s())  # else nobody would ever probe again
            raise
        self._events.tried(self._name, None)
        self._heard(host, ok=response.status not in FAILURES)
        return Answer(
            status=response.status,
            headers=response.headers,
            endpoint=host.address,
            body=_ResponseBody(self, host, response, call.timeout_s),
        )

    async def _request(self, host: Host, call: Call, timeout_s: float) -> http1.Response:
        try:
            head = http1.head_of(call.method, call.target, host.address, call.headers.items(), call.body)
            return await self._pool(host.endpoint).exchange(
                head,
                call.body,
                idempotent=call.idempotent,
                bodiless=call.method == "HEAD",
                connect_s=call.retries.try_timeout_s,
                timeout_s=timeout_s,
            )
        except http1.NotSent as error:
            raise UpstreamError(Reason.CONNECT, "no connection to the upstream") from error
        except http1.Broken as error:
            raise UpstreamError(Reason.RESET, "the upstream closed the connection") from error
        except http1.BadAnswer as error:
            raise UpstreamError(Reason.BAD_ANSWER, "the upstream's answer is not HTTP") from error
        except TimeoutError as error:
            raise UpstreamError(Reason.TIMEOUT, f"no answer in {timeout_s:.3g} s") from error
        except ValueError as error:
            raise UpstreamError(Reason.BAD_ANSWER, "the request has a header that cannot be sent") from error

    def _pool(self, endpoint: Endpoint) -> http1.Pool:
        pool = self._pools.get(endpoint.address)
        if pool is None:
            host, port = split_address(endpoint.address)
            pool = self._pools[endpoint.address] = http1.Pool(
                host,
                port,
                tls=self._context,
                server_name=self._server_name,
                connections_max=self._terms.connections_max + 1,  # the slots are the limit; one is for checks
                idle_s=IDLE_S,
            )
        return pool

    def _heard(self, host: Host, *, ok: bool) -> None:
        now_s = clock.monotonic_s()
        if ok:
            self._breaker.succeeded()
            self._group.served(host, now_s)
            return
        # Who is left out already says nothing new of the others: what it had under way fails all at once.
        if self._group.uses(host) or self._breaker.state is State.HALF_OPEN:
            self._breaker.failed(now_s)
        if self._group.failed(host, now_s):
            self._events.ejected(self._name, host.address, host.record.until_s - now_s)

    def body_broken(self, host: Host) -> None:
        """Hear that the body of an answer broke off."""
        self._events.body_broken(self._name, host.address)
        self._heard(host, ok=False)

    def body_closed(self, host: Host) -> None:
        """Hear that an answer is read, or given up."""
        host.in_flight -= 1
        self._slots.release()

    async def run(self) -> None:
        """Check the servers until cancelled, each at its interval; nothing without `health`."""
        terms = self._terms.health
        if terms is None:
            return
        async with asyncio.TaskGroup() as group:
            while True:
                self._joined.clear()
                now_s = clock.monotonic_s()
                next_s = now_s + terms.interval_s
                for host in self._group.hosts:
                    if host.check_due_s <= now_s and not host.checking:
                        host.checking = True
                        # Spread, so that many gateways do not check at the same moment.
                        host.check_due_s = now_s + terms.interval_s * (0.9 + 0.2 * self._random())
                        group.create_task(self._check(host, terms))
                    next_s = min(next_s, max(host.check_due_s, now_s + 0.01))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(next_s - now_s):
                        await self._joined.wait()

    async def _check(self, host: Host, terms: Health) -> None:
        try:
            passed = await self._passes(host.endpoint, terms)
        finally:
            host.checking = False
        if self._group.checked(host, clock.monotonic_s(), passed=passed):
            self._events.health_changed(self._name, host.address, healthy=host.checks.healthy)

    async def _passes(self, endpoint: Endpoint, terms: Health) -> bool:
        try:
            if not terms.path:
                return await _listens(endpoint, terms.timeout_s)
            response = await self._pool(endpoint).exchange(
                http1.head_of("GET", terms.path, endpoint.address, CHECKER, b""),
                b"",
                idempotent=True,
                connect_s=terms.timeout_s,
                timeout_s=terms.timeout_s,
            )
            try:
                async with asyncio.timeout(terms.timeout_s):
                    await response.read(CHECK_BYTES_MAX)
            finally:
                response.release()
        except (http1.Http1Error, TimeoutError, ValueError):
            return False
        return 200 <= response.status < 300

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to see."""
        now_s = clock.monotonic_s()
        return {
            "kind": "http",
            "breaker": self._breaker.state.value,
            "revision": self._revision,
            "endpoints": [
                {
                    "address": host.address,
                    "zone": host.endpoint.zone,
                    "priority": host.endpoint.priority,
                    "weight": host.endpoint.weight,
                    "healthy": host.checks.healthy,
                    "ejected_s": round(max(0.0, host.record.until_s - now_s), 3),
                    "in_flight": host.in_flight,
                }
                for host in self._group.hosts
            ],
        }

    async def close(self) -> None:
        """Close the connections."""
        for pool in (*self._pools.values(), *self._left):
            pool.abort()
        self._pools.clear()
        self._left.clear()


class _ResponseBody:
    """The body of a response, with what its request holds."""

    __slots__ = ("_closed", "_host", "_response", "_servers", "_silent_s")

    def __init__(self, servers: Servers, host: Host, response: http1.Response, silent_s: float) -> None:
        self._servers = servers
        self._host = host
        self._response = response
        self._silent_s = silent_s
        self._closed = False

    def whole(self) -> bytes | None:
        return self._response.whole()

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while True:
                async with asyncio.timeout(self._silent_s):
                    part = await self._response.part()
                if not part:
                    return
                yield part
        except TimeoutError as error:
            self._servers.body_broken(self._host)
            raise UpstreamError(Reason.TIMEOUT, "the upstream fell silent amid its answer") from error
        except http1.Http1Error as error:
            self._servers.body_broken(self._host)
            raise UpstreamError(Reason.RESET, "the upstream broke off amid its answer") from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._response.release()
        self._servers.body_closed(self._host)


async def _listens(endpoint: Endpoint, timeout_s: float) -> bool:
    host, port = split_address(endpoint.address)
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:  # which TimeoutError is too
        return False
    writer.close()
    return True


def _server_name(terms: Upstream) -> str:
    """Return the name that certificates must have, or nothing for that of each endpoint."""
    if not terms.tls:
        return ""
    discovery = terms.discovery
    by_name = discovery is not None and discovery.kind == "dns" and discovery.record != "SRV"
    return terms.server_name or (discovery.name if discovery is not None and by_name else "")
