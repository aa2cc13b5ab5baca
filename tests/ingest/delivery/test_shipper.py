"""The shipper keeps counts of what the sink has, and not the groups themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from ingest.delivery.shipper import Shipper
from ingest.delivery.sink import Poison, SinkState
from ingest.limits import SpoolLimits
from ingest.order import Homes, Order, Progress
from ingest.records import After, Encoding, Group, Run
from ingest.spool.inspect import ledger
from ingest.spool.reader import Reader
from ingest.spool.spool import Spool
from ingest.spool.store import Store
from tests.support.lone import lone_order, silent_events

LIMITS = SpoolLimits(
    bytes_max=1 << 30,
    age_max_s=1e9,
    group_bytes_max=1 << 20,
    fresh_bytes_max=1 << 20,
    settle_s=0.0,
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
        moved=lambda *_: None,
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


async def test_workers_do_not_wait_for_the_numbers_that_a_restart_leaps_over(tmp_path: Path) -> None:
    """What an earlier start left is delivered; the next group is of this start, and waits for a sibling."""
    progress = Progress(memoryview(bytearray(Progress.size(2))).cast("q"))
    path = tmp_path / "worker-0" / "spool.db"

    def made() -> tuple[Spool, Order]:
        store = Store(path)
        words = memoryview(bytearray(Homes.size(1, 1))).cast("I")
        homes = Homes(words, lock_fd=-1, lock_start=0, worker=0, epoch=1)
        order = Order(homes, progress, worker=0, spool=store.id)
        spool = Spool(
            store,
            node="n",
            limits=LIMITS,
            durable=order.committed,
            committed=lambda _: None,
            moved=lambda *_: None,
        )
        order.start(spool.last_committed, store.settled())
        return spool, order

    spool, _ = made()
    spool.append(Run("a", "d", "s", Encoding.RAW, 1, 1, [b"left"]), 4)
    await spool.close()
    spool, order = made()
    sibling = Order(order.homes, progress, worker=1, spool=7)
    sibling.start(5, 4)
    left_to_do = progress.unsettled(0)
    assert left_to_do is not None
    sink, reader = Forgetful(), Reader(path)
    shipper = Shipper(
        spool, reader, order=order, after=0, delivered=lambda _tenants, _poison: None, events=silent_events()
    )
    spool.current.come_after([After(1, 7, 5)])
    spool.append(Run("a", "d", "s", Encoding.RAW, 1, 1, [b"new"]), 3)
    async with asyncio.timeout(5):
        while not spool.grew.is_set():
            await asyncio.sleep(0.001)
        shipping = asyncio.ensure_future(shipper.run(sink))
        while not sink.numbers:
            await asyncio.sleep(0.001)
        shipper.settled(sink.numbers[0], ())
        while sibling.waits_for([left_to_do]):
            await asyncio.sleep(0.001)
        assert len(sink.numbers) == 1, "its own turn has not come"
        sibling.settled(5)
        while len(sink.numbers) < 2:
            await asyncio.sleep(0.001)
    shipping.cancel()
    reader.close()
    await spool.close()
