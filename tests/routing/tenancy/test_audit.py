"""The audit log: whatever is changed in it later shows."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from routing.tenancy.audit import AuditError, AuditLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


def written(path: Path, count: int) -> AuditLog:
    log = AuditLog(path)
    for number in range(count):
        log.append(
            actor="a", tenant=f"t{number % 2}", action="x", subject=f"s{number}/part", now_s=float(number)
        )
    return log


def test_what_is_as_it_was_written_is_verified(path: Path) -> None:
    assert AuditLog(path).verify() is None
    log = written(path, 5)
    assert log.verify() is None
    assert log.head()[0] == 5
    assert AuditLog(path).append(actor="", tenant="", action="", subject="", now_s=9.0).number == 6
    assert log.verify() is None


@pytest.mark.parametrize("column", ["at_s", "tenant", "actor", "action", "subject", "seal"])
def test_a_change_of_any_column_shows(path: Path, column: str) -> None:
    log = written(path, 5)
    sqlite3.connect(path, isolation_level=None).execute(f"UPDATE entries SET {column} = 7 WHERE number = 3")
    assert log.verify() == 3


def test_an_entry_that_is_taken_out_shows(path: Path) -> None:
    log = written(path, 5)
    sqlite3.connect(path, isolation_level=None).execute("DELETE FROM entries WHERE number = 2")
    assert log.verify() == 2


def test_entries_that_are_cut_off_the_end_show_in_the_head(path: Path) -> None:
    log = written(path, 5)
    noted = log.head()
    sqlite3.connect(path, isolation_level=None).execute("DELETE FROM entries WHERE number = 5")
    assert log.verify() is None
    assert log.head() != noted


def test_old_entries_go_and_the_rest_is_verified_all_the_same(path: Path) -> None:
    log = written(path, 5)
    assert log.prune(3.0) == 3
    assert log.prune(3.0) == 0
    assert log.verify() is None
    assert log.prune(100.0) == 1, "the last stays"
    assert log.append(actor="", tenant="t0", action="", subject="", now_s=9.0).number == 6
    assert log.verify() is None


def test_pages_are_of_one_tenant_and_of_some_subjects(path: Path) -> None:
    log = written(path, 6)
    assert [entry.number for entry in log.page("t0", before=None, limit=2)] == [5, 3]
    assert [entry.number for entry in log.page("t0", before=3, limit=2)] == [1]
    assert [entry.number for entry in log.page("t1", before=None, limit=9, subjects=["s1", "s3/part"])] == [
        4,
        2,
    ]
    assert log.page("t1", before=None, limit=9, subjects=["s"]) == []


def test_entries_of_several_writers_are_one_chain(path: Path) -> None:
    AuditLog(path)

    def write() -> None:
        log = AuditLog(path)
        for _ in range(20):
            log.append(actor="a", tenant="t", action="x", subject="s", now_s=1.0)
        log.close()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    log = AuditLog(path)
    assert log.verify() is None
    assert log.head()[0] == 80


def test_a_file_that_is_none_is_said_to_be(path: Path) -> None:
    path.write_text("this is not a database, but long enough to look like one" * 20)
    with pytest.raises(AuditError, match="cannot open"):
        AuditLog(path)
