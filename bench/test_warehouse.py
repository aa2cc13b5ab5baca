"""The warehouse of the data service on a real disk: writing batches, and reads among 10 million values.

Not in it: HTTP, and the decoding of what a stream holds, which `test_records_of_kinesis` measures.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ingest.delivery.kinesis.aggregation import aggregate
from services.data.formats import ArrowWriter, ndjson
from services.data.resources import Point, value_of
from services.data.selection import Selection, buckets, latest, points
from services.data.warehouse import Warehouse
from services.feed.decoding import record_of, record_of_row
from services.feed.feed import Record
from services.feed.kinesis.deaggregation import user_records

RECORDS, DEVICES, START_MS = 1000, 200, 1_764_000_000_000
COPIES = 3333
"""Of 1,000 records with three metrics: 10 million values, of each device 50,000, 5 s apart."""
ONE = Selection(tenant="acme", device="device-7", metrics=("temperature",))


def records_of(batch: int) -> list[Record]:
    records = []
    for index in range(RECORDS):
        ts = START_MS + batch * 25_000 + index * 25
        metrics = {"temperature": 20 + index / 7, "pressure": index / 3, "on": index % 2 == 0}
        identity, device = f"core-1-0123456789abcdef-{batch}-{index}", f"device-{index % DEVICES}"
        row = (identity, "acme", device, "sensors", ts, json.dumps({"ts": ts, "metrics": metrics}))
        record = record_of_row(row)
        assert record is not None
        records.append(record)
    return records


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    opened = Warehouse(tmp_path / "warehouse.duckdb", memory_mib=512, threads=2)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    opened = Warehouse(tmp_path_factory.mktemp("full") / "warehouse.duckdb", memory_mib=512, threads=2)
    opened.write(records_of(0), "s", "0")
    opened.cursor().execute(
        "INSERT INTO points SELECT seq + n * 1000, tenant, device, stream, metric, ts + n * 25000, number, "
        "boolean, text, received_at + n * 25000 FROM range(1, ?) copies(n), points ORDER BY n, seq",
        [COPIES],
    )
    opened.cursor().execute("CHECKPOINT")
    yield opened
    opened.close()


def test_write_a_batch(benchmark: BenchmarkFixture, warehouse: Warehouse) -> None:
    numbers = itertools.count(1)
    batches = [records_of(batch) for batch in range(20)]
    benchmark(lambda: warehouse.write(batches[next(numbers) % 20], "shard", "checkpoint"))


def test_read_a_page(benchmark: BenchmarkFixture, full: Warehouse) -> None:
    asked = points(ONE, (START_MS + 40_000_000, 0, ""), 1001)
    assert len(benchmark(lambda: full.cursor().execute(*asked).fetchall())) == 1001


def test_read_a_day_in_minutes(benchmark: BenchmarkFixture, full: Warehouse) -> None:
    asked = buckets(ONE, 60_000, None, 10_000)
    assert len(benchmark(lambda: full.cursor().execute(*asked).fetchall())) > 1300


def test_read_the_latest(benchmark: BenchmarkFixture, full: Warehouse) -> None:
    asked = latest("acme", "device-7", None, 101)
    assert len(benchmark(lambda: full.cursor().execute(*asked).fetchall())) == 3


def test_stream_as_lines(benchmark: BenchmarkFixture, full: Warehouse) -> None:
    asked = points(ONE, None, 5000)

    def read() -> bytes:
        rows = full.cursor().execute(*asked).fetchall()
        return ndjson([Point(row[0], row[2], row[3], value_of(*row[4:7])) for row in rows])

    assert benchmark(read).count(b"\n") == 5000


def test_stream_as_arrow(benchmark: BenchmarkFixture, full: Warehouse) -> None:
    statement, values = points(ONE, None, 5000)

    def read() -> int:
        return ArrowWriter().add(full.cursor().sql(statement, params=values))[0]

    assert benchmark(read) == 5000


def test_records_of_kinesis(benchmark: BenchmarkFixture) -> None:
    """1,000 user records out of aggregated ones, decoded."""
    envelope = (
        b'{"id":"core-1-0123456789abcdef-1-%d","tenant":"acme","device":"device-1","stream":"sensors",'
        b'"received_at":1764000000000,"node":"core-1","payload":{"ts":1764000000000,"seq":7,'
        b'"metrics":{"temperature":21.5,"pressure":1013.2,"on":true}}}'
    )
    data = aggregate([("acme/device-1", [envelope % number for number in range(RECORDS)])])
    found = benchmark(lambda: [record_of(user) for user in user_records(data)])
    assert len(found) == RECORDS
    assert None not in found
