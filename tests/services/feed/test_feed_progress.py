from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from services.feed.feed import Batch, Record
from services.feed.progress import Progress
from services.feed.seen import Seen


def record(identity: str) -> Record:
    return Record(identity, "acme", "pump-1", "main", 1, "{}", None)


def batch(*ids: str, shard: str = "s1", checkpoint: str = "1") -> Batch:
    return Batch(shard, [record(each) for each in ids], checkpoint)


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    return sqlite3.connect(tmp_path / "consumer.db", isolation_level=None)


def ids(records: list[Record]) -> list[str]:
    return [each.id for each in records]


def test_what_is_rolled_back_is_new_again_and_its_checkpoint_is_not_kept(
    connection: sqlite3.Connection,
) -> None:
    progress = Progress(connection, ids_max=10)
    connection.execute("BEGIN")
    assert ids(progress.begin(batch("a", "b"))) == ["a", "b"]
    connection.execute("ROLLBACK")
    assert progress.checkpoints() == {}
    connection.execute("BEGIN")
    assert ids(progress.begin(batch("a", "b", checkpoint="7"))) == ["a", "b"]
    connection.execute("COMMIT")
    assert Progress(connection, ids_max=10).checkpoints() == {"s1": "7"}


def test_an_id_is_new_once_over_batches_shards_and_restarts(connection: sqlite3.Connection) -> None:
    progress = Progress(connection, ids_max=10)
    connection.execute("BEGIN")
    assert ids(progress.begin(batch("a", "a", "b"))) == ["a", "b"]
    assert ids(progress.begin(batch("b", "c", shard="s2"))) == ["c"]
    connection.execute("COMMIT")
    again = Progress(connection, ids_max=10)
    connection.execute("BEGIN")
    assert ids(again.begin(batch("c", "d"))) == ["d"]
    connection.execute("COMMIT")


def test_the_window_of_ids_is_bounded(connection: sqlite3.Connection) -> None:
    progress = Progress(connection, ids_max=3)
    connection.execute("BEGIN")
    progress.begin(batch(*"abcdef"))
    assert connection.execute("SELECT count(*) FROM feed_ids").fetchone() == (3,)
    assert ids(progress.begin(batch("a", "f"))) == ["a"]
    connection.execute("COMMIT")


def test_seen_drops_what_was_here_and_what_is_twice_in_a_batch() -> None:
    seen = Seen(["a"], ids_max=10)
    assert ids(seen.fresh([record("a"), record("b"), record("c"), record("b")])) == ["b", "c"]
    assert "b" not in seen, "it has not taken effect yet"
    seen.add(["b"])
    assert ids(seen.fresh([record("b"), record("c")])) == ["c"]


def test_seen_forgets_the_oldest() -> None:
    seen = Seen(ids_max=2)
    seen.add("abc")
    assert [each in seen for each in "abc"] == [False, True, True]
