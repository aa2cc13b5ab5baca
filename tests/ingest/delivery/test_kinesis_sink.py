"""The Kinesis sink against a Kinesis that fails: everything arrives, in order, with equal ids."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from ingest.delivery.kinesis.service import KinesisService
from ingest.delivery.kinesis.sink import KinesisLimits, KinesisSink
from ingest.delivery.sink import Poison
from ingest.records import Encoding, Group, Run
from tests.support import ledger
from tests.support.fault_kinesis import FaultKinesis, Faults

LIMITS = KinesisLimits(
    pending_bytes_max=200_000,
    record_bytes_max=4000,
    concurrency_max=4,
    call_deadline_s=0.5,
    shard_bytes_per_s=10_000_000,
    shard_records_per_s=10_000,
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


async def deliver(kinesis: FaultKinesis, groups: list[Group]) -> dict[int, Sequence[Poison]]:
    """Put groups through a sink, and return what each was settled with."""
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
    sink = KinesisSink(service, settled=note, events=Quiet(), limits=LIMITS, random=random.Random(1).random)
    running = asyncio.ensure_future(sink.run())
    try:
        async with asyncio.timeout(40):
            for group in groups:
                await sink.put(group)
            while len(settled) < len(groups):
                await asyncio.sleep(0.01)
        assert sink.state().pending_bytes == 0
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return settled


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
    import msgspec  # noqa: PLC0415  # only here

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
