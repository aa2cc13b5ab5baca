from __future__ import annotations

import contextlib
import random
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.telemetry import Telemetry
from services.analytics.fold import FoldLimits
from services.analytics.rollup import Rollup, decoded
from services.analytics.store.database import StoreError, opened
from services.analytics.store.writer import Stored, Writer
from services.analytics.watermark import Tolerance
from services.analytics.windows import Window
from services.feed.feed import Batch, Record

NOW_MS = 1_764_000_000_000
DAY_MS = 86_400_000
WINDOWS = (Window("1m", 60, 86_400), Window("5m", 300, 2 * 86_400), Window("1h", 3600, 10 * 86_400))
LIMITS = FoldLimits(devices_max=9, series_max=9, metrics_max=9, memory=50, warm_up=5, anomaly_sigma=4.0)
Content = dict[str, list[tuple[object, ...]]]


@contextlib.contextmanager
def writer_on(path: Path, *, ids_max: int = 1000, windows: Sequence[Window] = WINDOWS) -> Iterator[Writer]:
    writer = Writer(
        opened(path),
        windows=windows,
        tolerance=Tolerance(lateness_ms=3_600_000, future_ms=60_000),
        limits=LIMITS,
        ids_max=ids_max,
    )
    try:
        yield writer
    finally:
        writer.close()


def record(
    number: int, ts_ms: int, *, device: str = "d", received_ms: int = NOW_MS, **metrics: float
) -> Record:
    telemetry = Telemetry(ts=ts_ms, metrics=dict[str, float | bool | str](metrics or {"m": number % 7}))
    return Record(f"n-b-1-{number}", "t", device, "s", received_ms, "{}", telemetry)


def batches_of(records: Sequence[Record], size: int, *, shard: str = "local") -> list[Batch]:
    return [
        Batch(shard, records[begin : begin + size], str(begin + size))
        for begin in range(0, len(records), size)
    ]


def content_of(path: Path) -> Content:
    """Return everything that a replay must not change, but how many duplicates there were."""
    tables = {
        "devices": "",
        "series": "",
        "rollups": "",
        "feed_checkpoints": "",
        "totals": "WHERE name <> 'duplicates'",
    }
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table} {where}").fetchall(), key=repr)
            for table, where in tables.items()
        }


def windows_of(path: Path, size_s: int, *, device: str = "d", metric: str = "m") -> dict[int, Rollup]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {
            start_s: decoded(rollup)
            for start_s, rollup in connection.execute(
                "SELECT start_s, rollup FROM rollups JOIN series ON number = series "
                "WHERE size_s = ? AND device = ? AND metric = ?",
                (size_s, device, metric),
            )
        }


times = st.lists(st.integers(NOW_MS - 3_500_000, NOW_MS), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(times, st.integers(1, 15), st.randoms(use_true_random=False))
def test_any_order_and_batching_with_restarts_and_replays_comes_to_the_same_windows(
    ts: list[int], size: int, chance: random.Random
) -> None:
    records = [record(number, ts_ms) for number, ts_ms in enumerate(ts)]
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole.db"), Path(folder, "parts.db")
        with writer_on(whole) as writer:
            writer.take(Batch("local", sorted(records, key=lambda each: each.telemetry.ts), "all"))  # type: ignore[union-attr]
        chance.shuffle(records)
        batches = batches_of(records, size)
        for index, batch in enumerate(batches):
            with writer_on(parts) as writer:
                writer.take(batch)
                again = writer.take(batches[chance.randint(0, index)])
            assert (again.records, again.folded) == (0, 0)
        for window in WINDOWS:
            found, exact = windows_of(parts, window.size_s), windows_of(whole, window.size_s)
            assert set(found) == set(exact) == {window.start_of(ts_ms) for ts_ms in ts}
            for start_s, rollup in found.items():
                assert rollup.mean == pytest.approx(exact[start_s].mean)
                assert rollup.squares == pytest.approx(exact[start_s].squares, abs=1e-6)
                rollup.mean, rollup.squares = exact[start_s].mean, exact[start_s].squares
                assert rollup == exact[start_s]


@settings(max_examples=25, deadline=None)
@given(times, st.integers(1, 15), st.data())
def test_a_replay_from_any_older_checkpoint_changes_nothing_at_all(
    ts: list[int], size: int, data: st.DataObject
) -> None:
    batches = batches_of([record(number, ts_ms) for number, ts_ms in enumerate(ts)], size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.db")
        with writer_on(path) as writer:
            for batch in batches:
                writer.take(batch)
        before = content_of(path)
        replayed = data.draw(st.integers(0, len(batches) - 1))
        with writer_on(path) as writer:
            for batch in batches[replayed:]:
                writer.take(batch)
            checkpoints = writer.checkpoints()
            duplicates = writer.totals().duplicates
        assert content_of(path) == before
    assert checkpoints == {"local": batches[-1].checkpoint}
    assert duplicates == sum(len(batch.records) for batch in batches[replayed:])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-100, 100) | st.just(1e6), min_size=10, max_size=60), st.integers(1, 15))
