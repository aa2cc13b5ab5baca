"""Admission: what is charged for what, what is kept of a refusal, and what a replay brings back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest import counters
from ingest.delivery.envelope import envelopes
from ingest.delivery.shipper import Shipper
from ingest.delivery.sink import Poison
from ingest.events import Events
from ingest.limits import PipelineLimits, SpoolLimits
from ingest.outcome import Outcome
from ingest.pipeline import Pipeline, Producer
from ingest.records import Encoding, Group, Run
from ingest.replay import Replayer
from ingest.routes import StreamRule, StreamRules
from ingest.spool.inspect import letters, mark_for_replay, payload
from ingest.spool.reader import Reader
from ingest.spool.spool import Spool
from ingest.spool.store import Store
from protocols.mqtt.session import Publish
from routing.limits.allowance import Allowances, row_expired
from routing.limits.shared_table import LocalTable
from routing.limits.terms import Policy, Rates, Terms
from routing.tenancy.identity import Credential, Identity, Kind
from tests.support.lone import lone_order

NO_LIMIT = Rates(messages_per_s=0, bytes_per_s=0, burst_s=1, connections_max=0)
LIMITS = PipelineLimits(
    routes_max=10,
    records_max=10_000,
    group_bytes_max=10_000,
    dead_letters_max=100,
    dead_letters_bytes_max=100_000,
    refused_kept_per_s=1000,
    refused_kept_bytes_max=100,
    refuse_when_full=False,
)
RULES = StreamRules(
    [StreamRule("raw", raw=True, payload_bytes_max=1000)],
    default=StreamRule("", raw=False, payload_bytes_max=3000),
)
ONE = b'{"ts":1,"metrics":{"a":1}}'
TOPIC = b"dt/t/d/s"
NAMES = ("t", "d", "s")


class NoLog:
    def warning(self, *_: Any, **__: Any) -> None:
        return


def about(value: float) -> Any:
    return pytest.approx(value)


def list_of(records: int) -> bytes:
    return msgspec.msgpack.encode([msgspec.json.decode(ONE)] * records)


def publishes(*payloads: bytes, qos: int = 1) -> list[Publish]:
    return [(TOPIC, each, qos, number.to_bytes(2, "big")) for number, each in enumerate(payloads, start=1)]


def limited(
    policy: Policy, *, messages_per_s: float = 0, bytes_per_s: float = 0, tenant: Rates = NO_LIMIT
) -> Terms:
    device = Rates(messages_per_s=messages_per_s, bytes_per_s=bytes_per_s, burst_s=1, connections_max=0)
    return Terms(device=device, tenant=tenant, policy=policy)


class Rig:
    """A pipeline over a real spool, with one device's worth of limits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "worker-0" / "spool.db"
        self.spool = Spool(
            Store(path),
            node="n",
            limits=SpoolLimits(
                bytes_max=1 << 30,
                age_max_s=1e9,
                group_bytes_max=10_000,
                fresh_bytes_max=0,
                settle_s=0.0,
            ),
            durable=lambda _: None,
            committed=lambda _: None,
            moved=lambda *_: None,
        )
        self.reader = Reader(path)
        self.block = memoryview(bytearray(8 * (counters.GLOBAL_COUNTERS + 64))).cast("q")
        self.order = lone_order()
        self.pipeline = self.make(limited(Policy.PAUSE))

    def make(self, terms: Terms, limits: PipelineLimits = LIMITS) -> Pipeline:
        tables = [LocalTable(capacity=9, expired=lambda row: row_expired(row, 0.0)) for _ in range(2)]
        self.pipeline = Pipeline(
            spool=self.spool,
            order=self.order,
            streams=RULES,
            allowances=Allowances(
                devices=tables[0],
                tenants=tables[1],
                terms=lambda _: terms,
                worker=0,
                workers=1,
                idle_max=10,
            ),
            admits=lambda _tenant, _device: True,
            tenant_index=lambda _: 0,
            events=Events(self.block, NoLog()),
            limits=limits,
        )
        return self.pipeline

    def refused(self, outcome: Outcome) -> int:
        return self.block[counters.REFUSED[outcome]]

    async def settle(self) -> None:
        """Wait until nothing is open any more."""
        async with asyncio.timeout(5):
            while self.spool.current or self.spool._busy or self.spool._loose:
                await asyncio.sleep(0.001)

    def runs(self) -> list[Run]:
        return [run for read in self.reader.read_after(0, 1 << 30) for run in read.group.runs]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.spool.scheduled = False
    made.spool.touch()
    made.reader.close()
    await made.spool.close()


