"""The Kinesis sink against a Kinesis that fails: everything arrives, in order, with equal ids."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest

from ingest.delivery.kinesis.service import KinesisService
from ingest.delivery.kinesis.shard_map import KEY_CHARACTERS_MAX, hash_of, partition_key
from ingest.delivery.kinesis.sink import KinesisSink
from ingest.delivery.sink import Poison
from ingest.limits import KinesisLimits
from ingest.records import Encoding, Group, Run
from tests.support import ledger
from tests.support.fault_kinesis import FaultKinesis, Faults

LIMITS = KinesisLimits(
    pending_bytes_max=800_000,
    record_bytes_max=4000,
    concurrency_max=4,
    call_deadline_s=0.5,
    shard_bytes_per_s=10_000_000,
    shard_records_per_s=10_000,
    linger_s=0.0,
    map_age_max_s=60.0,
    old_map_retry_s=10.0,
    map_retry_s=1.0,
)


class Quiet:
    def sink_called(self, result: str, refused: int = 0) -> None:
        del result, refused

    def sink_trouble(self, event: str, detail: str) -> None:
        del event, detail


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


class Running:
    """A sink that runs, and what it has settled."""

    def __init__(self, sink: KinesisSink, settled: dict[int, Sequence[Poison]]) -> None:
        self.sink = sink
        self.settled = settled

    async def until(self, done: Callable[[], bool], deadline_s: float = 40.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not done():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(kinesis: FaultKinesis, limits: KinesisLimits = LIMITS) -> AsyncIterator[Running]:
    settled: dict[int, Sequence[Poison]] = {}

    def note(number: int, poison: Sequence[Poison]) -> None:
        assert number not in settled
        settled[number] = poison

    service = KinesisService(
        stream="s",
        region="eu-central-1",
        endpoint=f"http://127.0.0.1:{kinesis.port}",
        deadline_s=0.5,
        connections_max=4,
    )
    sink = KinesisSink(service, settled=note, events=Quiet(), limits=limits, random=random.Random(1).random)
    task = asyncio.ensure_future(sink.run())
    try:
        yield Running(sink, settled)
    finally:
        task.cancel()
        [ended] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError)


async def deliver(kinesis: FaultKinesis, groups: list[Group]) -> dict[int, Sequence[Poison]]:
    """Put groups through a sink, and return what each was settled with."""
    async with running(kinesis) as run:
        async with asyncio.timeout(40):
            for group in groups:
                await run.sink.put(group)
        await run.until(lambda: len(run.settled) == len(groups))
        state = run.sink.state()
        assert (state.pending_bytes, state.pending_records) == (0, 0)
    return run.settled


def load(groups: int, devices: int) -> tuple[list[Group], set[tuple[str, int]]]:
    chance = random.Random(3)
    seqs = dict.fromkeys((f"device-{n}" for n in range(devices)), 0)
    made, sent = [], set()
    for number in range(1, groups + 1):
        runs = []
        for device in chance.sample(sorted(seqs), 5):
            payloads = []
            for _ in range(chance.randint(1, 8)):
                seqs[device] += 1
                sent.add((device, seqs[device]))
                payloads.append(json.dumps({"seq": seqs[device]}).encode())
            runs.append(Run("t", device, "s", Encoding.JSON, 1, len(payloads), payloads))
        made.append(Group("n", "b", number, runs))
    return made, sent


FAULTS = {
    "none": Faults(),
    "refused records": Faults(refuse=0.3),
    "failed calls": Faults(fail=0.2),
    "time-out after the write": Faults(hang_after_write=0.1, hang_s=0.7),
    "reshards": Faults(reshard_every=5),
    "all of it": Faults(refuse=0.2, fail=0.1, hang_after_write=0.03, hang_s=0.7, reshard_every=15),
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
async def test_everything_arrives_in_order_with_equal_ids(faults: Faults) -> None:
    groups, sent = load(60, 20)
    async with FaultKinesis(shards=4, faults=faults, seed=5) as kinesis:
        settled = await deliver(kinesis, groups)
    assert set(settled) == {group.number for group in groups}
    assert not any(settled.values())
    ledger.check(sent, sent, kinesis.arrived())


async def test_a_record_over_the_services_limit_is_named_and_the_rest_goes_on() -> None:
    payloads = [b'{"seq":1}', b'{"seq":2,"x":"' + b"x" * (1 << 20) + b'"}', b'{"seq":3}']
    group = Group("n", "b", 1, [Run("t", "d", "s", Encoding.JSON, 1, 3, payloads)])
    async with FaultKinesis(shards=2, faults=Faults()) as kinesis:
        settled = await deliver(kinesis, [group])
    [poison] = settled[1]
    assert (poison.index, poison.reason) == (1, "too_large_for_the_stream")
    assert [seq for _, _, seq in kinesis.arrived()] == [1, 3]


async def test_every_encoding_becomes_the_same_envelope() -> None:
    one: dict[str, Any] = {"seq": 1}
    runs = [
        Run("t", "d", "s", Encoding.JSON, 7, 1, [b'{"seq":1}']),
        Run("t", "d", "s", Encoding.JSON_LIST, 7, 2, [b'[{"seq":1}, {"seq":1}]']),
        Run("t", "d", "s", Encoding.MSGPACK, 7, 1, [msgspec.msgpack.encode(one)]),
        Run("t", "d", "s", Encoding.MSGPACK_LIST, 7, 2, [msgspec.msgpack.encode([one, one])]),
        Run("t", "d", "raw", Encoding.RAW, 7, 1, [b"\x00\xff"]),
    ]
    async with FaultKinesis(shards=1, faults=Faults()) as kinesis:
        await deliver(kinesis, [Group("n", "b", 9, runs)])
    envelopes = [envelope for _, envelope in kinesis.records()]
    assert [envelope["id"] for envelope in envelopes] == [f"n-b-9-{index}" for index in range(7)]
    assert all(envelope["payload"] == one for envelope in envelopes[:6])
    assert (envelopes[6]["payload"], envelopes[6]["encoding"]) == ("AP8=", "base64")
    assert envelopes[0] == {
        "id": "n-b-9-0",
        "tenant": "t",
        "device": "d",
        "stream": "s",
        "received_at": 7,
        "node": "n",
        "payload": one,
    }


async def test_the_trace_context_of_a_run_is_in_the_envelope_of_each_of_its_records() -> None:
    runs = [
        Run("t", "d", "s", Encoding.JSON, 7, 1, [b'{"seq":1}']),
        Run("t", "d", "s", Encoding.JSON_LIST, 7, 2, [b'[{"seq":2},{"seq":3}]']),
        Run("t", "d", "raw", Encoding.RAW, 7, 1, [b"\x00\xff"]),
    ]
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with FaultKinesis(shards=1, faults=Faults()) as kinesis:
        await deliver(kinesis, [Group("n", "b", 9, runs, traces={1: trace, 2: "other"})])
    envelopes = [envelope for _, envelope in kinesis.records()]
    assert [envelope.get("trace") for envelope in envelopes] == [None, trace, trace, "other"]
    assert (envelopes[3]["payload"], envelopes[3]["encoding"]) == ("AP8=", "base64")


@pytest.mark.parametrize("poisoned", [1, 4])
async def test_what_the_service_never_takes_is_found_in_few_calls_and_nothing_else_waits(
    poisoned: int,
) -> None:
    groups, sent = load(60, 20)
    bad: set[tuple[str, int]] = set()
    for number in range(poisoned):
        run = groups[10 * number + 3].runs[number]
        seq = json.loads(run.payloads[-1])["seq"]
        run.payloads[-1] = b'{"seq":%d,"x":"POISON"}' % seq
        bad.add((run.device, seq))
    faults = Faults(poison=b"POISON")
    async with FaultKinesis(shards=4, faults=faults) as kinesis, running(kinesis) as run_of:
        for group in groups:
            await run_of.sink.put(group)
        await run_of.until(lambda: len(run_of.settled) == len(groups), deadline_s=10)
        assert run_of.sink.state().open_circuits == ()
    letters = [letter for poison in run_of.settled.values() for letter in poison]
    assert {(letter.device, json.loads(letter.envelope)["payload"]["seq"]) for letter in letters} == bad
    assert {letter.reason for letter in letters} == {"ValidationException"}
    ledger.check(sent - bad, sent - bad, kinesis.arrived())
    # In company, alone, and then half of it each time; a record holds at most 4,000 bytes of 120.
    assert kinesis.counts["invalid"] <= poisoned * (2 + math.ceil(math.log2(4000 / 120)))


@pytest.mark.parametrize(("records", "invalid"), [(1, 1), (2, 2), (64, 7)])
async def test_the_search_starts_from_what_was_refused_and_costs_its_shard_no_pause(
    records: int, invalid: int
) -> None:
    payloads = [b'{"seq":%d}' % seq for seq in range(records)]
    payloads[-1] = b'{"seq":%d,"x":"POISON"}' % (records - 1)
    groups = [
        Group("n", "b", 1, [Run("t", "d", "s", Encoding.JSON, 1, records, payloads)]),
        Group("n", "b", 2, [Run("t", "d", "s", Encoding.JSON, 1, 1, [b'{"seq":100}'])]),
    ]
    limits = msgspec.structs.replace(LIMITS, record_bytes_max=262_144)
    faults = Faults(poison=b"POISON")
    async with FaultKinesis(shards=1, faults=faults) as kinesis, running(kinesis, limits) as run:
        await run.sink.put(groups[0])
        await run.until(lambda: len(run.settled) == 1, deadline_s=5)
        await run.sink.put(groups[1])
        await run.until(lambda: len(run.settled) == 2, deadline_s=5)
    assert [letter.index for letter in run.settled[1]] == [records - 1]
    assert [seq for _, _, seq in kinesis.arrived()] == [*range(records - 1), 100]
    assert kinesis.counts["invalid"] <= invalid


async def test_a_shard_that_refuses_everything_leaves_the_others_their_room() -> None:
    """Only its own records fill the window; whole groups that hold some of them would have filled it."""
    groups, sent = load(150, 20)
    limits = msgspec.structs.replace(LIMITS, pending_bytes_max=600_000)
    async with FaultKinesis(shards=4, faults=Faults()) as kinesis, running(kinesis, limits) as run:
        hot = kinesis.shards[0]
        kinesis.refusing.add(hot.shard_id)
        of_hot = {each for each in sent if hot.first <= hash_of(partition_key("t", each[0])) <= hot.last}
        assert 0.1 < len(of_hot) / len(sent) < 0.5
        async with asyncio.timeout(10):
            for group in groups:
                await run.sink.put(group)
        await run.until(lambda: run.sink.state().pending_records == len(of_hot), deadline_s=10)
        assert len(set(kinesis.arrived())) == len(sent) - len(of_hot)
        await run.until(lambda: run.sink.state().open_circuits == (hot.shard_id,))
        assert run.sink.state().pending_bytes < 600_000
        kinesis.refusing.clear()
        await run.until(lambda: len(run.settled) == len(groups))
    ledger.check(sent, sent, kinesis.arrived())


async def test_what_comes_alone_goes_at_once_and_what_comes_together_goes_together() -> None:
    groups, _ = load(groups=40, devices=10)
    lingering = msgspec.structs.replace(LIMITS, linger_s=2.0, record_bytes_max=100_000)
    async with (
        FaultKinesis(shards=4, faults=Faults()) as kinesis,
        running(kinesis, lingering) as run,
        asyncio.timeout(20),
    ):
        await run.sink.put(groups[0])
        await run.until(lambda: 1 in run.settled, 1.5)
        for group in groups[1:]:
            await run.sink.put(group)
        await run.until(lambda: len(run.settled) == len(groups))
        assert kinesis.counts["PutRecords"] == 2


async def test_a_record_that_is_full_does_not_linger() -> None:
    groups, _ = load(groups=60, devices=10)
    lingering = msgspec.structs.replace(LIMITS, linger_s=5.0)
    async with (
        FaultKinesis(shards=1, faults=Faults()) as kinesis,
        running(kinesis, lingering) as run,
        asyncio.timeout(4),
    ):
        for group in groups:
            await run.sink.put(group)
        await run.until(lambda: run.sink.state().pending_bytes < 2 * LIMITS.record_bytes_max)
        assert kinesis.counts["PutRecords"] > 5


async def test_the_window_is_never_exceeded_by_more_than_a_group() -> None:
    groups, sent = load(100, 20)
    limits = msgspec.structs.replace(LIMITS, pending_bytes_max=10_000)
    async with FaultKinesis(shards=1, faults=Faults()) as kinesis, running(kinesis, limits) as run:
        kinesis.refusing.add(kinesis.shards[0].shard_id)

        async def put_all() -> None:
            for group in groups:
                await run.sink.put(group)

        async with asyncio.TaskGroup() as tasks:
            putting = tasks.create_task(put_all())
            await run.until(lambda: run.sink.state().pending_bytes >= 10_000)
            await asyncio.sleep(0.2)
            assert not putting.done()
            assert 10_000 <= run.sink.state().pending_bytes < 10_000 + 5 * 8 * 150
            kinesis.refusing.clear()
        await run.until(lambda: len(run.settled) == len(groups))
        assert run.sink.state().pending_bytes == 0
    ledger.check(sent, sent, kinesis.arrived())


QUICKLY_OLD = msgspec.structs.replace(LIMITS, map_age_max_s=0.05, old_map_retry_s=0.05, map_retry_s=0.05)


async def test_a_map_that_is_merely_old_does_not_stop_deliveries() -> None:
    groups, sent = load(40, 20)
    async with FaultKinesis(shards=4, faults=Faults()) as kinesis, running(kinesis, QUICKLY_OLD) as run:
        await run.sink.put(groups[0])
        await run.until(lambda: len(run.settled) == 1)
        kinesis.lists = False
        for group in groups[1:]:
            await asyncio.sleep(0.01)
            await run.sink.put(group)
        await run.until(lambda: len(run.settled) == len(groups), deadline_s=5)
        assert kinesis.counts["ListShards"] > 2, "it is asked for again"
        assert run.sink.state().ready
    ledger.check(sent, sent, kinesis.arrived())


async def test_a_map_that_is_wrong_stops_deliveries_until_it_can_be_read() -> None:
    groups, sent = load(40, 20)
    async with FaultKinesis(shards=1, faults=Faults()) as kinesis, running(kinesis, QUICKLY_OLD) as run:
        await run.sink.put(groups[0])
        await run.until(lambda: len(run.settled) == 1)
        kinesis.lists = False
        kinesis.reshard()
        for group in groups[1:]:
            await run.sink.put(group)
        await run.until(lambda: not run.sink.state().ready)
        calls = kinesis.counts["PutRecords"]
        await asyncio.sleep(0.3)
        assert kinesis.counts["PutRecords"] == calls
        kinesis.lists = True
        await run.until(lambda: len(run.settled) == len(groups))
        assert run.sink.state().ready
    ledger.check(sent, sent, kinesis.arrived())


async def test_a_reshard_is_seen_by_the_age_of_the_map_alone() -> None:
    groups, _ = load(3, 20)
    async with FaultKinesis(shards=1, faults=Faults()) as kinesis, running(kinesis, QUICKLY_OLD) as run:
        await run.sink.put(groups[0])
        await run.until(lambda: len(run.settled) == 1)
        kinesis.reshard()
        await asyncio.sleep(0.1)
        listed = kinesis.counts["ListShards"]
        await run.sink.put(groups[1])
        await run.until(lambda: kinesis.counts["ListShards"] >= listed + 2, deadline_s=5)
        await run.until(lambda: len(run.settled) == 2, deadline_s=5)
        await run.sink.put(groups[2])
        await run.until(lambda: len(run.settled) == 3, deadline_s=5)


def test_a_partition_key_is_never_longer_than_the_service_takes() -> None:
    assert partition_key("t", "d") == "t/d"
    assert partition_key("t" * 128, "d" * 127) == "t" * 128 + "/" + "d" * 127
    longest = [partition_key("t" * 128, "d" * 127 + end) for end in "de"]
    assert all(len(key) <= KEY_CHARACTERS_MAX for key in longest)
    assert longest[0] != longest[1]
    assert longest[0].startswith("t" * 128 + "/")


async def test_the_longest_names_are_delivered() -> None:
    runs = [Run("t" * 128, "d" * 128, "s", Encoding.JSON, 1, 1, [b'{"seq":1}'])]
    async with FaultKinesis(shards=2, faults=Faults()) as kinesis:
        settled = await deliver(kinesis, [Group("n", "b", 1, runs)])
    assert settled == {1: []}
    [(_, envelope)] = kinesis.records()
    assert envelope["device"] == "d" * 128
