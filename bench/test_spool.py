"""The open group, and its commit: the file is on a real disk, and a commit is an fsync."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import corpus
from ingest.spool.group import OpenGroup
from ingest.spool.store import Store, StoredGroup, settle

COMMITS = 200
GROUP_RECORDS = 1000
SIZES = pytest.mark.parametrize("kib", [4, 64], ids=["4 KiB", "64 KiB"])


def filled(kib: int, number: int = 1) -> OpenGroup:
    opened = OpenGroup(number)
    for device in range(kib):
        run = corpus.run(device, corpus.RUN_RECORDS)
        opened.append(run, sum(map(len, run.payloads)))
    return opened


def stored(kib: int, number: int) -> StoredGroup:
    sealed = filled(kib, number).seal("bench", "boot")
    assert sealed is not None
    return sealed[1]


@pytest.fixture
def store(disk: Path) -> Iterator[Store]:
    made = Store(disk / "spool.db")
    yield made
    made.close()


def test_append(benchmark: Any) -> None:
    run = corpus.run(0, 1)
    opened = OpenGroup(1)

    def append() -> int:
        nonlocal opened
        if opened.records >= GROUP_RECORDS:
            opened = OpenGroup(1)
        return opened.append(run, 105)

    benchmark(append)


@SIZES
def test_seal(benchmark: Any, kib: int) -> None:
    _, group = benchmark(filled(kib).seal, "bench", "boot")
    assert abs(len(group.body) - 1024 * kib) < 0.1 * 1024 * kib


@SIZES
def test_commit(benchmark: Any, store: Store, kib: int) -> None:
    numbers = itertools.count(1)

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (stored(kib, next(numbers)), [], corpus.NOW_MS), {}

    benchmark.pedantic(store.commit, setup=prepare, rounds=COMMITS, warmup_rounds=10)
    assert store.figures().groups == next(numbers) - 1


@SIZES
def test_commit_that_also_settles_the_group_before(benchmark: Any, store: Store, kib: int) -> None:
    numbers = itertools.count(1)

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        number = next(numbers)
        return (stored(kib, number), settle((number - 1,)), corpus.NOW_MS), {}

    benchmark.pedantic(store.commit, setup=prepare, rounds=COMMITS, warmup_rounds=10)
    assert store.figures().groups == 1