def producer(*, can_refuse: bool = True) -> Producer:
    identity = Identity(tenant="t", name="d", kind=Kind.DEVICE, credential=Credential.CERTIFICATE)
    return Producer(identity, can_refuse=can_refuse)


# Lists over MQTT.


async def test_a_list_over_mqtt_is_charged_as_many_messages_as_it_has_records(rig: Rig) -> None:
    pipeline, mqtt_5 = rig.make(limited(Policy.REFUSE, messages_per_s=10)), producer()
    assert pipeline.publish(mqtt_5, publishes(list_of(8)), 0.0) == (None, 0.0)
    assert pipeline.publish(mqtt_5, publishes(list_of(8)), 0.0) == ([Outcome.DEVICE_LIMIT], 0.0)
    assert rig.refused(Outcome.DEVICE_LIMIT) == 8
    assert pipeline.publish(mqtt_5, publishes(list_of(8)), 0.6) == ([Outcome.DEVICE_LIMIT], 0.0)
    assert pipeline.publish(mqtt_5, publishes(list_of(8)), 1.0) == (None, 0.0)
    assert rig.spool.current.records == 16


async def test_a_list_larger_than_the_burst_passes_a_full_bucket_in_whatever_read_it_comes(rig: Rig) -> None:
    pipeline, mqtt_5 = rig.make(limited(Policy.REFUSE, messages_per_s=10)), producer()
    read = publishes(*[list_of(30)] * 10)
    assert pipeline.publish(mqtt_5, read, 0.0) == ([0] + [Outcome.DEVICE_LIMIT] * 9, 0.0)
    assert pipeline.publish(mqtt_5, read, 1.0) == ([Outcome.DEVICE_LIMIT] * 10, 0.0)
    assert pipeline.publish(mqtt_5, read, 5.0) == ([0] + [Outcome.DEVICE_LIMIT] * 9, 0.0)


@pytest.mark.parametrize("version", [4, 5])
async def test_a_plan_that_pauses_takes_a_list_and_pauses_for_its_records(rig: Rig, version: int) -> None:
    pipeline = rig.make(limited(Policy.PAUSE, messages_per_s=10))
    outcomes, pause_s = pipeline.publish(producer(can_refuse=version == 5), publishes(list_of(100)), 0.0)
    assert (outcomes, pause_s) == (None, about(9.0))


async def test_mqtt_3_pauses_for_a_list_under_a_plan_that_refuses(rig: Rig) -> None:
    pipeline = rig.make(limited(Policy.REFUSE, messages_per_s=10))
    outcomes, pause_s = pipeline.publish(producer(can_refuse=False), publishes(list_of(100)), 0.0)
    assert (outcomes, pause_s) == (None, about(9.0))


async def test_a_plan_that_sheds_sheds_lists_of_qos_0_and_pauses_for_others(rig: Rig) -> None:
    pipeline, device = rig.make(limited(Policy.SHED, messages_per_s=10)), producer()
    assert pipeline.publish(device, publishes(list_of(8), list_of(8), qos=0), 0.0) == ([0, Outcome.SHED], 0.0)
    outcomes, pause_s = pipeline.publish(device, publishes(list_of(20)), 0.0)
    assert (outcomes, pause_s) == (None, about(1.9)), "29 taken of 10"
    assert rig.refused(Outcome.SHED) == 8


# Submissions.