def test_scores_and_anomalies_are_those_of_the_stream_however_it_is_cut(
    values: list[float], size: int
) -> None:
    records = [record(number, NOW_MS - 60_000 + number, m=value) for number, value in enumerate(values)]
    with tempfile.TemporaryDirectory() as folder:
        contents = []
        for path, cut in ((Path(folder, "whole.db"), len(records)), (Path(folder, "parts.db"), size)):
            for batch in batches_of(records, cut):
                with writer_on(path) as writer:
                    writer.take(batch)
            contents.append(content_of(path))
    assert contents[0]["series"] == contents[1]["series"]
    assert contents[0]["devices"] == contents[1]["devices"]


def test_what_fails_leaves_nothing_behind_and_can_be_given_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with writer_on(path) as writer:
        writer.take(Batch("local", [record(1, NOW_MS)], "1"))
        before = content_of(path)
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON totals BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
        with pytest.raises(sqlite3.Error, match="full"):
            writer.take(Batch("local", [record(2, NOW_MS)], "2"))
        assert content_of(path) == before
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("DROP TRIGGER full")
        assert writer.take(Batch("local", [record(2, NOW_MS)], "2")).records == 1
        assert writer.checkpoints() == {"local": "2"}


def test_each_shard_has_a_checkpoint_of_its_own_and_one_without_records_is_kept(tmp_path: Path) -> None:
    with writer_on(tmp_path / "a.db") as writer:
        writer.take(Batch("s-0", [record(1, NOW_MS)], "10"))
        writer.take(Batch("s-1", [], "20"))
        assert writer.checkpoints() == {"s-0": "10", "s-1": "20"}


def test_totals_add_up_over_restarts_and_name_what_was_dropped(tmp_path: Path) -> None:
    raw = Record("raw", "t", "d", "s", NOW_MS, "AAAA", None)
    for number in (1, 2):
        with writer_on(tmp_path / "a.db") as writer:
            late = record(10 * number, NOW_MS - 9_000_000)
            writer.take(Batch("local", [record(number, NOW_MS), late, raw], str(number)))
            totals = writer.totals()
    assert totals == Stored(
        records=5, duplicates=1, folded=2, anomalies=0, dropped={"late": 2, "not_telemetry": 1}
    )


def test_a_late_reading_corrects_the_windows_of_all_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with writer_on(path) as writer:
        writer.take(Batch("local", [record(0, NOW_MS - 1_800_000, m=1.0), record(1, NOW_MS, m=2.0)], "1"))
        writer.take(Batch("local", [record(2, NOW_MS - 1_800_000, m=5.0)], "2"))
    for window in WINDOWS:
        rollup = windows_of(path, window.size_s)[window.start_of(NOW_MS - 1_800_000)]
        assert (rollup.maximum, rollup.count) == (5.0, 2 if window.size_s < 3600 else rollup.count)


def test_a_backlog_older_than_fine_windows_are_kept_is_in_the_coarse_ones(tmp_path: Path) -> None:
    path, ts_ms = tmp_path / "a.db", NOW_MS - 3 * DAY_MS
    with writer_on(path) as writer:
        assert writer.take(Batch("local", [record(1, ts_ms)], "1")).folded == 1
    assert [len(windows_of(path, window.size_s)) for window in WINDOWS] == [0, 0, 1]


def test_each_size_is_swept_when_its_time_is_over_and_the_series_and_device_last(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    def swept(writer: Writer, now_ms: int) -> list[int]:
        while writer.sweep(now_ms):
            pass
        return [len(windows_of(path, window.size_s)) for window in WINDOWS]

    with writer_on(path) as writer:
        writer.take(Batch("local", [record(1, NOW_MS)], "1"))
        assert swept(writer, NOW_MS) == [1, 1, 1]
        assert swept(writer, NOW_MS + DAY_MS + 60_000) == [0, 1, 1]
        assert swept(writer, NOW_MS + 2 * DAY_MS + 300_000) == [0, 0, 1]
        assert swept(writer, NOW_MS + 10 * DAY_MS + 3_600_000) == [0, 0, 0]
    content = content_of(path)
    assert (content["devices"], content["series"]) == ([], [])


def test_ids_are_kept_up_to_a_limit(tmp_path: Path) -> None:
    with writer_on(tmp_path / "a.db", ids_max=10) as writer:
        for number in range(50):
            writer.take(Batch("local", [record(number, NOW_MS)], str(number)))
        assert writer.take(Batch("local", [record(45, NOW_MS)], "x")).duplicates == 1
        assert writer.take(Batch("local", [record(1, NOW_MS)], "x")).duplicates == 0


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(StoreError, match="cannot open"):
        opened(tmp_path / "a.db")
