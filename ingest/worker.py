"""The composition root of one worker: makes its parts, runs them, and drains them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ingest.authentication import Authenticator
from ingest.counters import Closing
from ingest.delivery.shipper import Shipper
from ingest.delivery.sink import Poison, Sink
from ingest.delivery.sinks import make_sink
from ingest.doors import Doors
from ingest.events import Events
from ingest.gate import Gate
from ingest.http import idempotency
from ingest.http.listener import HttpListener
from ingest.limits import PipelineLimits, SpoolLimits
from ingest.membership import Membership
from ingest.mqtt.hub import Hub, HubLimits
from ingest.mqtt.sessions import READ_SESSIONS
from ingest.mqtt.sockets import Sockets
from ingest.node_memory import MESSAGE_BYTES_MAX, Gauge, NodeMemory, WorkerState
from ingest.order import Order
from ingest.pipeline import Pipeline
from ingest.replay import Replayer
from ingest.routes import StreamRule, StreamRules
from ingest.settings import Jwt, Settings
from ingest.spool.reader import Reader
from ingest.spool.spool import Spool, State
from ingest.spool.store import Committed, SpoolError, Store
from protocols.mqtt.limits import SessionLimits
from protocols.mqtt.reason import ReasonCode
from routing.limits.allowance import Allowances, forget_worker
from routing.tenancy.identity import Identity, Unauthenticated
from routing.tenancy.jwt import JwksError, JwtVerifier
from routing.tenancy.registry import Registry, RegistryError
from runtime import clock
from runtime.settings_file import SettingsError
from runtime.tls.material import TlsFiles, TlsMaterial
from runtime.tls.store import TlsStore

TICK_S: Final = 1.0
REGISTRY_POLL_S: Final = 0.5
LETTERS_TICKS: Final = 10
KEY_USE_TICKS: Final = 5
LAG_TICK_S: Final = 0.1
SETTLE_S: Final = 0.25
"""How long deletions of what is delivered wait for a group to be committed with."""
HELD_GROUPS_MAX: Final = 16
"""How many groups' worth of publishes may wait for room in the spool."""
JWKS_REFETCH_S: Final = 5.0
JWKS_DEADLINE_S: Final = 10.0


class WorkerContext(msgspec.Struct, frozen=True):
    """What the supervisor gives every worker."""

    index: int
    settings: Settings
    memory: NodeMemory
    node_secret: bytes
    log: Any


