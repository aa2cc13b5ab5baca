"""The consumer with a warehouse that fails, and the reader with one that is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from runtime.logs import make_log
from services.data import consumer as under_test
from services.data.consumer import Consumer
from services.data.metrics import DataMetrics
from services.data.reader import Cursor, Reader
from services.data.recent import Recent
from services.data.warehouse import Broken, Unstorable, Warehouse, WarehouseError
from services.feed.feed import Batch, Record
from services.web.refusal import Refused
from tests.support.feeds import Counted

SLOW = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range < b.range"


def record(number: int, received_at: int = 1) -> Record:
    return Record(f"id-{number}", "acme", "pump-1", "main", received_at, "{}", None)


class FailingWarehouse(Warehouse):
    """Fails as often as it is told, and cannot store what is poison."""

    failures = 0
    poison: frozenset[str] = frozenset()

    def write(self, records: Sequence[Record], shard: str, checkpoint: str) -> int:
        if self.failures:
            self.failures -= 1
            raise WarehouseError("as asked")
        if any(each.id in self.poison for each in records):
            raise Unstorable("as asked")
        return super().write(records, shard, checkpoint)


class Rig:
    def __init__(self, warehouse: FailingWarehouse, *, bytes_max: int = 1 << 40) -> None:
        self.registry = CollectorRegistry()
        self.counted = Counted()
        self.warehouse = warehouse
        self.recent = Recent(behind=warehouse.seq, bytes_max=1 << 20)
        self.consumer = Consumer(
            warehouse,
            self.recent,
            duplicates_window=100,
            retention_days=1,
            bytes_max=bytes_max,
            metrics=DataMetrics(self.registry),
            feed_metrics=self.counted.metrics,
            log=make_log("error", "json"),
        )

    def ids(self) -> list[str]:
        return self.warehouse.newest_ids(1000)

    def count(self, name: str) -> float:
        return self.registry.get_sample_value(f"headworks_data_{name}") or 0.0


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[FailingWarehouse]:
    made = FailingWarehouse(tmp_path / "warehouse.duckdb", memory_mib=128, threads=1)
    yield made
    made.close()


@pytest.fixture
def rig(warehouse: FailingWarehouse, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(under_test, "RETRY_S", 0.005)
    made = Rig(warehouse)
    yield made
    made.consumer.close()


def batch(*numbers: int, checkpoint: str = "1") -> Batch:
    return Batch("s", [record(number) for number in numbers], checkpoint)


async def test_what_cannot_be_written_now_is_written_later(rig: Rig) -> None:
    rig.warehouse.failures = 3
    await rig.consumer.take(batch(1, 2))
    assert rig.ids() == ["id-1", "id-2"]
    assert rig.count("write_failures_total") == 3
    assert rig.recent.newest == 2


async def test_duplicates_are_dropped_in_a_batch_between_batches_and_after_a_restart(rig: Rig) -> None:
    await rig.consumer.take(batch(1, 2, 1))
    await rig.consumer.take(batch(2, 3, checkpoint="2"))
    assert (rig.counted("records_total"), rig.counted("duplicates_total")) == (3, 2)
    again = Rig(rig.warehouse)
    await again.consumer.take(batch(3, 4, checkpoint="3"))
    again.consumer.close()
    assert rig.ids() == ["id-1", "id-2", "id-3", "id-4"]
    assert rig.warehouse.checkpoints() == {"s": "3"}


async def test_a_record_that_cannot_be_stored_ever_is_dropped_alone(rig: Rig) -> None:
    await rig.consumer.take(batch(1, checkpoint="a"))
    rig.warehouse.poison = frozenset({"id-3"})
    await rig.consumer.take(batch(2, 3, 4, checkpoint="b"))
    assert rig.ids() == ["id-1", "id-2", "id-4"]
    assert rig.warehouse.checkpoints() == {"s": "b"}
    assert rig.count("unstorable_total") == 1
    found = rig.recent.after("acme", 0, 10)
    assert found is not None
    assert [each.seq for each in found] == [1, 2, 3]


async def test_a_warehouse_that_is_broken_ends_the_service(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise Broken("the file has to be opened again")

    monkeypatch.setattr(rig.warehouse, "write", broken)
    with pytest.raises(Broken):
        await rig.consumer.take(batch(1))


async def housekept(rig: Rig, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        keeping = asyncio.ensure_future(rig.consumer._keep_house())
        while not holds():
            await asyncio.sleep(0.005)
        keeping.cancel()


async def test_what_is_past_its_time_is_let_go(rig: Rig) -> None:
    now = 10**15
    await rig.consumer.take(Batch("s", [record(1), record(2, now)], "1"))
    await housekept(rig, lambda: rig.count("pruned_total") == 1)
    assert rig.ids() == ["id-2"]


async def test_the_oldest_go_when_the_file_is_too_large(
    warehouse: FailingWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "KEEP_HOUSE_S", 0.005)
    rig = Rig(warehouse, bytes_max=1)
    await rig.consumer.take(Batch("s", [record(n, 10**15) for n in range(40)], "1"))
    await housekept(rig, lambda: not rig.ids())
    await rig.consumer.take(batch(99, checkpoint="2"))
    rig.consumer.close()


@pytest.fixture
async def reader(warehouse: FailingWarehouse) -> AsyncIterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def make(**limits: Any) -> Reader:
        usual = {"reads_max": 1, "waiting_max": 1, "deadline_s": 0.2}
        metrics = DataMetrics(CollectorRegistry())
        made.append(Reader(warehouse, metrics=metrics, **{**usual, **limits}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def slow(cursor: Cursor) -> Any:
    return cursor.execute(SLOW).fetchall()


async def test_a_read_that_takes_too_long_is_interrupted(reader: Callable[..., Reader]) -> None:
    made = reader()
    with pytest.raises(Refused, match="took more than") as refused:
        await made.read(slow)
    assert (refused.value.status, refused.value.slug) == (503, "too-slow")
    assert await made.rows(("SELECT 1", [])) == [(1,)], "its thread is free again"


async def test_only_so_many_reads_wait(reader: Callable[..., Reader]) -> None:
    made = reader(deadline_s=0.5)
    slugs: list[str] = []

    async def ask() -> None:
        try:
            await made.read(slow)
        except Refused as refused:
            slugs.append(refused.slug)

    await asyncio.gather(*(ask() for _ in range(4)))
    assert slugs == ["busy", "busy", "too-slow", "too-slow"]


async def test_a_read_that_fails_says_so(reader: Callable[..., Reader]) -> None:
    with pytest.raises(Refused) as refused:
        await reader().rows(("SELECT nonsense", []))
    assert (refused.value.status, refused.value.slug) == (503, "unavailable")
