"""The local sink: each record once, the newest kept, and a file that cannot be written is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingest.delivery.local import LocalSink, open_local, query, used_bytes
from ingest.records import Encoding, Group, Run

MIB = 1 << 20
PADDING = "x" * 900


def payload(seq: int) -> bytes:
    return json.dumps({"seq": seq, "padding": PADDING}).encode()


def group(number: int, count: int = 100, node: str = "n") -> Group:
    """Return a group of `count` records of about one KiB, numbered on from those of the groups before."""
    first = number * count
    payloads = [payload(seq) for seq in range(first, first + count)]
    return Group(node, "boot", number, [Run("t", "d", "s", Encoding.JSON, first, count, payloads)])


class Running:
    """A sink that runs, with what it said."""

    def __init__(self, path: Path, bytes_max: int, tasks: asyncio.TaskGroup) -> None:
        self.settled: list[int] = []
        self.expired = 0
        self.troubles: list[str] = []
        self.sink = LocalSink(
            path,
            settled=lambda number, _: self.settled.append(number),
            bytes_max=bytes_max,
            pending_bytes_max=MIB,
            trouble=lambda event, _: self.troubles.append(event),
            expired=self._count,
        )
        self.task = tasks.create_task(self.sink.run())

    def _count(self, count: int) -> None:
        self.expired += count

    async def put(self, *groups: Group) -> None:
        """Put groups, each in a transaction of its own."""
        for each in groups:
            await self.sink.put(each)
            async with asyncio.timeout(10):
                while each.number not in self.settled:
                    await asyncio.sleep(0.002)


class Sinks:
    """Makes sinks that run until the test ends."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self.running: list[Running] = []

    def __call__(self, path: Path, bytes_max: int = MIB) -> Running:
        self.running.append(Running(path, bytes_max, self._tasks))
        return self.running[-1]


@pytest.fixture
async def run() -> AsyncIterator[Sinks]:
    async with asyncio.TaskGroup() as tasks:
        sinks = Sinks(tasks)
        yield sinks
        for each in sinks.running:
            each.task.cancel()


def used(path: Path) -> int:
    with contextlib.closing(open_local(path)) as connection:
        return used_bytes(connection)


def kept(path: Path) -> list[int]:
    """Return the numbers of the records that are there."""
    found = query(path, limit=1_000_000)
    return [json.loads(bytes(each.payload))["seq"] for each in found if not isinstance(each.payload, str)]


async def test_the_oldest_records_make_room_for_new_ones(tmp_path: Path, run: Sinks) -> None:
    path = tmp_path / "local.db"
    running = run(path)
    await running.put(*(group(number) for number in range(40)))
    there = kept(path)
    assert there == list(range(4000 - len(there), 4000)), "the newest, in order, and none is missing"
    assert 300 < len(there) < 1200
    assert running.expired == 4000 - len(there)
    assert running.troubles == ["local_sink_full"], "said once"
    assert used(path) <= MIB
    assert path.stat().st_size < 2 * MIB
    assert running.sink.state().ready


async def test_what_fits_is_kept(tmp_path: Path, run: Sinks) -> None:
    path = tmp_path / "local.db"
    running = run(path)
    await running.put(*(group(number) for number in range(4)))
    await running.put(group(3), group(0))  # delivered twice, as after a crash
    assert kept(path) == list(range(400))
    assert (running.expired, running.troubles) == (0, [])


async def test_a_limit_that_was_lowered_is_reached_step_by_step(tmp_path: Path, run: Sinks) -> None:
    path = tmp_path / "local.db"
    await run(path, 64 * MIB).put(*(group(number) for number in range(80)))
    before = used(path)
    assert before > 8 * MIB
    lowered = run(path)
    await lowered.put(group(80))
    step = before - used(path)
    assert 0 < step < 2 * MIB, "no transaction deletes all of it"
    await lowered.put(*(group(number) for number in range(81, 110)))
    assert used(path) <= MIB


async def test_all_workers_together_keep_to_the_limit(tmp_path: Path, run: Sinks) -> None:
    path = tmp_path / "local.db"
    one, other = run(path), run(path)
    for number in range(20):
        await one.put(group(number, node="one"))
        await other.put(group(number, node="other"))
    assert used(path) <= MIB
    assert one.expired + other.expired == 4000 - len(query(path, limit=10_000))
    assert {each.node for each in query(path, limit=300)} == {"one", "other"}


async def test_a_file_that_cannot_be_written_is_tried_again(tmp_path: Path, run: Sinks) -> None:
    path = tmp_path / "local.db"
    path.mkdir()
    running = run(path)
    await running.sink.put(group(0))
    async with asyncio.timeout(5):
        while not running.troubles:
            await asyncio.sleep(0.01)
    assert running.troubles == ["local_sink_refuses"]
    assert not running.sink.state().ready
    path.rmdir()
    await running.put(group(1))
    assert kept(path) == list(range(200))
    assert running.sink.state().ready