async def test_a_submission_that_is_refused_costs_nothing_and_passes_when_its_wait_is_over(rig: Rig) -> None:
    pipeline, client = rig.make(limited(Policy.REFUSE, messages_per_s=10)), producer()
    assert pipeline.submit(client, NAMES, list_of(8), 0.0).outcome is Outcome.ACCEPTED
    for now_s in (0.0, 0.2, 0.4):
        refused = pipeline.submit(client, NAMES, list_of(8), now_s)
        assert refused.outcome is Outcome.DEVICE_LIMIT
        assert (refused.retry_after_s, refused.pause_s) == (about(0.6 - now_s), 0.0)
    assert pipeline.submit(client, NAMES, list_of(8), 0.6).outcome is Outcome.ACCEPTED
    assert pipeline.submit(client, NAMES, list_of(30), 1.6).outcome is Outcome.ACCEPTED, "the bucket is full"
    assert pipeline.submit(client, NAMES, list_of(30), 1.6).retry_after_s == about(3.0)


@pytest.mark.parametrize(("body", "outcome"), [(b"x" * 500, "MALFORMED"), (b"x" * 3500, "TOO_LARGE")])
async def test_what_is_refused_for_its_content_is_charged_its_bytes(
    rig: Rig, body: bytes, outcome: str
) -> None:
    pipeline, client = rig.make(limited(Policy.REFUSE, bytes_per_s=1000)), producer()
    outcomes = [pipeline.submit(client, NAMES, body, 0.0).outcome for _ in range(20)]
    taken = 1 if len(body) > 1000 else 2
    assert outcomes == [Outcome[outcome]] * taken + [Outcome.DEVICE_LIMIT] * (20 - taken)
    assert pipeline.letters == taken
    pipeline = rig.make(limited(Policy.PAUSE, bytes_per_s=1000))
    assert pipeline.submit(producer(), NAMES, body, 0.0, can_pause=True).pause_s == about(
        max(0.0, len(body) / 1000 - 1)
    )


async def test_a_plan_that_pauses_holds_for_who_cannot_pause_too(rig: Rig) -> None:
    tenant = msgspec.structs.replace(NO_LIMIT, bytes_per_s=1000)
    pipeline, client = rig.make(limited(Policy.PAUSE, messages_per_s=10, tenant=tenant)), producer()
    assert pipeline.submit(client, NAMES, list_of(60), 0.0).outcome is Outcome.ACCEPTED
    for now_s in (0.0, 2.0, 4.9):
        refused = pipeline.submit(client, NAMES, list_of(60), now_s)
        assert (refused.outcome, refused.retry_after_s) == (Outcome.DEVICE_LIMIT, about(5.0 - now_s))
    assert pipeline.submit(client, NAMES, list_of(1), 5.0).outcome is Outcome.ACCEPTED
    assert pipeline.submit(client, NAMES, b"x" * 3000, 9.0).outcome is Outcome.MALFORMED
    refused = pipeline.submit(client, NAMES, list_of(1), 9.0)
    assert (refused.outcome, refused.retry_after_s) == (Outcome.TENANT_LIMIT, about(2.0))
    assert pipeline.submit(client, NAMES, list_of(60), 9.0, can_pause=True).outcome is Outcome.ACCEPTED


# What is kept of a refusal.


async def test_of_a_refused_payload_the_beginning_is_kept_and_the_letter_says_so(rig: Rig) -> None:
    for body in (b"y" * 100, b"x" * 101):
        assert rig.pipeline.submit(producer(), NAMES, body, 0.0).outcome is Outcome.MALFORMED
    await rig.settle()
    cut, whole = letters(rig.folder, limit=9)
    assert (whole.bytes, "kept" in whole.detail) == (100, False)
    assert (cut.bytes, cut.accepted) == (100, False)
    assert cut.detail.endswith("; only the first 100 of 101 bytes are kept")
    assert payload(rig.folder, cut.name) == b"x" * 100
    assert mark_for_replay(rig.folder, name=cut.name) == (0, 1)
    assert mark_for_replay(rig.folder) == (1, 1)
    assert [each.payload for each in rig.reader.replays(9)] == [b"y" * 100]
    assert rig.reader.letters() == (2, 200)


async def test_what_mqtt_3_acknowledges_is_kept_whole_while_there_is_room(rig: Rig) -> None:
    mqtt_3 = producer(can_refuse=False)
    limits = msgspec.structs.replace(LIMITS, dead_letters_bytes_max=900)
    pipeline = rig.make(limited(Policy.PAUSE), limits)
    assert pipeline.publish(mqtt_3, publishes(b"x" * 500), 0.0) == (None, 0.0)
    assert pipeline.publish(mqtt_3, publishes(b"x" * 500), 0.0) == ([Outcome.MALFORMED], 0.0)
    await rig.settle()
    part, whole = letters(rig.folder, limit=9)
    assert (whole.accepted, whole.bytes) == (True, 500)
    assert (part.accepted, part.bytes) == (False, 100)