class Worker:
    """One worker process. `run` returns when it was told to drain."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._settings = settings = context.settings
        self._memory = memory = context.memory
        self._index = index = context.index
        self._loop = asyncio.get_running_loop()
        self._gauges = memory.gauges(index)
        self._events = Events(memory.counters(index), context.log)
        self._events.worker_started()
        for table in (memory.devices, memory.tenants):
            if self._gauges[Gauge.EPOCH] > 1:
                forget_worker(table, index)
        data_dir = Path(settings.node.data_dir)
        path = data_dir / f"worker-{index}" / "spool.db"
        self._store = Store(path)
        self._reader = Reader(path)
        self._inspector = Reader(path)  # the shipper's own is in use on another thread
        self._registry = Registry(data_dir / "registry.db")
        self._membership = Membership(
            settings, self._registry, is_revoked=self._is_revoked, events=self._events
        )
        self._order = Order(memory.homes(index), memory.progress(), worker=index, spool=self._store.id)
        self._spool = self._make_spool()
        self._order.start(self._spool.last_committed, self._store.settled())
        self._allowances = Allowances(
            devices=memory.devices,
            tenants=memory.tenants,
            terms=self._membership.terms,
            worker=index,
            workers=memory.workers,
            idle_max=settings.memory.devices_max,
        )
        self._pipeline = self._make_pipeline()
        self._pipeline.letters, self._pipeline.letters_bytes = self._inspector.letters()
        self._tls = self._make_tls()
        self._jwt = _make_jwt(settings.jwt) if _uses_jwt(settings) else None
        self._authenticator = Authenticator(
            certificate=self._membership.of_certificate,
            jwt=self._jwt.identity if self._jwt is not None else None,
            api_key=self._membership.of_key,
        )
        self._hub = self._make_hub()
        self._hub.load_sessions(self._store.rows(READ_SESSIONS))
        self._sockets = Sockets(self._loop, linger_s=settings.mqtt.linger_s)
        self._http = HttpListener(
            settings=settings.http,
            worker=index,
            epoch=int(self._gauges[Gauge.EPOCH]),
            pipeline=self._pipeline,
            spool=self._spool,
            authenticator=self._authenticator,
            admits=self._membership.refusal_of,
            allowances=self._allowances,
            directory=memory.idempotency,
            unsettled=memory.unsettled,
            hub=self._hub,
            events=self._events,
        )
        # Before READY: until then, what the last worker of this index had claimed counts as under way.
        idempotency.load(memory.idempotency, self._reader.keys(), clock.unix_s())
        self._gate = Gate(
            rate_per_s=settings.accept.rate_per_s,
            lag_max_s=settings.accept.loop_lag_max_s,
            connections_max=settings.accept.connections_max,
            now_s=clock.monotonic_s(),
        )
        self._shipper = Shipper(
            self._spool,
            self._reader,
            order=self._order,
            after=0,
            delivered=self._delivered,
            events=self._events,
        )
        self._sink: Sink = make_sink(
            settings.sink, data_dir=data_dir, settled=self._shipper.settled, events=self._events
        )
        self._replayer = Replayer(self._inspector, self._pipeline, self._spool)
        self._doors = Doors(
            settings,
            gate=self._gate,
            hub=self._hub,
            sockets=self._sockets,
            http=self._http,
            tls=self._tls,
            events=self._events,
        )
        self._drained = asyncio.Event()

    # Making the parts.

    def _make_spool(self) -> Spool:
        section = self._settings.spool
        return Spool(
            self._store,
            node=self._settings.node.name,
            limits=SpoolLimits(
                bytes_max=section.bytes_max,
                age_max_s=section.age_max_s,
                group_bytes_max=section.group_bytes_max,
                fresh_bytes_max=self._settings.sink.pending_bytes_max,
                settle_s=SETTLE_S,
            ),
            durable=self._order.committed,
            committed=self._committed,
            moved=self._spool_moved,
        )

    def _make_pipeline(self) -> Pipeline:
        settings = self._settings
        rules = [
            StreamRule(stream.name, stream.kind == "raw", stream.payload_bytes_max)
            for stream in settings.streams
        ]
        return Pipeline(
            spool=self._spool,
            order=self._order,
            streams=StreamRules(rules, default=StreamRule("", raw=False, payload_bytes_max=256 * 1024)),
            allowances=self._allowances,
            admits=self._membership.admits,
            tenant_index=self._memory.tenant_index,
            events=self._events,
            limits=PipelineLimits(
                routes_max=settings.mqtt.routes_max,
                records_max=10_000,
                group_bytes_max=settings.spool.group_bytes_max,
                dead_letters_max=settings.spool.dead_letters_max,
                dead_letters_bytes_max=settings.spool.dead_letters_bytes_max,
                refused_kept_per_s=max(1.0, settings.spool.refused_kept_per_s),
                refused_kept_bytes_max=settings.spool.refused_kept_bytes_max,
                refuse_when_full=settings.spool.full == "refuse",
            ),
        )

    def _make_tls(self) -> TlsStore | None:
        settings = self._settings
        if all(listener.tls == "off" for listener in settings.listeners):
            return None
        store = TlsStore(
            tls_files(settings), node_secret=self._context.node_secret, reloaded=self._tls_reloaded
        )
        self._gauge_tls(store.current)
        return store

    def _make_hub(self) -> Hub:
        mqtt = self._settings.mqtt
        return Hub(
            worker=self._index,
            epoch=int(self._gauges[Gauge.EPOCH]),
            loop=self._loop,
            spool=self._spool,
            pipeline=self._pipeline,
            authenticator=self._authenticator,
            admits=self._membership.refusal_of,
            allowances=self._allowances,
            directory=self._memory.sessions,
            post=self._memory.post,
            events=self._events,
            session_limits=SessionLimits(
                packet_bytes_max=mqtt.packet_bytes_max,
                connect_bytes_max=mqtt.connect_bytes_max,
                receive_maximum=mqtt.receive_maximum,
                topic_alias_maximum=mqtt.topic_alias_maximum,
                topic_levels_max=mqtt.topic_levels_max,
                topic_bytes_max=mqtt.topic_bytes_max,
                client_id_bytes_max=mqtt.client_id_bytes_max,
                user_properties_max=mqtt.user_properties_max,
                keep_alive_s_max=mqtt.keep_alive_s_max,
                session_expiry_s_max=mqtt.session_expiry_s_max,
            ),
            limits=HubLimits(
                connect_deadline_s=mqtt.connect_deadline_s,
                close_deadline_s=mqtt.close_deadline_s,
                takeover_deadline_s=mqtt.takeover_deadline_s,
                sessions_max=self._settings.memory.sessions_max,
                wills_max=mqtt.wills_max,
                held_bytes_max=HELD_GROUPS_MAX * self._settings.spool.group_bytes_max,
            ),
        )

    def _is_revoked(self, fingerprint: str) -> bool:
        return self._tls is not None and fingerprint in self._tls.current.revoked

    # What the parts report.

    def _committed(self, commit: Committed) -> None:
        self._events.committed(commit.bytes, commit.seconds)
        self._events.acknowledged(commit.waited_s, commit.records)
        for tenant, records in commit.tenants.items():
            self._events.publishes(self._memory.tenant_index(tenant), records)

    def _spool_moved(self, was: State, state: State, error: SpoolError | None) -> None:
        self._events.spool_moved(was, state, error)
        if state is State.BROKEN:
            self._gauge_spool()

    def _delivered(self, tenants: dict[str, int], poison: Sequence[Poison]) -> None:
        indexes: dict[int, int] = {}
        for tenant, records in tenants.items():
            index = self._memory.tenant_index(tenant)
            indexes[index] = indexes.get(index, 0) + records
        for letter in poison:
            index = self._memory.tenant_index(letter.tenant)
            indexes[index] -= 1
            self._events.dead_lettered(index, letter.reason)
        self._events.delivered(indexes)

    def _tls_reloaded(self, material: TlsMaterial | None, error: str | None) -> None:
        self._events.tls_reloaded(error)
        self._gauges[Gauge.TLS_RELOAD_FAILED] = error is not None
        if material is not None:
            self._gauge_tls(material)
            self._close_unwanted(
                lambda identity: identity.fingerprint in material.revoked, "the certificate was revoked"
            )

    def _close_unwanted(self, unwanted: Callable[[Identity], bool], text: str) -> None:
        self._hub.close_where(unwanted, Closing.REVOKED, ReasonCode.NOT_AUTHORIZED, text)
        self._http.close_where(unwanted, text)

    # Running.

    async def run(self) -> int:
        """Serve until SIGTERM, then drain; the exit code of the process."""
        self._loop.add_signal_handler(signal.SIGTERM, self._drained.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        await self._http.start()
        mailbox = self._memory.mailboxes[self._index][0]
        self._loop.add_reader(mailbox.fileno(), self._hear, mailbox)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._doors.open(tasks)
                running = [
                    tasks.create_task(part)
                    for part in (
                        self._sink.run(),
                        self._shipper.run(self._sink),
                        self._keep_house(),
                        self._watch_registry(),
                        self._measure_lag(),
                        *([self._watch_certificates(self._tls)] if self._tls is not None else []),
                        *([self._fetch_keys(self._jwt)] if self._jwt is not None else []),
                    )
                ]
                self._gauges[Gauge.PID] = float(os.getpid())
                self._gauges[Gauge.STATE] = WorkerState.READY
                await self._drained.wait()
                await self._drain()
                self._doors.cancel()
                for task in running:
                    task.cancel()
        finally:
            self._loop.remove_reader(mailbox.fileno())
            self._sockets.close()
        await self._spool.close()
        self._gauges[Gauge.STATE] = WorkerState.DRAINED
        return 0

    def _hear(self, mailbox: socket.socket) -> None:
        for _ in range(64):
            try:
                message = mailbox.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return
            self._hub.heard(message)

    async def _fetch_keys(self, jwt: JwtVerifier) -> None:
        await jwt.run(refetch_s=JWKS_REFETCH_S, deadline_s=JWKS_DEADLINE_S, fetched=self._events.jwks_fetched)

    def _reload(self) -> None:
        if self._tls is not None:
            self._tls.poll(force=True)

    async def _watch_certificates(self, tls: TlsStore) -> None:
        while True:
            await asyncio.sleep(self._settings.tls.reload_poll_s)
            tls.poll()

    async def _measure_lag(self) -> None:
        due_s = clock.monotonic_s() + LAG_TICK_S
        while True:
            await asyncio.sleep(max(0.0, due_s - clock.monotonic_s()))
            now_s = clock.monotonic_s()
            self._gate.observe_lag(now_s - due_s)
            self._gauges[Gauge.HEARTBEAT_S] = now_s
            self._gauges[Gauge.LOOP_LAG_S] = self._gate.lag_s
            due_s = now_s + LAG_TICK_S

    async def _keep_house(self) -> None:
        """Once a second: keep-alives, replays, and the gauges."""
        for tick in itertools.count():
            await asyncio.sleep(TICK_S)
            self._hub.turn_wheel(clock.monotonic_s())
            self._http.expire(clock.unix_s())
            if tick % KEY_USE_TICKS == 0:
                with contextlib.suppress(RegistryError):  # it is for display only
                    self._registry.flush_use()
            try:
                oldest_ms = await asyncio.to_thread(self._inspector.oldest_ms)
                self._spool.note_oldest(oldest_ms)
                if tick % LETTERS_TICKS == 0:  # a scan; meanwhile the pipeline counts what it adds
                    letters = await asyncio.to_thread(self._inspector.letters)
                    self._pipeline.letters, self._pipeline.letters_bytes = letters
                await self._replayer.poll()
            except SpoolError as error:
                self._events.commit_failed(str(error))
            self._gauge_spool()

    async def _watch_registry(self) -> None:
        """Notice soon what other processes write: who is suspended is out within a second."""
        while True:
            await asyncio.sleep(REGISTRY_POLL_S)
            if self._registry.changed():
                self._registry_changed()

    def _registry_changed(self) -> None:
        self._allowances.replan()
        self._hub.forget_routes()
        self._http.forget_routes()
        self._close_unwanted(self._membership.is_unwanted, "suspended")

    def _gauge_spool(self) -> None:
        gauges, spool, state = self._gauges, self._spool, self._sink.state()
        gauges[Gauge.CONNECTIONS] = self._doors.connections()
        gauges[Gauge.SPOOL_BYTES] = spool.stored_bytes
        gauges[Gauge.SPOOL_GROUPS] = spool.stored_groups
        oldest_ms = spool.oldest_ms
        gauges[Gauge.SPOOL_OLDEST_S] = 0.0 if oldest_ms is None else clock.unix_s() - oldest_ms / 1000
        gauges[Gauge.SPOOL_STATE] = list(State).index(spool.state)
        gauges[Gauge.DEAD_LETTERS] = self._pipeline.letters
        gauges[Gauge.DEAD_LETTERS_BYTES] = self._pipeline.letters_bytes
        gauges[Gauge.SINK_READY] = state.ready
        gauges[Gauge.SINK_PENDING_RECORDS] = state.pending_records
        gauges[Gauge.SINK_PENDING_BYTES] = state.pending_bytes
        gauges[Gauge.SINK_OPEN_CIRCUITS] = len(state.open_circuits)

    def _gauge_tls(self, material: TlsMaterial) -> None:
        self._gauges[Gauge.TLS_NOT_AFTER_S] = material.not_after_s
        self._gauges[Gauge.TLS_CRL_NEXT_UPDATE_S] = material.crl_next_update_s or 0.0

    async def _drain(self) -> None:
        """Accept nobody, answer what is owed, say goodbye, and deliver while there is time."""
        self._gauges[Gauge.STATE] = WorkerState.DRAINING
        until_s = clock.monotonic_s() + self._settings.node.drain_deadline_s
        self._doors.close()
        self._pipeline.draining = True
        self._hub.begin_drain()
        await self._http.begin_drain(deadline_s=min(5.0, self._settings.node.drain_deadline_s / 2))
        await _until(lambda: not self._hub.connections, until_s)
        self._hub.send_wills()
        await _until(lambda: not (self._spool.current or self._shipper.behind), until_s)
        self._gauge_spool()


async def _until(done: Callable[[], bool], until_s: float) -> None:
    while not done() and clock.monotonic_s() < until_s:  # noqa: ASYNC110  # at shutdown, over several parts
        await asyncio.sleep(0.02)


def _make_jwt(section: Jwt) -> JwtVerifier:
    try:
        return JwtVerifier(section, refused=Unauthenticated)
    except JwksError as error:
        raise SettingsError(f"jwt.jwks_file {section.jwks_file}: {error}") from error


def _uses_jwt(settings: Settings) -> bool:
    return any("jwt" in listener.auth for listener in settings.listeners)


def tls_files(settings: Settings) -> TlsFiles:
    """Return where the certificates of a node are."""
    tls = settings.tls
    return TlsFiles(
        certificate=Path(tls.certificate),
        key=Path(tls.key),
        client_ca=Path(tls.client_ca) if tls.client_ca else None,
        crl=Path(tls.crl) if tls.crl else None,
    )
