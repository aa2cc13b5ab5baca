"""`/v1/live`: live telemetry for dashboards, filtered, at their rate, conflated when they read slowly.

    client:   {"subscribe": {"devices": ["pump-*"], "metrics": ["temperature"], "every_ms": 500}}
    gateway:  {"subscribed": {...}}, then {"values": [{device, stream, metric, ts, value}, ...],
              "conflated": n, "dropped": n} at most every `every_ms`; {"tail": "lost"} and {"tail": "live"}

- There is one stream a tenant from the service `upstream`, while somebody listens and `TAIL_LINGER_S` longer.
  It is opened again with back-off after what came last (`after`), so a break costs time and not values.
- A dashboard sees its own tenant. An operator names one.
- Live means now: there are no values from before the subscription; ask the data API for those.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from routing.gateway import handshake
from routing.gateway.backend import Backend, BackendCall, BackendDown
from routing.gateway.conflation import KEYS_MAX, Conflation, Reading, Subscription, Value
from routing.gateway.open_socket import Close, Ending, OpenSocket, Timing, watch
from routing.gateway.socket_metrics import SocketMetrics
from routing.limits.bucket import TokenBucket
from routing.resilience.backoff import full_jitter_s
from routing.tenancy.identity import Credential, Unauthenticated
from routing.tenancy.principal import EVERY_TENANT, Principal
from runtime import clock
from runtime.problem import problem
from runtime.settings_file import Section

LABEL: Final = "live"
"""The `api` of a dashboard in the metrics of WebSockets."""
COMMAND_BYTES_MAX: Final = 32 * 1024
COMMANDS_PER_S: Final = 10
OUTBOX_BYTES: Final = 256 * 1024
LINE_BYTES_MAX: Final = 2 << 20
TAIL_LINGER_S: Final = 5.0
STREAM_S: Final = 60.0
"""A stream that says nothing for so long is opened again; the service sends an empty line more often."""
BACKOFF_BASE_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
SHUT_S: Final = 5.0
SPREAD: Final = 0.7


class LiveSettings(Section, frozen=True):
    """How live telemetry is served: `[live]` of the gateway's settings."""

    upstream: str = "data"
    path: str = "/tail"
    tails_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    subscribers_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    subscribers_per_tenant_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 200
    ping_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 30.0
    duration_s: Annotated[float, msgspec.Meta(ge=0.1, le=604_800)] = 86_400.0
    unread_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 30.0
    origins: list[str] = msgspec.field(default_factory=list)


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a dashboard may say; a new subscription replaces the one before."""

    subscribe: Subscription


class Telemetry(msgspec.Struct, frozen=True):
    """The payload of a record, as far as a dashboard is told of it."""

    ts: int
    metrics: dict[str, Value]


class Record(msgspec.Struct, frozen=True):
    """A line of the stream. A raw stream has text for a payload, which has no metrics."""

    id: str
    tenant: str
    device: str
    stream: str
    payload: msgspec.Raw


_COMMAND: Final = msgspec.json.Decoder(Command)
_RECORD: Final = msgspec.json.Decoder(Record)
_TELEMETRY: Final = msgspec.json.Decoder(Telemetry)
_ENCODE: Final = msgspec.json.Encoder().encode


class Subscriber:
    """One dashboard: its socket, and what it listens to."""

    __slots__ = ("conflation", "open", "principal", "tail", "wake")

    def __init__(self, principal: Principal, opened: OpenSocket) -> None:
        self.principal = principal
        self.open = opened
        self.conflation: Conflation | None = None
        self.tail: Tail | None = None
        self.wake = asyncio.Event()


class Tail:
    """The stream of one tenant, and who listens to it."""

    __slots__ = ("after", "listeners", "live", "nobody_since_s", "tenant")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.listeners: set[Subscriber] = set()
        self.after = ""
        self.live = False
        self.nobody_since_s = 0.0


class Live:
    """All dashboards of this process. `run` must be running for them to see anything."""

    def __init__(
        self,
        settings: LiveSettings,
        *,
        backend: Backend,
        metrics: SocketMetrics,
        log: Any,
        random: Callable[[], float],
        monotonic_s: Callable[[], float] = clock.monotonic_s,
        unix_s: Callable[[], float] = clock.unix_s,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._metrics = metrics
        self._log = log
        self._random = random
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s
        self._subscribers: set[Subscriber] = set()
        self._by_tenant: Counter[str] = Counter()
        self._tails: dict[str, Tail] = {}
        self._wanted: asyncio.Queue[Tail] = asyncio.Queue()  # of `_tails`, which have a limit
        self._draining = False
        self._none_left = asyncio.Event()
        self._none_left.set()

    async def run(self) -> None:
        """Hold the streams that are listened to, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tail = await self._wanted.get()
                tasks.create_task(self._hold(tail))

    def status(self) -> dict[str, Any]:
        """Return how many dashboards there are, and the streams held for them."""
        return {
            "subscribers": len(self._subscribers),
            "tails": {
                tail.tenant: {"listeners": len(tail.listeners), "live": tail.live}
                for tail in self._tails.values()
            },
        }

    def end_refused(self, refused: Callable[[Principal], bool]) -> int:
        """End the dashboards of callers who would no longer be let in; return how many."""
        doomed = [each for each in self._subscribers if refused(each.principal)]
        for subscriber in doomed:
            subscriber.open.end(Ending.REFUSED)
        return len(doomed)

    async def drain(self, deadline_s: float) -> None:
        """Close all with 1012, spread so that they do not come back all at once; take no new ones."""
        self._draining = True
        opened = list(self._subscribers)
        try:
            async with asyncio.timeout(deadline_s):
                for position, subscriber in enumerate(opened):
                    if position:
                        await asyncio.sleep(deadline_s * SPREAD / len(opened))
                    subscriber.open.end(Ending.DRAIN)
                await self._none_left.wait()
        except TimeoutError:
            self._log.warning("live_not_drained", subscribers=len(self._subscribers))

    async def handle(self, request: web.BaseRequest, principal: Principal) -> web.StreamResponse:
        """Answer the handshake of a dashboard, and serve it until it is over."""
        try:
            request = handshake.with_credentials(request)
            offered = handshake.protocols(request)
        except Unauthenticated as error:
            return self._refuse(problem(400, "bad-handshake", str(error)))
        refusal = self._refusal(request, principal, offered)
        if refusal is not None:
            return self._refuse(refusal)
        socket = web.WebSocketResponse(
            protocols=[handshake.PROTOCOL] if handshake.PROTOCOL in offered else (),
            max_msg_size=COMMAND_BYTES_MAX + 1,
            timeout=SHUT_S,
            autoping=False,
            compress=False,
        )
        self._by_tenant[principal.tenant] += 1
        try:
            await socket.prepare(handshake.offering(request, {handshake.PROTOCOL}))
            return await self._serve_on(socket, request, principal)
        finally:
            self._by_tenant[principal.tenant] -= 1
            if not self._by_tenant[principal.tenant]:
                del self._by_tenant[principal.tenant]

    def _refuse(self, response: web.Response) -> web.Response:
        self._metrics.handshake_refused(LABEL, response.status)
        return response

    def _refusal(
        self, request: web.BaseRequest, principal: Principal, offered: list[str]
    ) -> web.Response | None:
        settings = self._settings
        if self._draining:
            return problem(503, "draining", "the gateway is about to restart", retry_after_s=1)
        if not handshake.is_upgrade(request):
            return problem(426, "upgrade-required", "this is a WebSocket", headers={"Upgrade": "websocket"})
        if not web.WebSocketResponse(protocols=offered).can_prepare(request).ok:
            return problem(400, "bad-handshake", "the handshake is not one of RFC 6455, version 13")
        if not handshake.may_connect(request.headers.get("Origin"), principal.credential, settings.origins):
            return problem(403, "foreign-origin", "pages of this origin may not connect")
        if "live:read" not in principal.scopes:
            return problem(403, "missing-scope", "this asks for the scope live:read")
        if self._by_tenant.total() >= settings.subscribers_max:
            return problem(503, "connections-full", "there are too many dashboards", retry_after_s=10)
        if self._by_tenant[principal.tenant] >= settings.subscribers_per_tenant_max:
            detail = "the tenant has too many dashboards"
            return problem(429, "too-many-connections", detail, retry_after_s=10)
        return None

    async def _serve_on(
        self, socket: web.WebSocketResponse, request: web.BaseRequest, principal: Principal
    ) -> web.StreamResponse:
        now_s = self._monotonic_s()
        settings = self._settings
        timing = Timing(
            ping_s=settings.ping_s,
            idle_s=settings.duration_s,  # a dashboard listens, and need say nothing
            duration_s=settings.duration_s,
            unread_s=settings.unread_s,
            until_s=None if principal.expires_s is None else now_s + principal.expires_s - self._unix_s(),
        )
        subscriber = Subscriber(principal, OpenSocket(socket, timing, bytes_max=OUTBOX_BYTES, now_s=now_s))
        self._subscribers.add(subscriber)
        self._none_left.clear()
        if self._draining:
            subscriber.open.end(Ending.DRAIN)
        self._metrics.opened(LABEL)
        try:
            await self._serve(subscriber)
        finally:
            self._subscribers.remove(subscriber)
            self._listen(subscriber, None)
            if subscriber.open.ending is None:  # cancelled: the client is gone, or the process ends
                gone = request.transport is None or request.transport.is_closing()
                subscriber.open.end(Ending.LOST if gone else Ending.DRAIN)
            try:
                await subscriber.open.shut(request, SHUT_S)
            finally:
                self._metrics.closed(LABEL, subscriber.open.ending or Ending.FAILED)
                if not self._subscribers:
                    self._none_left.set()
        return socket

    async def _serve(self, subscriber: Subscriber) -> None:
        opened = subscriber.open
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(step)
                    for step in (
                        self._read(subscriber),
                        self._show(subscriber),
                        opened.write(),
                        watch(opened, self._monotonic_s),
                    )
                ]
                await opened.ended.wait()
                for task in running:
                    task.cancel()
        except* Exception:  # noqa: BLE001  # the driver's last line
            self._log.exception("live_failed")
            opened.end(Ending.FAILED)

    async def _read(self, subscriber: Subscriber) -> None:
        opened = subscriber.open
        now_s = self._monotonic_s()
        bucket = TokenBucket(rate_per_s=COMMANDS_PER_S, burst=COMMANDS_PER_S, now_s=now_s)
        while (message := await opened.receive(self._monotonic_s)) is not None:
            if bucket.take(1, self._monotonic_s()) > 0:
                opened.end(Ending.FLOOD)
                return
            try:
                subscription = _COMMAND.decode(message).subscribe
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                opened.end(Ending.COMMAND, Close(1008, f"not a subscription: {error}"[:120]))
                return
            tenant = subscription.tenant or subscriber.principal.tenant
            if tenant == EVERY_TENANT:
                opened.end(Ending.COMMAND, Close(1008, "an operator names a tenant"))
                return
            if not subscriber.principal.may_act_for(tenant):
                opened.end(Ending.REFUSED, Close(1008, "foreign tenant"))
                return
            if tenant not in self._tails and len(self._tails) >= self._settings.tails_max:
                opened.end(Ending.COMMAND, Close(1013, "too many streams"))
                return
            now_s = self._monotonic_s()
            subscriber.conflation = Conflation(subscription, keys_max=KEYS_MAX, now_s=now_s)
            self._listen(subscriber, tenant)
            live = subscriber.tail is not None and subscriber.tail.live
            told = msgspec.structs.replace(subscription, tenant=tenant)
            await opened.put(_ENCODE({"subscribed": told, "tail": "live" if live else "lost"}).decode())

    def _listen(self, subscriber: Subscriber, tenant: str | None) -> None:
        """Let a dashboard listen to the stream of a tenant, or to none."""
        if subscriber.tail is not None:
            subscriber.tail.listeners.discard(subscriber)
            if not subscriber.tail.listeners:
                subscriber.tail.nobody_since_s = self._monotonic_s()
            subscriber.tail = None
        if tenant is not None:
            tail = self._tails.get(tenant)
            if tail is None:
                tail = self._tails[tenant] = Tail(tenant)
                self._wanted.put_nowait(tail)
            tail.listeners.add(subscriber)
            subscriber.tail = tail
        self._metrics.subscribers.set(sum(len(tail.listeners) for tail in self._tails.values()))

    async def _show(self, subscriber: Subscriber) -> None:
        """Send a batch when one is due, and the one before has been taken by the network."""
        opened = subscriber.open
        while True:
            await subscriber.wake.wait()
            subscriber.wake.clear()
            while (conflation := subscriber.conflation) is not None:
                due_s = conflation.due_in_s(self._monotonic_s())
                if due_s is None:
                    break
                await asyncio.sleep(due_s)
                await opened.written()
                if subscriber.conflation is not conflation:
                    continue
                batch = conflation.batch(self._monotonic_s())
                self._metrics.shown(len(batch.values), batch.conflated, batch.dropped)
                await opened.put(_ENCODE(batch).decode())

    async def _hold(self, tail: Tail) -> None:
        """Keep the stream of a tenant open while somebody listens."""
        self._metrics.tails.inc()
        try:
            async with asyncio.TaskGroup() as tasks:
                streaming = tasks.create_task(self._stream_again(tail))
                while True:
                    await asyncio.sleep(1.0)
                    if tail.listeners:
                        continue
                    if self._monotonic_s() - tail.nobody_since_s >= TAIL_LINGER_S:
                        del self._tails[
                            tail.tenant
                        ]  # before anything is awaited: who comes now gets a new one
                        streaming.cancel()
                        break
        finally:
            if self._tails.get(tail.tenant) is tail:
                del self._tails[tail.tenant]
            self._metrics.tails.dec()

    async def _stream_again(self, tail: Tail) -> None:
        failures = 0
        while True:
            came = False
            try:
                came = await self._stream(tail)
                why = "the stream ended"
            except BackendDown as error:
                why = str(error)
            except TimeoutError:
                why = "the stream was silent"
            except Exception:  # noqa: BLE001  # the driver's last line
                self._log.exception("live_tail_broken", tenant=tail.tenant)
                why = "internal error"
            failures = 1 if came or tail.live else failures + 1
            self._tell(tail, live=False)
            self._metrics.tail_failures.inc()
            self._log.info("live_tail_lost", tenant=tail.tenant, why=why, failures=failures)
            await asyncio.sleep(
                full_jitter_s(failures, base_s=BACKOFF_BASE_S, cap_s=BACKOFF_MAX_S, random=self._random)
            )

    async def _stream(self, tail: Tail) -> bool:
        """Read the stream until it ends; return whether anything came."""
        query = {"tenant": tail.tenant, **({"after": tail.after} if tail.after else {})}
        call = BackendCall(
            upstream=self._settings.upstream,
            method="GET",
            target=f"{self._settings.path}?{urlencode(query)}",
            principal=reader_of(tail.tenant),
            timeout_s=STREAM_S,
            headers={"Accept": "application/x-ndjson"},
            idempotent=True,
        )
        came = False
        rest = b""
        async with self._backend.call(call) as reply:
            if reply.status != 200:
                raise BackendDown(f"the service answers {reply.status}")
            self._tell(tail, live=True)
            async for chunk in reply.chunks():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LINE_BYTES_MAX:
                    raise BackendDown("a line without end")
                came = True
                self._take(tail, lines)
        return came

    def _take(self, tail: Tail, lines: list[bytes]) -> None:
        for line in lines:
            if not line.strip():
                continue
            try:
                record = _RECORD.decode(line)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                self._metrics.bad_records.inc()
                continue
            if record.tenant != tail.tenant:
                self._metrics.bad_records.inc()
                self._log.error("live_foreign_record", tenant=tail.tenant)
                continue
            tail.after = record.id
            reading = reading_of(record)
            if reading is not None:
                self._give(tail, reading)

    def _give(self, tail: Tail, reading: Reading) -> None:
        for subscriber in tail.listeners:
            conflation = subscriber.conflation
            if conflation is not None and conflation.take(reading):
                subscriber.wake.set()

    def _tell(self, tail: Tail, *, live: bool) -> None:
        """Tell who listens that the stream has come or gone."""
        if tail.live == live:
            return
        tail.live = live
        text = _ENCODE({"tail": "live" if live else "lost"}).decode()
        for subscriber in tail.listeners:
            subscriber.open.offer(text)


def reader_of(tenant: str) -> Principal:
    """Return the gateway itself, as it reads for all dashboards of a tenant."""
    return Principal(
        tenant=tenant,
        name="headworks-live",
        scopes=frozenset({"telemetry:read"}),
        credential=Credential.JWT,
    )


def reading_of(record: Record) -> Reading | None:
    """Return what dashboards see of a record, or None when it has no metrics."""
    try:
        telemetry = _TELEMETRY.decode(record.payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return Reading(device=record.device, stream=record.stream, ts=telemetry.ts, metrics=telemetry.metrics)