async def test_letters_are_bounded_by_their_bytes(rig: Rig) -> None:
    limits = msgspec.structs.replace(LIMITS, dead_letters_bytes_max=1000)
    pipeline = rig.make(limited(Policy.PAUSE), limits)
    for _ in range(50):
        assert pipeline.submit(producer(), NAMES, b"x" * 500, 0.0).outcome is Outcome.MALFORMED
    assert (pipeline.letters, pipeline.letters_bytes) == (10, 1000)
    await rig.settle()
    assert rig.reader.letters() == (10, 1000)


async def test_letters_fill_the_open_group_as_runs_do(rig: Rig) -> None:
    rig.spool.scheduled = True  # nothing is committed
    pipeline = rig.make(limited(Policy.PAUSE), msgspec.structs.replace(LIMITS, dead_letters_max=1000))
    reads = 0
    while pipeline.has_room():
        pipeline.publish(producer(can_refuse=False), publishes(b"x" * 900), 0.0)
        reads += 1
        assert reads < 100
    assert reads == 12
    for _ in range(400):
        outcome = pipeline.submit(producer(), NAMES, b"x" * 500, 0.0).outcome
    assert outcome is Outcome.SPOOL_FULL
    assert rig.spool.current.bytes < 50_000


# Replays.


def poison_of(group: Group) -> list[Poison]:
    return [
        Poison(first, run.tenant, run.device, run.stream, run.received_at_ms, "r", envelope)
        for run, first, made in envelopes(group)
        for envelope in made
    ]


@pytest.mark.parametrize(
    ("stream", "encoding", "stored", "replayed"),
    [
        ("raw", Encoding.RAW, b"\x00\xff\x10", b"\x00\xff\x10"),
        ("raw", Encoding.RAW, b"", b""),
        ("raw", Encoding.RAW, b'{"id":"x","received_at":1,"payload":{}}', None),
        ("s", Encoding.JSON, ONE, ONE),
        ("s", Encoding.JSON_LIST, b"[%b]" % ONE, ONE),
        ("s", Encoding.MSGPACK_LIST, list_of(1), ONE),
    ],
)
async def test_poison_is_replayed_as_its_device_sent_it(
    rig: Rig, stream: str, encoding: Encoding, stored: bytes, replayed: bytes | None
) -> None:
    group = Group("n", rig.spool.boot, 1, [Run("t", "d", stream, encoding, 1, 1, [stored])])
    rig.spool.append(group.runs[0], len(stored))
    await rig.settle()
    shipper = Shipper(
        rig.spool,
        rig.reader,
        order=rig.order,
        after=0,
        delivered=lambda _group, _poison: None,
        events=Events(rig.block, NoLog()),
    )

    class Refusing:
        async def put(self, taken: Group) -> None:
            shipper.settled(taken.number, poison_of(taken))

    await shipper._catch_up(Refusing())  # type: ignore[arg-type]
    await rig.settle()
    assert rig.runs() == []
    assert mark_for_replay(rig.folder) == (1, 0)
    await Replayer(rig.reader, rig.pipeline, rig.spool).poll()
    await rig.settle()
    [run] = rig.runs()
    assert (run.stream, run.payloads) == (stream, [stored if replayed is None else replayed])
    assert letters(rig.folder, limit=9) == []


async def test_a_refused_payload_that_looks_like_an_envelope_is_not_taken_for_one(rig: Rig) -> None:
    body = b'{"id":"x","received_at":1,"payload":%b}' % ONE
    assert rig.pipeline.submit(producer(), NAMES, body, 0.0).outcome is Outcome.MALFORMED
    await rig.settle()
    assert mark_for_replay(rig.folder) == (1, 0)
    await Replayer(rig.reader, rig.pipeline, rig.spool).poll()
    await rig.settle()
    assert rig.runs() == []
    [letter] = letters(rig.folder, limit=9)
    assert letter.reason == "malformed"
