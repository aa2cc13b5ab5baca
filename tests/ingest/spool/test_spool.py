"""The spool: durable before answered, conserved by construction, nothing lost to a disk that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ingest.limits import SpoolLimits
from ingest.records import Encoding, Run, ordinal
from ingest.spool.inspect import ledger, letters, mark_for_replay, purge
from ingest.spool.reader import Reader
from ingest.spool.schema import Booking
from ingest.spool.spool import Spool, State, dead_letter
from ingest.spool.store import SpoolError, Statement, Store, StoredGroup, settle

LIMITS = SpoolLimits(
    bytes_max=10_000, age_max_s=3600, group_bytes_max=5000, fresh_bytes_max=2000, settle_s=0.001
)


class Client:
    """Somebody who waits for answers."""

    def __init__(self, *, withdraws: bool = False) -> None:
        self.heard: list[bytes] = []
        self.refused = 0
        self._withdraws = withdraws

    def durable(self, reply: bytes) -> None:
        self.heard.append(reply)

    def lost(self, error: SpoolError) -> bool:
        assert error.retriable
        self.refused += 1
        return self._withdraws


class FailingStore(Store):
    """A store whose disk refuses while told to: the one thing that is mocked."""

    broken = False
    refused = 0

    def commit(self, group: StoredGroup | None, statements: Any, now_ms: int) -> None:
        if self.broken and (group is not None or statements):
            self.refused += 1
            raise SpoolError("no space left on device")
        super().commit(group, statements, now_ms)


def run(tenant: str = "t", count: int = 1, size: int = 10) -> Run:
    return Run(tenant, "d", "s", Encoding.JSON, 1, count, [b"x" * size] * count)


def make(folder: Path) -> tuple[Spool, FailingStore]:
    store = FailingStore(folder / "worker-0" / "spool.db")
    spool = Spool(
        store,
        node="n",
        limits=LIMITS,
        durable=lambda _: None,
        committed=lambda _: None,
        moved=lambda *_: None,
    )
    return spool, store


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[tuple[Spool, FailingStore]]:
    spool, store = make(tmp_path)
    yield spool, store
    store.broken = False
    async with asyncio.timeout(5):
        while spool.state is State.BROKEN:
            await asyncio.sleep(0.01)
        await spool.close()


def state_of(spool: Spool) -> State:
    """Read the state anew, which type checkers believe cannot change between two lines."""
    return spool.state


async def until(done: Any) -> None:
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.002)


async def test_an_answer_leaves_after_the_commit_and_once(
    made: tuple[Spool, FailingStore], tmp_path: Path
) -> None:
    spool, _ = made
    client = Client()
    assert spool.append(run(count=2), 20) == 0
    assert spool.append(run(), 10) == 2
    spool.answer(client, b"a")
    spool.answer(client, b"b")
    assert client.heard == []
    await until(lambda: client.heard)
    assert client.heard == [b"ab"], "one write, in order"
    [stored] = Reader(tmp_path / "worker-0" / "spool.db").read_after(0, 1 << 20)
    assert [each.count for each in stored.group.runs] == [2, 1]


async def test_an_answer_to_nothing_is_given_at_once(made: tuple[Spool, FailingStore]) -> None:
    client = Client()
    made[0].answer(client, b"a")
    assert client.heard == [b"a"]


async def test_settled_groups_are_booked_as_delivered(
    made: tuple[Spool, FailingStore], tmp_path: Path
) -> None:
    spool, _ = made
    client = Client()
    spool.append(run("a", 2), 20)
    spool.append(run("b", 3), 30)
    spool.answer(client, b"x")
    await until(lambda: client.heard)
    before = ledger(tmp_path)
    assert (before["a"].accepted, before["a"].spooled, before["b"].spooled) == (2, 2, 3)
    letter = dead_letter(
        at_ms=1,
        tenant="a",
        device="d",
        stream="s",
        reason="r",
        detail="",
        received_at_ms=1,
        booking=Booking.POISON,
        payload=b"p",
    )
    spool.settled(spool.last_committed, 100, [letter])
    await until(lambda: ledger(tmp_path)["a"].spooled == 0)
    after = ledger(tmp_path)
    assert (after["a"].delivered, after["a"].dead_lettered, after["b"].delivered) == (1, 1, 3)
    assert all(entry.balanced for entry in after.values())


async def test_a_disk_that_refuses_answers_nobody_and_loses_nothing(
    made: tuple[Spool, FailingStore], tmp_path: Path
) -> None:
    spool, store = made
    patient, hasty = Client(), Client(withdraws=True)
    store.broken = True
    spool.append(run("a"), 10)
    spool.answer(patient, b"p")
    spool.append(run("b"), 10)
    statement: Statement = ("INSERT INTO idempotency VALUES (x'00', x'00', 1)", ())
    spool.current.tie(hasty, [statement])
    spool.answer(hasty, b"h")
    await until(lambda: spool.state is State.BROKEN)
    assert (patient.heard, hasty.refused) == ([], 1)
    store.broken = False
    await until(lambda: patient.heard)
    assert hasty.heard == []
    assert set(ledger(tmp_path)) == {"a"}, "what was withdrawn is not there"
    assert store.rows("SELECT count(*) FROM idempotency") == [(0,)]
    assert spool.state is State.OPEN


async def test_a_disk_that_refuses_is_heard_of_by_those_who_came_during_the_commit(
    made: tuple[Spool, FailingStore], tmp_path: Path
) -> None:
    spool, store = made
    store.broken = True
    patient, hasty = Client(), Client(withdraws=True)
    spool.append(run("a"), 10)
    spool.answer(patient, b"p")
    await until(lambda: not spool.scheduled)  # its commit is under way
    spool.append(run("b"), 10)
    spool.current.tie(hasty, ())
    spool.answer(hasty, b"h")
    await until(lambda: hasty.refused)
    assert (hasty.refused, hasty.heard) == (1, []), "told once, although its own commit was not tried"
    store.broken = False
    await until(lambda: patient.heard)
    assert set(ledger(tmp_path)) == {"a"}, "what was withdrawn is not there"


async def test_a_disk_is_not_well_before_it_has_taken_a_write(
    made: tuple[Spool, FailingStore], tmp_path: Path
) -> None:
    spool, store = made
    store.broken = True
    client = Client(withdraws=True)
    spool.append(run(), 10)
    spool.current.tie(client, ())
    spool.answer(client, b"x")
    await until(lambda: client.refused)
    refused = store.refused
    await until(lambda: store.refused > refused + 1)
    assert state_of(spool) is State.BROKEN, "nothing is left to write, and still the disk is asked"
    store.broken = False
    await until(lambda: spool.state is State.OPEN)
    assert ledger(tmp_path) == {}


async def test_a_full_spool_lets_in_again_when_there_is_room(made: tuple[Spool, FailingStore]) -> None:
    spool, _ = made
    client = Client()
    for _ in range(3):
        spool.append(run(size=4000), 4000)
        spool.answer(client, b"x")
        await until(lambda: client.heard)
        client.heard.clear()
    assert state_of(spool) is State.FULL
    let_in: list[int] = []
    spool.when_room(lambda: let_in.append(1))
    spool.settled(spool.last_committed, 4000, ())
    await until(lambda: let_in)
    assert state_of(spool) is State.OPEN


async def test_an_old_group_makes_the_spool_full(made: tuple[Spool, FailingStore]) -> None:
    spool, _ = made
    spool.note_oldest(1)
    assert state_of(spool) is State.FULL
    spool.note_oldest(None)
    assert state_of(spool) is State.OPEN


async def test_what_an_earlier_run_left_is_there_with_its_ids(tmp_path: Path) -> None:
    spool, _ = make(tmp_path)
    boot = spool.boot
    client = Client()
    spool.append(run(), 10)
    spool.answer(client, b"x")
    await until(lambda: client.heard)
    await spool.close()
    again, _ = make(tmp_path)
    assert again.boot != boot
    assert again.current.number > spool.current.number
    assert ordinal(again.current.number) == 1
    [left] = Reader(tmp_path / "worker-0" / "spool.db").read_after(0, 1 << 20)
    assert (left.group.boot, ordinal(left.group.number)) == (boot, 1)
    await again.close()


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "spool.db")
    with pytest.raises(SpoolError, match="in use"):
        Store(tmp_path / "spool.db")
    store.close()


def test_letters_are_listed_marked_and_purged(tmp_path: Path) -> None:
    store = Store(tmp_path / "worker-0" / "spool.db")
    statements = [
        dead_letter(
            at_ms=n,
            tenant="a",
            device="d",
            stream="s",
            reason="malformed",
            detail="x",
            received_at_ms=n,
            booking=Booking.ACKNOWLEDGED,
            payload=b"p",
        )
        for n in (1, 2)
    ]
    store.commit(None, statements, 1)
    found = letters(tmp_path, tenant="a", limit=10)
    assert [letter.name for letter in found] == ["worker-0/2", "worker-0/1"]
    assert mark_for_replay(tmp_path, name="worker-0/1") == (1, 0)
    assert [each.number for each in Reader(tmp_path / "worker-0" / "spool.db").replays(10)] == [1]
    assert purge(tmp_path, reason="malformed") == 2
    entry = ledger(tmp_path)["a"]
    assert (entry.accepted, entry.dead_lettered, entry.balanced) == (2, 2, True)
    with pytest.raises(SpoolError, match="not a dead letter"):
        purge(tmp_path, name="../x/1")
    store.close()


def test_a_failed_transaction_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "spool.db")
    group = StoredGroup(1, 1, {"a": 1}, b"body")
    with pytest.raises(SpoolError):
        store.commit(group, [("INSERT INTO nowhere VALUES (1)", ())], 1)
    store.commit(group, settle([99]), 1)
    assert store.figures().groups == 1
    store.close()
