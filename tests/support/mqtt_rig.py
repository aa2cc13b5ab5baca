"""The MQTT half of a node in one process: real hubs, pipelines, spools on disk; wires that are lists."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ingest import counters
from ingest.authentication import Authenticator, Door, Peer
from ingest.delivery.shipper import Shipper
from ingest.delivery.sink import Poison, SinkState
from ingest.events import Events
from ingest.limits import PipelineLimits, SpoolLimits
from ingest.mqtt.connection import MqttConnection
from ingest.mqtt.hub import Hub, HubLimits
from ingest.mqtt.sessions import READ_SESSIONS, unpack_ids
from ingest.order import Homes, Order, Progress
from ingest.outcome import Outcome
from ingest.pipeline import Pipeline
from ingest.records import Group
from ingest.routes import StreamRule, StreamRules
from ingest.spool.reader import Reader
from ingest.spool.spool import Spool
from ingest.spool.store import Store
from routing.limits.allowance import Allowances
from routing.limits.shared_table import LocalTable
from routing.limits.terms import Policy, Rates, Terms
from routing.tenancy.identity import Credential, Identity, Kind, Unauthenticated
from runtime import clock
from tests.support.mqtt_packets import LIMITS

HELD_BYTES_MAX = 100_000
UNLIMITED = Rates(messages_per_s=0, bytes_per_s=0, burst_s=1, connections_max=0)


class Wire:
    """One client's end: what the gateway said, and whether it closed."""

    def __init__(self, worker: RigWorker) -> None:
        self._worker = worker
        self.said = b""
        self.closed = False
        self.reading = True
        self.takes = True
        self.unread = False
        self.connection = MqttConnection(
            worker.hub, self, Door("rig", frozenset({Credential.JWT})), Peer("peer", None)
        )
        worker.hub.made(self.connection)

    def send(self, data: bytes) -> None:
        self.connection.received(data)

    def write(self, data: bytes, /) -> None:
        assert not self.closed, "written after the close"
        self.said += data

    def close(self) -> None:
        """Close as a transport does: the connection hears of it in the next turn of the loop."""
        if self.takes:
            self.abort()

    def abort(self) -> None:
        """Close at once, also when the peer does not take what is left."""
        if not self.closed:
            self.closed = True
            self._worker.loop.call_soon(self.connection.ended)

    def lose(self) -> None:
        """Cut the wire."""
        self.closed = True
        self.connection.ended()

    def pause_reading(self) -> None:
        self.reading = False

    def has_unread(self) -> bool:
        return self.unread

    def resume_reading(self) -> None:
        self.reading = True


