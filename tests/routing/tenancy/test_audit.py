"""The audit log: whatever is done to the file behind its back, the chain shows where."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.tenancy.audit import FIELD_CHARACTERS_MAX, AuditError, AuditLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


def filled(path: Path, entries: int) -> AuditLog:
    log = AuditLog(path)
    for number in range(log.head()[0] + 1, log.head()[0] + entries + 1):
        tenant = "tu"[number % 2]
        log.append(actor="jo", tenant=tenant, action="suspend", subject=f"d/{number}", now_s=float(number))
    return log


def behind(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(sql)
    connection.close()


def test_what_was_written_is_right(path: Path) -> None:
    log = filled(path, 20)
    assert log.verify() is None
    assert AuditLog(path).verify() is None
    assert log.head() == AuditLog(path).head()
    assert AuditLog(path.with_name("empty.db")).verify() is None


@pytest.mark.parametrize("column", ["at_s", "tenant", "actor", "action", "subject", "seal"])
@pytest.mark.parametrize("number", [1, 7, 10])
def test_a_changed_entry_is_named(path: Path, column: str, number: int) -> None:
    log = filled(path, 10)
    behind(path, f"UPDATE entries SET {column} = '9' WHERE number = {number}")
    assert log.verify() == number


@pytest.mark.parametrize(
    ("sql", "first"),
    [
        ("DELETE FROM entries WHERE number = 1", 1),
        ("DELETE FROM entries WHERE number = 5", 5),
        ("UPDATE entries SET number = 99 WHERE number = 5", 5),
        (
            "INSERT INTO entries SELECT 11, at_s, tenant, actor, action, subject, seal FROM entries LIMIT 1",
            11,
        ),
        ("UPDATE pruned SET seal = 'x'", 1),
        ("UPDATE pruned SET number = 3", 4),
    ],
)
def test_what_is_missing_moved_or_added_is_named(path: Path, sql: str, first: int) -> None:
    log = filled(path, 10)
    behind(path, sql)
    assert log.verify() == first


def test_two_entries_that_changed_places_are_named(path: Path) -> None:
    log = filled(path, 10)
    for sql in ("= 99 WHERE number = 4", "= 4 WHERE number = 5", "= 5 WHERE number = 99"):
        behind(path, f"UPDATE entries SET number {sql}")
    assert log.verify() == 4


def test_a_chain_that_lost_its_end_shows_only_beside_a_head_that_was_noted(path: Path) -> None:
    log = filled(path, 10)
    noted = log.head()
    behind(path, "DELETE FROM entries WHERE number > 8")
    assert log.verify() is None
    assert log.head() != noted


@settings(max_examples=30, deadline=None)
@given(fields=st.lists(st.tuples(*[st.text(max_size=20)] * 4), min_size=1, max_size=8))
def test_any_text_is_sealed_and_no_two_entries_look_alike(
    tmp_path_factory: pytest.TempPathFactory, fields: list[tuple[str, str, str, str]]
) -> None:
    log = AuditLog(tmp_path_factory.mktemp("audit") / "audit.db")
    seals = set()
    for tenant, actor, action, subject in fields:
        entry = log.append(actor=actor, tenant=tenant, action=action, subject=subject, now_s=1.0)
        seals.add(entry.seal)
    assert len(seals) == len(fields)
    assert log.verify() is None


def test_the_border_between_two_fields_is_sealed_too(path: Path) -> None:
    log = AuditLog(path)
    log.append(actor="ab", tenant="c", action="x", subject="y", now_s=1.0)
    behind(path, "UPDATE entries SET actor = 'a', tenant = 'bc'")
    assert log.verify() == 1


def test_long_fields_are_cut(path: Path) -> None:
    entry = AuditLog(path).append(actor="a" * 10_000, tenant="t", action="x", subject="y", now_s=1.0)
    assert len(entry.actor) == FIELD_CHARACTERS_MAX


def test_a_tenant_reads_its_own_in_pages(path: Path) -> None:
    log = filled(path, 25)
    seen: list[int] = []
    before = None
    while page := log.page("t", before=before, limit=5):
        assert {entry.tenant for entry in page} == {"t"}
        seen += [entry.number for entry in page]
        before = page[-1].number
    assert seen == list(range(24, 0, -2))
    assert [entry.number for entry in log.page("t", before=None, limit=9, subjects=["d/4", "e"])] == [4]
    assert len(log.page("t", before=None, limit=99, subjects=["d"])) == 12


def test_retention_keeps_the_chain_verifiable(path: Path) -> None:
    log = filled(path, 10)
    assert log.prune(before_s=5.0) == 4
    assert log.verify() is None
    assert log.prune(before_s=5.0) == 0
    assert log.prune(before_s=999.0) == 5, "the last one stays"
    filled(path, 3)
    assert log.verify() is None
    assert log.head()[0] == 13
    behind(path, "DELETE FROM entries WHERE number = 10")
    assert log.verify() == 10


def test_many_may_append_at_once(path: Path) -> None:
    def append() -> None:
        log = AuditLog(path)
        for _ in range(10):
            log.append(actor="jo", tenant="t", action="x", subject="y", now_s=1.0)
        log.close()

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert AuditLog(path).head()[0] == 40
    assert AuditLog(path).verify() is None


@pytest.mark.parametrize(
    "use",
    [
        AuditLog.head,
        AuditLog.verify,
        lambda log: log.prune(1.0),
        lambda log: log.page("t", before=None, limit=1),
        lambda log: log.append(actor="a", tenant="t", action="x", subject="y", now_s=1.0),
    ],
)
def test_a_file_that_is_broken_is_an_error_of_its_own(path: Path, use: Callable[[AuditLog], object]) -> None:
    log = filled(path, 1)
    behind(path, "DROP TABLE entries")
    behind(path, "DROP TABLE pruned")
    with pytest.raises(AuditError):
        use(log)
    with pytest.raises(AuditError):
        AuditLog(path / "below")
