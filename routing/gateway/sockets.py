"""The WebSocket API, as AWS API Gateway has it: HTTP services behind WebSockets.

- `$connect` is called before the handshake is answered, and only its 2xx lets a client in. A 4xx of it is the
  answer to the client; else it is 502, 503 or 504.
- A message goes to the route that its `select` member names, else to `$default`; what the route answers is
  sent back. One message of a connection is under way at a time, `QUEUE_MAX` wait, then no more is read.
- `$disconnect` is told after the end by `FAREWELLS` tasks of `run`, `FAREWELL_TRIES` times in `FAREWELL_S`.
  It may be told late or, when the gateway is killed or the upstream stays away, never.
- A connection counts from its first byte: caps are kept while `$connect` is under way.
- Who is over the rate hears it for each message, and is cut off after `THROTTLED_MAX` in a row.

Connections are those of this process: a push has to reach the process that has the connection.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

from routing.gateway import handshake
from routing.gateway.backend import Backend, BackendCall, BackendDown
from routing.gateway.open_socket import CLOSES, FINISHED, Close, Ending, OpenSocket, Timing, watch
from routing.gateway.proxy_event import (
    CONNECT,
    DISCONNECT,
    EventType,
    Occasion,
    Peer,
    connect_event,
    disconnect_event,
    error_message,
    message_event,
    route_key,
)
from routing.gateway.routes_file import SocketApi, SocketRoute
from routing.gateway.socket_metrics import Answered, SocketMetrics
from routing.limits.bucket import TokenBucket
from routing.resilience.backoff import full_jitter_s
from routing.tenancy.identity import Unauthenticated
from routing.tenancy.principal import Principal
from runtime import clock
from runtime.problem import problem

QUEUE_MAX: Final = 16
THROTTLED_MAX: Final = 100
SHUT_S: Final = 5.0
FAREWELLS: Final = 8
FAREWELLS_MAX: Final = 20_000
FAREWELL_TRIES: Final = 3
FAREWELL_S: Final = 30.0
CONNECT_BODY_MAX: Final = 16 * 1024
SPREAD: Final = 0.7
"""So much of the deadline of a drain its closes are spread over; the rest is for the last of them."""
JSON: Final = {"Content-Type": "application/json"}


class Connection:
    """A connection of a WebSocket API."""

    __slots__ = ("api", "bucket", "last_active_ms", "name", "open", "peer", "queue", "routes", "throttled")

    def __init__(self, name: str, api: SocketApi, peer: Peer, socket: OpenSocket, now_s: float) -> None:
        self.name = name
        self.api = api
        self.peer = peer
        self.open = socket
        self.routes = {route.key: route for route in api.routes}
        self.bucket = TokenBucket(
            rate_per_s=api.messages_per_s, burst=max(1.0, api.messages_per_s), now_s=now_s
        )
        self.queue: asyncio.Queue[str | bytes] = asyncio.Queue(QUEUE_MAX)
        self.throttled = 0
        self.last_active_ms = peer.connected_ms


class Farewell(msgspec.Struct, frozen=True, kw_only=True):
    """A $disconnect that is to be told."""

    peer: Peer
    route: SocketRoute
    close: Close


class Sockets:
    """All connections of the WebSocket APIs of this process. `run` must be running for `$disconnect`."""

    def __init__(
        self,
        *,
        backend: Backend,
        metrics: SocketMetrics,
        log: Any,
        random: Callable[[], float],
        monotonic_s: Callable[[], float] = clock.monotonic_s,
        unix_s: Callable[[], float] = clock.unix_s,
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._log = log
        self._random = random
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s
        self._connections: dict[str, Connection] = {}
        self._taken: Counter[str] = Counter()
        self._taken_by_tenant: Counter[tuple[str, str]] = Counter()
        self._farewells: asyncio.Queue[Farewell] = asyncio.Queue(FAREWELLS_MAX)
        self._draining = False
        self._none_left = asyncio.Event()
        self._none_left.set()

    async def run(self) -> None:
        """Tell upstreams of connections that are over, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(FAREWELLS):
                tasks.create_task(self._say_farewells())

    def find(self, connection_id: str) -> Connection | None:
        """Return an open connection."""
        return self._connections.get(connection_id)

    def pushed_to(self, connection: Connection) -> None:
        """Note that a service has sent something, which keeps a connection from being idle."""
        connection.open.heard.message_s = self._monotonic_s()
        connection.last_active_ms = int(self._unix_s() * 1000)

    def status(self) -> dict[str, Any]:
        """Return how many connections are open, by API."""
        return {
            "connections": dict(+self._taken),
            "draining": self._draining,
            "disconnects_waiting": self._farewells.qsize(),
        }

    def end_refused(self, refused: Callable[[Principal], bool]) -> int:
        """End the connections of callers who would no longer be let in; return how many."""
        doomed = [each for each in self._connections.values() if refused(each.peer.principal)]
        for connection in doomed:
            connection.open.end(Ending.REFUSED)
        return len(doomed)

    async def drain(self, deadline_s: float) -> None:
        """Close all with 1012, spread so that they do not come back all at once; take no new ones."""
        self._draining = True
        opened = list(self._connections.values())
        try:
            async with asyncio.timeout(deadline_s):
                for position, connection in enumerate(opened):
                    if position:
                        await asyncio.sleep(deadline_s * SPREAD / len(opened))
                    connection.open.end(Ending.DRAIN)
                await self._none_left.wait()
                await self._farewells.join()
        except TimeoutError:
            self._log.warning(
                "sockets_not_drained", open=sum(self._taken.values()), untold=self._farewells.qsize()
            )

    async def handle(
        self, request: web.BaseRequest, name: str, api: SocketApi, principal: Principal
    ) -> web.StreamResponse:
        """Answer a handshake of the API called `name`, and serve the connection until it is over."""
        try:
            request = handshake.with_credentials(request)
        except Unauthenticated as error:
            return self._refuse(name, problem(400, "bad-handshake", str(error)))
        refusal = self._refusal(request, name, api, principal)
        if refusal is not None:
            return self._refuse(name, refusal)
        tenant = (name, principal.tenant)
        self._taken[name] += 1
        self._taken_by_tenant[tenant] += 1
        self._none_left.clear()
        try:
            return await self._admit(request, name, api, principal)
        finally:
            self._taken[name] -= 1
            self._taken_by_tenant[tenant] -= 1
            if not self._taken_by_tenant[tenant]:
                del self._taken_by_tenant[tenant]
            if not self._taken.total():
                self._none_left.set()

    def _refuse(self, name: str, response: web.Response) -> web.Response:
        self._metrics.handshake_refused(name, response.status)
        return response

    def _refusal(
        self, request: web.BaseRequest, name: str, api: SocketApi, principal: Principal
    ) -> web.Response | None:
        if self._draining:
            return problem(503, "draining", "the gateway is about to restart", retry_after_s=1)
        if not handshake.is_upgrade(request):
            return problem(426, "upgrade-required", "this is a WebSocket", headers={"Upgrade": "websocket"})
        if not web.WebSocketResponse(protocols=handshake.protocols(request)).can_prepare(request).ok:
            return problem(400, "bad-handshake", "the handshake is not one of RFC 6455, version 13")
        if not handshake.may_connect(request.headers.get("Origin"), principal.credential, api.origins):
            return problem(403, "foreign-origin", "pages of this origin may not connect")
        if missing := sorted(frozenset(api.scopes) - principal.scopes):
            return problem(403, "missing-scope", f"this asks for the scope {missing[0]}")
        if self._taken[name] >= api.connections_max:
            return problem(503, "connections-full", "there are too many connections", retry_after_s=10)
        if self._taken_by_tenant[name, principal.tenant] >= api.connections_per_tenant_max:
            return problem(
                429, "too-many-connections", "the tenant has too many connections", retry_after_s=10
            )
        return None

    async def _admit(
        self, request: web.BaseRequest, name: str, api: SocketApi, principal: Principal
    ) -> web.StreamResponse:
        """Ask $connect, answer the handshake, serve."""
        peer = Peer(
            connection_id=secrets.token_urlsafe(15),
            api=name,
            domain=request.host,
            source_ip=request.remote or "",
            user_agent=request.headers.get("User-Agent", ""),
            principal=principal,
            connected_ms=int(self._unix_s() * 1000),
        )
        routes = {route.key: route for route in api.routes}
        offered, chosen = handshake.protocols(request), handshake.PROTOCOL
        try:
            if CONNECT in routes:
                verdict = await self._ask(request, peer, routes[CONNECT])
                if isinstance(verdict, web.Response):
                    return self._refuse(name, verdict)
                chosen = verdict or chosen
            socket = web.WebSocketResponse(
                protocols=[chosen] if chosen in offered else (),
                max_msg_size=api.message_bytes_max + 1,  # aiohttp refuses what is as long as this
                timeout=SHUT_S,
                autoping=False,
                compress=False,  # a deflate context for each connection would take more memory than all else
            )
            await socket.prepare(handshake.offering(request, {chosen}))
        except (asyncio.CancelledError, OSError):
            if CONNECT in routes:  # the client is gone, and the service may believe that it is there
                self._part(peer, routes.get(DISCONNECT), CLOSES[Ending.LOST])
            raise
        connection = self._opened(request, name, api, peer, socket)
        try:
            await self._serve(connection)
        finally:
            del self._connections[peer.connection_id]
            if connection.open.ending is None:  # cancelled: the client is gone, or the process ends
                gone = request.transport is None or request.transport.is_closing()
                connection.open.end(Ending.LOST if gone else Ending.DRAIN)
            try:
                await connection.open.shut(request, SHUT_S)
            finally:
                self._closed(connection)
        return socket

    def _opened(
        self, request: web.BaseRequest, name: str, api: SocketApi, peer: Peer, socket: web.WebSocketResponse
    ) -> Connection:
        now_s = self._monotonic_s()
        expires_s = peer.principal.expires_s
        timing = Timing(
            ping_s=api.ping_s,
            idle_s=api.idle_s,
            duration_s=api.duration_s,
            unread_s=api.unread_s,
            until_s=None if expires_s is None else now_s + expires_s - self._unix_s(),
        )
        opened = OpenSocket(socket, timing, bytes_max=api.push_bytes_max, now_s=now_s)
        connection = Connection(name, api, peer, opened, now_s)
        self._connections[peer.connection_id] = connection
        if self._draining:
            opened.end(Ending.DRAIN)
        self._metrics.opened(name)
        self._log.debug("socket_opened", api=name, connection=peer.connection_id, remote=request.remote)
        return connection

    def _closed(self, connection: Connection) -> None:
        ending = connection.open.ending or Ending.FAILED
        self._metrics.closed(connection.name, ending)
        self._log.debug(
            "socket_ended", api=connection.name, connection=connection.peer.connection_id, ending=ending.value
        )
        self._part(connection.peer, connection.routes.get(DISCONNECT), connection.open.close)

    def _part(self, peer: Peer, route: SocketRoute | None, close: Close) -> None:
        """Let $disconnect be told."""
        if route is None:
            return
        try:
            self._farewells.put_nowait(Farewell(peer=peer, route=route, close=close))
        except asyncio.QueueFull:
            self._metrics.disconnect_told(ok=False)

    async def _ask(self, request: web.BaseRequest, peer: Peer, route: SocketRoute) -> str | web.Response:
        """Return the subprotocol that $connect has chosen, or nothing; or what the client hears instead."""
        occasion = self._occasion(CONNECT, EventType.CONNECT)
        event = connect_event(peer, occasion, request.headers, request.query)
        try:
            async with self._backend.call(_call(route, peer, event)) as reply:
                status, protocol = reply.status, reply.headers.get(handshake.PROTOCOL_HEADER, "")
                await reply.read(CONNECT_BODY_MAX)
        except BackendDown as error:
            return problem(error.status, "connect-failed", "the service could not be asked", retry_after_s=1)
        if 200 <= status < 300:
            return protocol
        if 400 <= status < 500:
            return problem(status, "connect-refused", "the service does not let this client in")
        return problem(502, "connect-failed", "the service failed")

    async def _serve(self, connection: Connection) -> None:
        """Read, answer and write until the connection has ended."""
        opened = connection.open
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(connection))
                working = tasks.create_task(self._work(connection))
                others = [
                    tasks.create_task(opened.write()),
                    tasks.create_task(watch(opened, self._monotonic_s)),
                ]
                await opened.ended.wait()
                reading.cancel()
                if opened.ending in FINISHED:
                    await _finish(connection)
                for task in (working, *others):
                    task.cancel()
        except* Exception:  # noqa: BLE001  # the driver's last line
            self._log.exception("socket_failed", api=connection.name)
            opened.end(Ending.FAILED)

    async def _read(self, connection: Connection) -> None:
        opened = connection.open
        while (message := await opened.receive(self._monotonic_s)) is not None:
            connection.last_active_ms = int(self._unix_s() * 1000)
            now_s = self._monotonic_s()
            if connection.bucket.available(now_s) < 1:
                await self._throttle(connection)
                continue
            connection.bucket.take(1, now_s)
            connection.throttled = 0
            opened.heard.held_up = True
            await connection.queue.put(message)
            opened.heard.held_up = False

    async def _throttle(self, connection: Connection) -> None:
        connection.throttled += 1
        self._metrics.message(connection.name, Answered.THROTTLED)
        if connection.throttled > THROTTLED_MAX:
            connection.open.end(Ending.FLOOD)
        else:
            text = HTTPStatus.TOO_MANY_REQUESTS.phrase
            await connection.open.put(error_message(text, connection.peer.connection_id, _new_id()))

    async def _work(self, connection: Connection) -> None:
        while True:
            message = await connection.queue.get()
            answer = await self._answer(connection, message)
            if answer:
                await connection.open.put(answer)
                self.pushed_to(connection)
            connection.queue.task_done()

    async def _answer(self, connection: Connection, message: str | bytes) -> str | bytes:
        """Return what a client hears of a message: what its route says, or an error."""
        key = route_key(message, tuple(connection.api.select.split(".")), connection.routes)
        occasion = self._occasion(key or "", EventType.MESSAGE)
        text, outcome = HTTPStatus.FORBIDDEN.phrase, Answered.FORBIDDEN
        if key is not None:
            route = connection.routes[key]
            event = message_event(connection.peer, occasion, message)
            try:
                async with self._backend.call(_call(route, connection.peer, event)) as reply:
                    body = await reply.read(connection.api.message_bytes_max)
                text, outcome = _heard(reply.status, body)
                if not text:
                    self._metrics.message(connection.name, outcome)
                    return _as_message(body, reply.headers.get("Content-Type", ""))
            except BackendDown as error:
                self._log.debug("socket_route_failed", api=connection.name, route=key, why=str(error))
                text, outcome = "Internal server error", Answered.FAILED
        self._metrics.message(connection.name, outcome)
        return error_message(text, connection.peer.connection_id, occasion.request_id)

    def _occasion(self, key: str, event: EventType) -> Occasion:
        return Occasion(route_key=key, type=event, request_id=_new_id(), now_ms=int(self._unix_s() * 1000))

    async def _say_farewells(self) -> None:
        while True:
            farewell = await self._farewells.get()
            try:
                told = await self._say(farewell)
            except Exception:  # noqa: BLE001  # the driver's last line
                self._log.exception("socket_disconnect_failed", api=farewell.peer.api)
                told = False
            self._metrics.disconnect_told(ok=told)
            self._farewells.task_done()

    async def _say(self, farewell: Farewell) -> bool:
        """Return whether an upstream has taken the news that a connection is over."""
        peer, close = farewell.peer, farewell.close
        occasion = self._occasion(DISCONNECT, EventType.DISCONNECT)
        event = disconnect_event(peer, occasion, code=close.code, reason=close.reason)
        call = _call(farewell.route, peer, event, idempotent=True)
        try:
            async with asyncio.timeout(FAREWELL_S):
                for attempt in range(1, FAREWELL_TRIES + 1):
                    try:
                        async with self._backend.call(call) as reply:
                            if reply.status < 500:
                                return True
                    except BackendDown:
                        pass
                    if attempt < FAREWELL_TRIES:
                        await asyncio.sleep(
                            full_jitter_s(attempt, base_s=0.2, cap_s=5.0, random=self._random)
                        )
        except TimeoutError:
            pass
        return False