class ListSink:
    """Keeps the groups it is given, and settles them at once."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.settled: Callable[[int, tuple[Poison, ...]], None] = lambda _number, _poison: None

    async def put(self, group: Group) -> None:
        await self.takes.wait()
        self.groups.append(group)
        self.settled(group.number, ())

    async def run(self) -> None:
        await asyncio.Event().wait()

    def state(self) -> SinkState:
        return SinkState(ready=True, pending_records=0, pending_bytes=0)


class RigWorker:
    """One worker's MQTT half over a spool at `folder`."""

    def __init__(self, rig: Rig, index: int, folder: Path, group_bytes_max: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.store = Store(folder / "spool.db")
        self.order = rig.order(index, self.store.id)
        self.spool = Spool(
            self.store,
            node="rig",
            limits=SpoolLimits(
                bytes_max=1 << 30,
                age_max_s=1e9,
                group_bytes_max=group_bytes_max,
                fresh_bytes_max=1 << 20,
                settle_s=0.0,
            ),
            durable=self.order.committed,
            committed=lambda _: None,
            moved=lambda *_: None,
        )
        self.order.start(self.spool.last_committed, self.store.settled())
        self.block = memoryview(bytearray(8 * (counters.GLOBAL_COUNTERS + 64))).cast("q")
        events = Events(self.block, rig)
        allowances = Allowances(
            devices=LocalTable(capacity=100, expired=lambda _: False),
            tenants=LocalTable(capacity=100, expired=lambda _: False),
            terms=lambda _: Terms(tenant=UNLIMITED, device=rig.rates, policy=Policy.PAUSE),
            worker=0,
            workers=1,
            idle_max=100,
        )
        pipeline = Pipeline(
            spool=self.spool,
            order=self.order,
            streams=StreamRules([], default=StreamRule("", raw=True, payload_bytes_max=1 << 20)),
            allowances=allowances,
            admits=lambda _tenant, _device: True,
            tenant_index=lambda _: 1,
            events=events,
            limits=PipelineLimits(
                routes_max=100,
                records_max=1000,
                group_bytes_max=group_bytes_max,
                dead_letters_max=10,
                dead_letters_bytes_max=1 << 20,
                refused_kept_bytes_max=1000,
                refused_kept_per_s=1.0,
                refuse_when_full=False,
            ),
        )
        self.hub = Hub(
            worker=index,
            epoch=1,
            loop=self.loop,
            spool=self.spool,
            pipeline=pipeline,
            authenticator=Authenticator(certificate=_nobody, jwt=rig.identity, api_key=_nobody),
            admits=lambda _: None,
            allowances=allowances,
            directory=rig.directory,
            post=rig.post,
            events=events,
            session_limits=LIMITS,
            limits=HubLimits(
                connect_deadline_s=10,
                close_deadline_s=2,
                takeover_deadline_s=1,
                sessions_max=10,
                wills_max=10,
                held_bytes_max=HELD_BYTES_MAX,
            ),
        )
        self.hub.load_sessions(self.store.rows(READ_SESSIONS))
        self.sink = ListSink()
        self.shipper = Shipper(
            self.spool,
            Reader(folder / "spool.db"),
            order=self.order,
            after=0,
            delivered=lambda _group, _poison: None,
            events=events,
        )
        self.sink.settled = self.shipper.settled

    def turn(self, seconds: float) -> None:
        """Let time pass for the wheel only."""
        self.hub.turn_wheel(clock.monotonic_s() + seconds)

    def refused(self) -> int:
        """Return how many publishes were refused for want of room."""
        return self.block[counters.REFUSED[Outcome.SPOOL_FULL]]

    def connect(self, data: bytes) -> Wire:
        wire = Wire(self)
        wire.send(data)
        return wire

    def busy(self) -> bool:
        """Return whether something is not stored or not delivered."""
        return bool(self.spool._busy or self.spool.current or self.shipper.behind)

    def freeze(self) -> None:
        """Commit nothing until `thaw`."""
        self.spool.scheduled = True

    def thaw(self) -> None:
        self.spool.schedule()

    def stored_ids(self) -> set[int]:
        """Return the QoS 2 ids of the one session in the spool."""
        [row] = self.store.rows(READ_SESSIONS)
        return set(unpack_ids(row[2]))

    def payloads(self) -> list[bytes]:
        """Return what was delivered."""
        return [payload for group in self.sink.groups for run in group.runs for payload in run.payloads]


class Rig:
    """Some workers that share a directory of sessions and a post. `async with` runs and ends them."""

    def __init__(self, folder: Path, *, workers: int = 1, group_bytes_max: int = 1 << 20) -> None:
        self._folder = folder
        self._count = workers
        self._group_bytes_max = group_bytes_max
        self._progress = Progress(memoryview(bytearray(Progress.size(workers))).cast("q"))
        self._homes = memoryview(bytearray(Homes.size(100, workers))).cast("I")
        self._locks = os.memfd_create("locks")
        self.directory = LocalTable(capacity=100, expired=lambda _: True)
        self.workers: list[RigWorker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.rates = UNLIMITED
        self.kind = Kind.DEVICE
        self.expires_s: float | None = None

    def identity(self, token: str) -> Identity:
        """Return a device, or what the test wants, that is called as its password says."""
        return Identity(
            tenant="acme",
            name=token,
            kind=self.kind,
            credential=Credential.JWT,
            expires_s=self.expires_s,
        )

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Be a log that nobody reads."""
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_args, **_fields: None

    def order(self, worker: int, spool: int) -> Order:
        """Return one worker's part in the order of this node."""
        homes = Homes(self._homes, lock_fd=self._locks, lock_start=0, worker=worker, epoch=1)
        return Order(homes, self._progress, worker=worker, spool=spool)

    def post(self, worker: int, message: bytes) -> bool:
        asyncio.get_running_loop().call_soon(self.workers[worker].hub.heard, message)
        return True

    async def __aenter__(self) -> Self:
        for index in range(self._count):
            folder = self._folder / f"worker-{index}"
            self.workers.append(RigWorker(self, index, folder, self._group_bytes_max))
        self._tasks = [asyncio.ensure_future(each.shipper.run(each.sink)) for each in self.workers]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for worker in self.workers:
            worker.thaw()
            worker.hub.send_wills()
            await worker.spool.close()
        os.close(self._locks)

    async def settle(self) -> None:
        """Wait until everything appended is durable, answered and delivered."""
        async with asyncio.timeout(10):
            quiet = 0
            while quiet < 5:
                quiet = 0 if any(worker.busy() for worker in self.workers) else quiet + 1
                await asyncio.sleep(0.001)


def _nobody(_: Any) -> Identity:
    raise Unauthenticated("nobody")
