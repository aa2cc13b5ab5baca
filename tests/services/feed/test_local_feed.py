from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from ingest.delivery.local import OLDEST, open_local
from ingest.records import Encoding
from runtime.logs import make_log
from services.feed.local import LocalFeed, Position, read
from tests.support.feeds import Consumer, Counted, group, payload, running, write_local


@pytest.fixture
def consumer(tmp_path: Path) -> Consumer:
    return Consumer(sqlite3.connect(tmp_path / "consumer.db", isolation_level=None))


@pytest.fixture
def counted() -> Counted:
    return Counted()


def feed(path: Path, counted: Counted, records_max: int = 10) -> LocalFeed:
    log = make_log("error", "json")
    return LocalFeed(path, poll_s=0.005, records_max=records_max, metrics=counted.metrics, log=log)


def forget(path: Path, count: int) -> None:
    with contextlib.closing(open_local(path)) as connection:
        connection.execute(OLDEST, (count,))


def position_of(consumer: Consumer) -> Position:
    return Position.read(consumer.progress.checkpoints()["local"])


async def test_records_come_in_order_decoded_and_over_restarts_once(
    tmp_path: Path, consumer: Consumer, counted: Counted
) -> None:
    path = tmp_path / "local.db"
    async with running(feed(path, counted), consumer):  # before there is a file
        write_local(path, group(1, [payload(seq) for seq in range(25)]))
        await consumer.until(lambda: len(consumer.ids) == 25)
    write_local(path, group(2, [payload(25)]), group(3, [b"\x00\xff"], stream="blobs", encoding=Encoding.RAW))
    async with running(feed(path, counted), consumer):
        await consumer.until(lambda: len(consumer.ids) == 27)
    records = [record for batch in consumer.batches for record in batch.records]
    assert [record.id for record in records] == [f"n1-b1-1-{n}" for n in range(25)] + [
        "n1-b1-2-0",
        "n1-b1-3-0",
    ]
    assert records[3].telemetry is not None
    assert records[3].telemetry.metrics == {"temperature": 1.5}
    assert (records[-1].stream, records[-1].telemetry, records[-1].payload) == ("blobs", None, "AP8=")
    assert (records[0].tenant, records[0].device, records[0].received_at) == (
        "acme",
        "pump-1",
        1_764_000_000_000,
    )


async def test_what_was_gone_before_it_could_be_read_is_counted(
    tmp_path: Path, consumer: Consumer, counted: Counted
) -> None:
    path = tmp_path / "local.db"
    write_local(path, group(1, [payload(seq) for seq in range(20)]))
    async with running(feed(path, counted, 5), consumer):
        await consumer.until(lambda: len(consumer.ids) == 20)
    write_local(path, group(2, [payload(seq) for seq in range(10)]))
    forget(path, 23)
    async with running(feed(path, counted, 5), consumer):
        await consumer.until(lambda: len(consumer.ids) == 27)
    assert consumer.ids[20] == "n1-b1-2-3"
    assert (counted("missed_total"), counted("gaps_total")) == (3, 1)


def test_a_newcomer_has_missed_nothing(tmp_path: Path) -> None:
    path = tmp_path / "local.db"
    write_local(path, group(1, [payload(seq) for seq in range(20)]))
    forget(path, 5)
    page = read(path, Position(), 100)
    assert page is not None
    assert (len(page.rows), page.missed) == (15, 0)


def test_the_newest_record_is_never_forgotten_so_that_its_place_is_not_given_away(tmp_path: Path) -> None:
    path = tmp_path / "local.db"
    write_local(path, group(1, [payload(seq) for seq in range(20)]))
    forget(path, 100)
    page = read(path, Position(), 100)
    assert page is not None
    assert page.behind.rowid == 20
    write_local(path, group(2, [payload(0)]))
    after = read(path, page.behind, 100)
    assert after is not None
    assert [row[0] for row in after.rows] == [21]


async def test_another_file_in_its_place_is_read_from_its_start(
    tmp_path: Path, consumer: Consumer, counted: Counted
) -> None:
    path = tmp_path / "local.db"
    write_local(path, group(1, [payload(seq) for seq in range(8)]))
    async with running(feed(path, counted), consumer):
        await consumer.until(lambda: len(consumer.ids) == 8)
    for name in ("local.db", "local.db-wal", "local.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    write_local(path, group(2, [payload(seq) for seq in range(9)]))
    async with running(feed(path, counted), consumer):
        await consumer.until(lambda: len(consumer.ids) == 17)
    assert counted("missed_total") == 0
    assert position_of(consumer).rowid == 9


async def test_what_is_no_telemetry_is_dropped_and_counted(
    tmp_path: Path, consumer: Consumer, counted: Counted
) -> None:
    path = tmp_path / "local.db"
    write_local(path, group(1, [b'{"not": "ours"}', payload(1)]))
    async with running(feed(path, counted), consumer):
        await consumer.until(lambda: bool(consumer.ids))
    assert consumer.ids == ["n1-b1-1-1"]
    assert counted("malformed_total") == 1


async def test_a_file_that_cannot_be_read_is_tried_again(
    tmp_path: Path, consumer: Consumer, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.feed.local.RETRY_S", 0.005)
    path = tmp_path / "local.db"
    path.write_text("this is not a database, and long enough to be looked at " * 10)
    async with running(feed(path, counted), consumer):
        await consumer.until_counted(counted, "troubles_total", trouble="unavailable")
        path.unlink()
        write_local(path, group(1, [payload(1)]))
        await consumer.until(lambda: bool(consumer.ids))


@pytest.mark.parametrize("checkpoint", ["", "x", "1:", ":1", "1", "1:2:3"])
def test_a_checkpoint_that_makes_no_sense_is_the_start(checkpoint: str) -> None:
    assert Position.read(checkpoint) == Position()
    assert Position.read(str(Position(7, 9))) == Position(7, 9)