async def _finish(connection: Connection) -> None:
    """Let the messages that were taken be answered."""
    try:
        async with asyncio.timeout(SHUT_S):
            await connection.queue.join()
    except TimeoutError:
        return


def _call(route: SocketRoute, peer: Peer, event: bytes, *, idempotent: bool = False) -> BackendCall:
    return BackendCall(
        upstream=route.upstream,
        method="POST",
        target=route.path,
        principal=peer.principal,
        timeout_s=route.timeout_s,
        body=event,
        headers=JSON,
        idempotent=idempotent,
    )


def _heard(status: int, body: bytes) -> tuple[str, Answered]:
    """Return the error that a client hears for an answer; none for a body that is for the client."""
    if 200 <= status < 300:
        return "", Answered.OK
    if status in {401, 403}:
        return HTTPStatus.FORBIDDEN.phrase, Answered.FORBIDDEN
    if status == 429:
        return HTTPStatus.TOO_MANY_REQUESTS.phrase, Answered.THROTTLED
    if 400 <= status < 500:
        return "" if body else "Bad Request", Answered.FAILED
    return "Internal server error", Answered.FAILED


def _as_message(body: bytes, content_type: str) -> str | bytes:
    """Return a body as a text message, unless it is not text."""
    if content_type.partition(";")[0].strip().lower() == "application/octet-stream":
        return body
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


def _new_id() -> str:
    return secrets.token_urlsafe(12)
