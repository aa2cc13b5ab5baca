from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.data.selection import latest, newest_records
from services.data.warehouse import Warehouse, WarehouseError
from services.feed.decoding import record_of_row
from services.feed.feed import Record


def record(number: int, *, device: str = "pump-1", received_at: int = 0, **metrics: Any) -> Record:
    body = {"ts": 1000 + number, "metrics": metrics or {"temperature": float(number)}}
    row = (f"id-{number}", "acme", device, "main", received_at or number, json.dumps(body))
    found = record_of_row(row)
    assert found is not None
    return found


def opened(folder: Path) -> Warehouse:
    return Warehouse(folder / "warehouse.duckdb", memory_mib=128, threads=1)


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    made = opened(tmp_path)
    yield made
    made.close()


def count(warehouse: Warehouse, table: str) -> int:
    found = warehouse.cursor().execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return int(found[0])


def values(warehouse: Warehouse) -> dict[str, Any]:
    rows = warehouse.cursor().execute(*latest("acme", "pump-1", None, 100)).fetchall()
    return {row[1]: next((value for value in row[3:6] if value is not None), None) for row in rows}


def test_records_are_numbered_and_their_checkpoint_kept_over_restarts(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert first.write([record(1), record(2)], "s1", "a") == 1
    assert first.write([record(3)], "s2", "b") == 3
    assert first.write([], "s1", "c") == 4
    first.close()
    again = opened(tmp_path)
    assert again.checkpoints() == {"s1": "c", "s2": "b"}
    assert again.newest_ids(2) == ["id-2", "id-3"]
    assert again.prune(1000) == 3
    again.close()
    last = opened(tmp_path)
    assert last.write([record(4)], "s1", "d") == 4, "numbers never go back"
    last.close()


def test_what_cannot_be_written_leaves_nothing(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse.write([record(1)], "s", "a")
    with monkeypatch.context() as patch:
        patch.setattr("services.data.warehouse.ADD_CHECKPOINT", "INSERT INTO nowhere VALUES (?, ?)")
        with pytest.raises(WarehouseError):
            warehouse.write([record(2)], "s", "b")
    assert (count(warehouse, "records"), count(warehouse, "points"), warehouse.seq) == (1, 1, 1)
    assert warehouse.checkpoints() == {"s": "a"}
    assert values(warehouse) == {"temperature": 1.0}
    assert warehouse.write([record(2)], "s", "b") == 2


def test_the_latest_value_is_that_of_the_latest_time(warehouse: Warehouse) -> None:
    warehouse.write([record(5, a=5, b=True, c="x"), record(3, a=3, d=1)], "s", "a")
    assert values(warehouse) == {"a": 5.0, "b": True, "c": "x", "d": 1.0}
    warehouse.write([record(4, a=4, b=False), record(6, c="y")], "s", "b")
    assert values(warehouse) == {"a": 5.0, "b": True, "c": "y", "d": 1.0}
    warehouse.write([record(7, a="seven")], "s", "c")
    assert values(warehouse)["a"] == "seven", "a metric may change its type"


def test_what_is_old_goes_and_the_rest_stays(warehouse: Warehouse) -> None:
    warehouse.write([record(n, received_at=n) for n in range(1, 11)], "s", "a")
    warehouse.write([record(99, device="pump-2", received_at=2)], "s", "b")
    assert warehouse.prune(5) == 5
    assert (count(warehouse, "records"), count(warehouse, "points"), count(warehouse, "latest")) == (6, 6, 1)
    assert warehouse.prune(5) == 0


def test_room_is_made_from_the_oldest(warehouse: Warehouse) -> None:
    assert warehouse.shrink() == 0
    for part in range(20):
        warehouse.write([record(part * 1000 + n, n=float(n), text="x" * 500) for n in range(1000)], "s", "a")
    warehouse.cursor().execute("CHECKPOINT")
    used = warehouse.used_bytes()
    assert warehouse.shrink() == 1000
    ids = warehouse.cursor().execute("SELECT min(seq), count(*) FROM records").fetchone()
    assert ids == (1001, 19_000)
    for _ in range(20):
        warehouse.shrink()
    assert warehouse.used_bytes() < used


def test_a_device_is_erased_in_every_table(warehouse: Warehouse) -> None:
    warehouse.write([record(1), record(2, device="pump-2")], "s", "a")
    assert warehouse.erase("acme", "pump-1") == 1
    assert [count(warehouse, table) for table in ("records", "points", "latest")] == [1, 1, 1]
    rows = warehouse.cursor().execute(*newest_records("acme", "pump-1", "", 0, 10)).fetchall()
    assert rows == []


def test_nothing_outside_of_the_file_can_be_reached(warehouse: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(Exception, match="disabled"):
        warehouse.cursor().execute(f"SELECT * FROM '{tmp_path}/secret.csv'")
    with pytest.raises(Exception, match="locked"):
        warehouse.cursor().execute("SET enable_external_access = true")
    assert (tmp_path / "warehouse.duckdb").stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_warehouse_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "warehouse.duckdb").write_bytes(b"nonsense" * 1000)
    with pytest.raises(WarehouseError, match="cannot open"):
        opened(tmp_path)
