"""The shipper keeps counts of what the sink has, and not the groups themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from ingest.delivery.shipper import Shipper
from ingest.delivery.sink import Poison, SinkState
from ingest.limits import SpoolLimits
from ingest.records import Encoding, Group, Run
from ingest.spool.inspect import ledger
from ingest.spool.reader import Reader
from ingest.spool.spool import Spool
from ingest.spool.store import Store
from tests.support.lone import lone_order, silent_events

LIMITS = SpoolLimits(
    bytes_max=1 << 30, age_max_s=1e9, group_bytes_max=1 << 20, fresh_bytes_max=1 << 20, settle_s=0.0
)


class Forgetful:
    """A sink that has sent what it was given, and waits for the answer."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    async def put(self, group: Group) -> None:
        self.numbers.append(group.number)

    async def run(self) -> None:
        return

    def state(self) -> SinkState:
        return SinkState(ready=True, pending_records=0, pending_bytes=0)


async def test_of_a_group_that_the_sink_has_only_counts_are_kept(tmp_path: Path) -> None:
    heard: list[tuple[dict[str, int], int]] = []

    def delivered(tenants: dict[str, int], poison: Sequence[Poison]) -> None:
        heard.append((tenants, len(poison)))

    path = tmp_path / "worker-0" / "spool.db"
    order = lone_order()
    spool = Spool(
        Store(path),
        node="n",
        limits=LIMITS,
        durable=order.committed,
        committed=lambda _: None,
        failed=lambda _: None,
    )
    reader, sink = Reader(path), Forgetful()
    shipper = Shipper(spool, reader, order=order, after=0, delivered=delivered, events=silent_events())
    payload = b"x" * 100_000
    held = sys.getrefcount(payload)
    shipping = asyncio.ensure_future(shipper.run(sink))
    for tenant, count in (("a", 2), ("b", 1), ("a", 3)):
        spool.append(Run(tenant, "d", "s", Encoding.RAW, 1, count, [payload] * count), 100_000 * count)
    async with asyncio.timeout(5):
        while not sink.numbers:
            await asyncio.sleep(0.001)
        spool.append(Run("c", "d", "s", Encoding.RAW, 1, 1, [b"y"]), 1)  # the writer lets go of the first
        while len(sink.numbers) < 2 or sys.getrefcount(payload) > held:
            await asyncio.sleep(0.001)
    assert shipper.behind
    poison = Poison(5, "a", "d", "s", 1, "r", b"{}")
    shipper.settled(sink.numbers[0], [poison])
    assert heard == [({"a": 5, "b": 1}, 1)]
    shipper.settled(sink.numbers[1], ())
    assert heard[1:] == [({"c": 1}, 0)]
    assert not shipper.behind
    async with asyncio.timeout(5):
        while ledger(tmp_path)["a"].spooled:
            await asyncio.sleep(0.001)
    entry = ledger(tmp_path)["a"]
    assert (entry.accepted, entry.delivered, entry.dead_lettered) == (5, 4, 1)
    shipping.cancel()
    reader.close()
    await spool.close()
