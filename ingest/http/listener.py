"""The HTTP half of a worker: requests through aiohttp's low-level server, to the pipeline.

    POST /v1/telemetry/{stream}                                  identity from the credential
    POST /v1/tenants/{t}/devices/{d}/telemetry/{stream}          gateways, for their devices
    GET  /v1/stream                                              WebSocket, our frames
    GET  /mqtt                                                   WebSocket, MQTT

202 means durable. Errors are problem+json. Nothing of a body that ends early is taken. No wait of a
request is longer than `request_deadline_s`: not for its body, not for its fsync, and not for a peer that
does not read.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
from aiohttp import web

from ingest.authentication import Authenticator, Door
from ingest.counters import Closing, ConnectRefusal, Protocol
from ingest.events import Events
from ingest.http import mqtt_websocket, websocket
from ingest.http.handler import Handler, Server
from ingest.http.idempotency import EXPIRE, KEY_CHARACTERS_MAX, Answered, Idempotency, Known, digest_of
from ingest.http.problem import of_disk_error, of_refusal
from ingest.mqtt.hub import Hub
from ingest.outcome import Outcome
from ingest.pipeline import Pipeline, Producer
from ingest.settings import Http
from ingest.spool.spool import Spool
from ingest.spool.store import SpoolError, Statement
from ingest.submission import Submission
from protocols.http_body import BodyRefused, InflatesToMore, payload_of
from routing.limits.allowance import Allowances
from routing.limits.shared_table import Table
from routing.limits.terms import Over
from routing.tenancy.identity import Identity, Kind, Unauthenticated
from runtime import clock
from runtime.problem import problem

TELEMETRY: Final = "/v1/telemetry/"
TENANTS: Final = "/v1/tenants/"
WEBSOCKETS: Final = {"/v1/stream": "headworks", "/mqtt": "mqtt"}
TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII
)
"""W3C Trace Context 3.2.2."""
SMALL_BYTES: Final = 262_144
"""What takes the event loop a few milliseconds at most to inflate and to cut into lines."""
UNSETTLED: Final = (
    "the disk did not answer in time, so this may be stored or not; "
    "asked again with the same Idempotency-Key, it is stored once"
)


class HttpListener:
    """Serves HTTP and WebSocket on all `http` listeners of a worker."""

    def __init__(
        self,
        *,
        settings: Http,
        worker: int,
        epoch: int,
        pipeline: Pipeline,
        spool: Spool,
        authenticator: Authenticator,
        admits: Callable[[Identity], ConnectRefusal | None],
        allowances: Allowances,
        directory: Table,
        unsettled: Callable[[int, int], bool],
        hub: Hub,
        events: Events,
    ) -> None:
        self.settings = settings
        self.pipeline = pipeline
        self.spool = spool
        self._authenticator = authenticator
        self._admits = admits
        self._allowances = allowances
        self.hub = hub
        self.events = events
        self._keys = Idempotency(
            directory,
            node=spool.node,
            worker=worker,
            epoch=epoch,
            boot=spool.boot,
            unsettled=unsettled,
            full=events.idempotency_full,
            keep_s=settings.idempotency_s,
        )
        self._inflater = ThreadPoolExecutor(1, thread_name_prefix="inflate")
        self._servers: list[Server] = []
        self._carry_mqtt = 0
        self.websockets: set[websocket.StreamSocket] = set()
        self._handlers: set[Handler] = set()
        self.draining = False

    # Connections.

    def protocol_factory(self, door: Door) -> Callable[[], asyncio.BaseProtocol]:
        """Return what makes the connections of a listener."""
        server = Server(self, door)
        self._servers.append(server)
        return server

    def make_request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        """Make a request whose body is bounded."""
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,
            task,
            asyncio.get_running_loop(),
            client_max_size=self.settings.body_bytes_max,
        )

    def connections(self) -> int:
        """Return how many connections are open, but for those that the hub counts."""
        return sum(len(server.connections) for server in self._servers) - self._carry_mqtt

    def count_as(self, handler: Handler, protocol: Protocol) -> None:
        """Count a connection as what it turns out to be: once, and MQTT not at all, as the hub does."""
        if handler.speaks is protocol:
            return
        if handler.speaks is not None:
            self.events.connection_closed(Closing.PEER)
        handler.speaks = protocol
        if protocol is Protocol.MQTT:
            self._carry_mqtt += 1
            self._count_out(handler)
        else:
            self.events.connection_opened(protocol)

    def left(self, handler: Handler) -> None:
        """Count a connection out."""
        self._handlers.discard(handler)
        self._count_out(handler)
        if handler.speaks is Protocol.MQTT:
            self._carry_mqtt -= 1
        elif handler.speaks is not None:
            closing = Closing.DRAINING if self.draining else Closing.PEER
            self.events.connection_closed(handler.closing or closing)

    def _count_out(self, handler: Handler) -> None:
        """Give back the place that a connection has among those of its device and tenant."""
        if handler.counted is not None:
            self._allowances.close_connection(handler.counted.tenant, handler.counted.name)
            handler.counted = None

    def forget_routes(self) -> None:
        """Look every route up again: tenants, devices or plans have changed."""
        for handler in self._handlers:
            for producer in handler.producers.values():
                producer.forget_routes()

    def close_where(self, unwanted: Callable[[Identity], bool], text: str) -> None:
        """Close the connections whose identity is unwanted."""
        for handler in list(self._handlers):
            requests = handler.speaks is Protocol.HTTP
            if requests and any(unwanted(identity) for identity in handler.producers):
                handler.abort(Closing.REVOKED)
        for socket in list(self.websockets):
            if unwanted(socket.producer.identity):
                socket.close(1008, text, Closing.REVOKED)

    def expire(self, now_s: float) -> None:
        """Close WebSockets whose credential is over, and forget old idempotency keys once a minute."""
        for socket in list(self.websockets):
            expires_s = socket.producer.identity.expires_s
            if expires_s is not None and expires_s <= now_s:
                socket.close(1008, "the credential has expired", Closing.REVOKED)
        if int(now_s) % 60 == 0:
            self.spool.store([(EXPIRE, (now_s,))])

    # Requests.

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.path
        handler = request.protocol
        assert isinstance(handler, Handler)
        if path in WEBSOCKETS:
            return await self._websocket(request, handler, WEBSOCKETS[path])
        self.count_as(handler, Protocol.HTTP)
        if request.method == "POST" and path.startswith((TELEMETRY, TENANTS)):
            response = await self._telemetry(request, handler, path)
        elif path.startswith((TELEMETRY, TENANTS)):
            response = problem(
                405, "method-not-allowed", "telemetry is sent with POST", headers={"Allow": "POST"}
            )
        else:
            response = problem(404, "not-found", "there is POST /v1/telemetry/{stream}, /v1/stream and /mqtt")
        if self.draining:
            response.force_close()
        return response

    async def _telemetry(self, request: web.BaseRequest, handler: Handler, path: str) -> web.Response:
        if self.draining:
            return of_refusal(Submission(Outcome.DRAINING))
        producer = self._producer(request, handler)
        if isinstance(producer, web.Response):
            return producer
        names = self._names(path, producer.identity)
        if names is None:
            return problem(404, "bad-topic", "the path names no tenant, device and stream")
        try:
            body = await self._body(request)
        except BodyRefused as refused:
            response = problem(refused.status, refused.slug, refused.text)
            if not request.content.is_eof():
                response.force_close()
            return response
        key = request.headers.get("Idempotency-Key")
        trace = request.headers.get("traceparent", "")
        if trace and TRACEPARENT.fullmatch(trace) is None:
            trace = ""  # W3C Trace Context 3.2.2: what does not parse is left out, and the request goes on
        if key is None:
            return await self._submit(producer, names, body, trace)
        if not (1 <= len(key) <= KEY_CHARACTERS_MAX and key.isprintable()):
            text = f"a key has 1 to {KEY_CHARACTERS_MAX} printable characters"
            return problem(400, "bad-idempotency-key", text)
        return await self._submit_once(producer, names, body, key, trace)

    def _producer(self, request: web.BaseRequest, handler: Handler) -> Producer | web.Response:
        """Return who makes the request, or its refusal."""
        peer = handler.peer
        assert peer is not None
        headers = request.headers
        try:
            identity = self._authenticator.of_http(
                handler.door, peer, headers.get("Authorization"), headers.get("X-API-Key")
            )
        except Unauthenticated as error:
            self.events.connect_refused(ConnectRefusal.CREDENTIALS, str(error), peer.address)
            return problem(401, "unauthenticated", str(error), headers={"WWW-Authenticate": "Bearer"})
        producer = handler.producers.get(identity)
        if producer is not None:
            return producer
        refusal = self._admits(identity)
        if refusal is None and handler.counted is None and identity.kind is not Kind.ANYONE:
            over = self._allowances.open_connection(identity.tenant, identity.name)
            if over is not Over.NOBODY:
                device = over is Over.DEVICE
                cap = ConnectRefusal.DEVICE_CONNECTIONS if device else ConnectRefusal.TENANT_CONNECTIONS
                self.events.connect_refused(cap, over.name, peer.address)
                return problem(
                    429, "too-many-connections", f"the {over.name.lower()} has too many connections"
                )
            handler.counted = identity
        if refusal is not None:
            self.events.connect_refused(refusal, "", peer.address)
            return problem(403, refusal.value.replace("_", "-"), "this identity is not admitted")
        if len(handler.producers) >= 64:  # a proxy with many tokens on one connection
            handler.producers.clear()
        producer = handler.producers[identity] = Producer(identity, can_refuse=True)
        self._handlers.add(handler)
        return producer

    def _names(self, path: str, identity: Identity) -> tuple[str, str, str] | None:
        """Return (tenant, device, stream) of a path."""
        if path.startswith(TELEMETRY):
            if identity.kind is Kind.ANYONE:
                return None  # without an identity the path must name the device
            return identity.tenant, identity.name, path[len(TELEMETRY) :]
        parts = path.split("/", 7)  # "", v1, tenants, T, devices, D, telemetry, stream
        if len(parts) != 8 or parts[4] != "devices" or parts[6] != "telemetry":
            return None
        return parts[3], parts[5], parts[7]

    async def _body(self, request: web.BaseRequest) -> bytes:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            if request.content.is_eof():  # it came with its headers: this waits for nothing
                body = await request.read()
            else:
                async with asyncio.timeout(self.settings.request_deadline_s):
                    body = await request.read()
        except TimeoutError as error:
            raise BodyRefused(408, "slow-body", "the body did not come in time") from error
        except web.HTTPRequestEntityTooLarge as error:
            limit = self.settings.body_bytes_max
            raise BodyRefused(413, "body-too-large", f"a body has at most {limit} bytes") from error
        except web.RequestPayloadError as error:
            raise BodyRefused(400, "bad-body", "the body is not what its headers say") from error
        return await self._payload(request, body)

    async def _payload(self, request: web.BaseRequest, body: bytes) -> bytes:
        """Undo encodings: of what is small here, of what is large, or becomes so, on a thread beside."""
        headers = request.headers
        read = functools.partial(
            payload_of, headers.get("Content-Type", ""), headers.get("Content-Encoding", ""), body
        )
        limit = self.settings.inflated_bytes_max
        if len(body) <= SMALL_BYTES:
            try:
                return read(inflated_bytes_max=min(limit, SMALL_BYTES))
            except InflatesToMore:
                if limit <= SMALL_BYTES:
                    raise
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inflater, functools.partial(read, inflated_bytes_max=limit))

    async def _submit(
        self, producer: Producer, names: tuple[str, str, str], body: bytes, trace: str
    ) -> web.Response:
        waiter = Durable()
        submission = self.pipeline.submit(
            producer, names, body, clock.monotonic_s(), waiter=waiter, trace=trace
        )
        if submission.outcome is not Outcome.ACCEPTED:
            return of_refusal(submission)
        return await self._durable(waiter, submission)

    async def _durable(self, waiter: Durable, submission: Submission) -> web.Response:
        """Answer once it is durable, or say within the deadline that nobody can know."""
        self.spool.answer(waiter, b"202")
        try:
            await waiter.wait(self.settings.request_deadline_s)
        except SpoolError:
            return of_disk_error()
        except TimeoutError:
            self.events.request_unsettled()
            return problem(503, "unsettled", UNSETTLED)
        return accepted(Answered(submission.group, submission.first_index, submission.count))

    async def _submit_once(
        self, producer: Producer, names: tuple[str, str, str], body: bytes, key: str, trace: str
    ) -> web.Response:
        now_s = clock.unix_s()
        digest = digest_of(names, body)
        known, answered, record_key = self._keys.begin(producer.identity, key, digest, now_s)
        if known is Known.OTHER_REQUEST:
            return problem(422, "idempotency-key-reused", "the key was used for another stream or body")
        if known is Known.UNDER_WAY:
            return problem(
                409, "idempotency-key-under-way", "the first request is under way", retry_after_s=1
            )
        if answered is not None:
            return accepted(answered)
        rows: list[Statement] = []

        def also(group: str, first: int, count: int) -> list[Statement]:
            number = int(group.rpartition("-")[2])
            rows.append(self._keys.statement(record_key, digest, (number, first, count), now_s))
            return rows

        waiter = Durable()
        submission = self.pipeline.submit(
            producer, names, body, clock.monotonic_s(), waiter=waiter, also=also, trace=trace
        )
        if submission.outcome is not Outcome.ACCEPTED:
            self._keys.abandon(record_key)
            return of_refusal(submission)
        # The key is settled by the commit, not by this task, which ends if the client goes away.
        waiter.then = lambda ok: (
            self._keys.done(record_key, rows[0]) if ok else self._keys.abandon(record_key)
        )
        return await self._durable(waiter, submission)

    async def _websocket(self, request: web.BaseRequest, handler: Handler, kind: str) -> web.StreamResponse:
        """Carry a WebSocket until it ends, or say why not."""
        refusal = self._stays_http(request)
        if refusal is None and kind == "mqtt":
            return await mqtt_websocket.serve(request, handler, self.hub)
        if refusal is None:
            producer = self._producer(request, handler)
            if isinstance(producer, Producer):
                return await websocket.serve(request, handler, producer)
            refusal = producer
        self.count_as(handler, Protocol.HTTP)
        return refusal

    def _stays_http(self, request: web.BaseRequest) -> web.Response | None:
        if self.draining:
            return of_refusal(Submission(Outcome.DRAINING))
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return problem(426, "upgrade-required", "this is a WebSocket", headers={"Upgrade": "websocket"})
        return None

    # The end.

    async def start(self) -> None:
        """Make ready; aiohttp needs a running loop only."""

    async def begin_drain(self, *, deadline_s: float) -> None:
        """Close WebSockets with 1012, answer what is under way, close the rest."""
        self.draining = True
        for socket in list(self.websockets):
            socket.close(1012, "shutting down", Closing.DRAINING)
        for server in self._servers:
            server.pre_shutdown()
        for server in self._servers:
            await server.shutdown(deadline_s)
        self._inflater.shutdown(wait=False, cancel_futures=True)


class Durable:
    """Waits for the fsync of one submission. `then(ok)` is called even when nobody waits any more."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()
        self.then: Callable[[bool], None] | None = None

    async def wait(self, deadline_s: float) -> None:
        """Return when it is durable.

        Raises `SpoolError` when the disk refused and it was withdrawn, `TimeoutError` after `deadline_s`.
        """
        deadline = self._loop.call_later(deadline_s, self._give_up)
        try:
            await self._future
        finally:
            deadline.cancel()

    def _give_up(self) -> None:
        if not self._future.done():
            self._future.set_exception(TimeoutError())

    def durable(self, reply: bytes) -> None:
        """Hear that it is durable."""
        del reply
        if self.then is not None:
            self.then(True)  # the argument's name is in the attribute
        if not self._future.done():
            self._future.set_result(None)

    def lost(self, error: SpoolError) -> bool:
        """Withdraw it: the client is told, and will try again."""
        if self.then is not None:
            self.then(False)  # the same
        if not self._future.done():
            self._future.set_exception(error)
        return True


def accepted(answered: Answered) -> web.Response:
    """Return 202 with the ids of the records."""
    group, first = answered.group, answered.first_index
    ids = [f"{group}-{index}" for index in range(first, first + answered.count)]
    return web.Response(
        status=202,
        body=msgspec.json.encode({"accepted": answered.count, "ids": ids}),
        content_type="application/json",
    )
