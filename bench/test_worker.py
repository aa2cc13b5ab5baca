"""The way of a publish through one worker, in-process: what one read costs, without a socket or a disk."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.side_by_side.generator import connect_packet, publishes
from ingest import counters
from ingest.authentication import ANYONE, Authenticator, Door, Peer
from ingest.events import Events
from ingest.mqtt.connection import MqttConnection
from ingest.mqtt.hub import Hub, HubLimits
from ingest.pipeline import Pipeline, PipelineLimits
from ingest.routes import StreamRule, StreamRules
from ingest.spool.group import OpenGroup
from ingest.spool.spool import Spool, SpoolLimits
from ingest.spool.store import Store
from protocols.mqtt.session import SessionLimits
from routing.limits.allowance import Allowances, Policy, Rates, Terms, row_expired
from routing.limits.shared_table import LocalTable
from routing.tenancy.identity import Credential

SESSION_LIMITS = SessionLimits(
    packet_bytes_max=1 << 20,
    connect_bytes_max=65_536,
    receive_maximum=1024,
    topic_alias_maximum=32,
    topic_levels_max=20,
    topic_bytes_max=512,
    client_id_bytes_max=256,
    user_properties_max=32,
    keep_alive_s_max=3600,
    session_expiry_s_max=86_400,
)
RATES = Rates(messages_per_s=1e9, bytes_per_s=1e12, burst_s=2.0, connections_max=0)


class NoWire:
    """Takes answers and drops them."""

    def write(self, data: bytes, /) -> None:
        assert data

    def close(self) -> None:
        return

    def abort(self) -> None:
        return

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


class Rig:
    """A worker's left half whose commits are made by hand."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._make(folder))

    async def _make(self, folder: Path) -> None:
        self.spool = Spool(
            Store(folder / uuid.uuid4().hex / "spool.db"),
            node="bench",
            limits=SpoolLimits(
                bytes_max=1 << 40,
                age_max_s=1e9,
                group_bytes_max=1 << 40,
                fresh_bytes_max=1 << 20,
                settle_s=1.0,
            ),
            committed=lambda _: None,
            failed=lambda _: None,
        )
        events = Events(memoryview(bytearray(8 * (counters.GLOBAL_COUNTERS + 64))).cast("q"), None)
        tables: dict[str, Any] = {
            name: LocalTable(capacity=1000, expired=row_expired) for name in ("devices", "tenants")
        }
        allowances = Allowances(
            **tables,
            terms=lambda _: Terms(tenant=RATES, device=RATES, policy=Policy.PAUSE),
            worker=0,
            workers=1,
            idle_max=1000,
        )
        self.pipeline = Pipeline(
            spool=self.spool,
            streams=StreamRules([], default=StreamRule("", raw=False, payload_bytes_max=1 << 20)),
            allowances=allowances,
            admits=lambda _tenant, _device: True,
            tenant_index=lambda _: 1,
            events=events,
            limits=PipelineLimits(
                routes_max=100,
                records_max=1000,
                group_bytes_max=1 << 40,
                dead_letters_max=10,
                refused_kept_per_s=1.0,
                refuse_when_full=False,
            ),
        )
        self.hub = Hub(
            worker=0,
            epoch=1,
            loop=self.loop,
            spool=self.spool,
            pipeline=self.pipeline,
            authenticator=Authenticator(certificate=lambda _: ANYONE, jwt=None, api_key=lambda _: ANYONE),
            admits=lambda _: None,
            allowances=allowances,
            directory=LocalTable(capacity=1000, expired=lambda _: True),
            post=lambda _worker, _message: False,
            events=events,
            session_limits=SESSION_LIMITS,
            limits=HubLimits(
                connect_deadline_s=10, close_deadline_s=5, takeover_deadline_s=1, sessions_max=10, wills_max=1
            ),
        )
        door = Door("bench", frozenset({Credential.TOPIC}))
        self.connection = MqttConnection(self.hub, NoWire(), door, Peer("peer", None))
        self.hub.made(self.connection)
        self.connection.received(connect_packet(b"bench"))
        self.spool.scheduled = True  # nothing is committed by itself

    def read_and_answer(self, data: bytes) -> None:
        """Take one read, then answer as if its group had been committed."""
        self.connection.received(data)
        opened = self.spool.current
        opened.seal("bench", "boot")
        for waiter, reply in opened.replies.items():
            waiter.durable(reply)
        self.spool.current = OpenGroup(opened.number + 1)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.spool._jobs.put(None)
    made.spool._writer.join()
    made.loop.close()


@pytest.mark.parametrize("window", [1, 64])
def test_received(benchmark: Any, rig: Rig, window: int) -> None:
    data = publishes(b"dt/bench/device-1/metrics", window)
    benchmark(rig.read_and_answer, data)
