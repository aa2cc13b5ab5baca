"""What `make million` decides without a gateway: how many processes, the sums, and the promise."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from loadtests.million import promise
from loadtests.million.compiler import NoGenerator, compiled
from loadtests.million.fleet import Counts, add_up, quantile_ms
from loadtests.million.node import connections_max
from loadtests.million.run import shares_of, workers_for
from loadtests.node import Entry, Status

COUNTS = Counts(up=10, sent=20, acknowledged=20, latencies=[(1000, 19), (2000, 1)], latencies_max_us=1900)
STATUS = Status(
    ready=True,
    connections=10,
    accepted=20,
    delivered=20,
    refused={},
    ledger={"a": Entry(15, 15, 0, 0), "b": Entry(5, 5, 0, 0)},
    acknowledge_p99_s=None,
)


@pytest.mark.parametrize("devices", [1, 300, 34_000, 1_000_000])
def test_no_worker_gets_more_connections_than_it_has_descriptors_for(devices: int) -> None:
    workers = workers_for(devices, 20_000, 2)
    mean = devices / workers
    assert mean + 5 * math.sqrt(mean) < connections_max(20_000, workers)
    assert workers == 2 or devices / (workers - 1) > 0.95 * connections_max(20_000, workers)


@pytest.mark.parametrize("devices", [1, 300, 20_001, 1_000_000])
def test_the_shares_of_the_generators_are_all_devices_once(devices: int) -> None:
    shares = shares_of(devices, 20_000)
    assert [first for first, _ in shares] == [
        sum(count for _, count in shares[:n]) for n in range(len(shares))
    ]
    assert sum(count for _, count in shares) == devices
    assert max(count for _, count in shares) < 20_000


def test_counts_are_added_and_times_span_all() -> None:
    later = Counts(up=1, first_s=3.0, last_s=9.0, latencies=[(1000, 1)], latencies_max_us=7)
    summed = add_up(
        [Counts(up=2, first_s=2.0, last_s=4.0, latencies=[(1000, 2), (5000, 1)]), later, Counts()]
    )
    assert (summed.up, summed.first_s, summed.last_s, summed.latencies_max_us) == (3, 2.0, 9.0, 7)
    assert summed.latencies == [(1000, 3), (5000, 1)]
    assert add_up([]).first_s == 0.0


def test_a_quantile_is_the_end_of_its_slot() -> None:
    assert quantile_ms(COUNTS.latencies, 0.5) == 1.0
    assert quantile_ms(COUNTS.latencies, 0.99) == 2.0
    assert quantile_ms(None, 0.5) == quantile_ms([], 0.5) == 0.0


def test_a_promise_that_holds_is_kept() -> None:
    parts = [
        *promise.of_connecting(10, COUNTS),
        *promise.of_holding(10, COUNTS, STATUS, p99_ms=250),
        *promise.of_ledger(COUNTS, STATUS),
        *promise.of_draining(0),
    ]
    assert all(part.kept for part in parts)


@pytest.mark.parametrize(
    "change",
    [
        {"sent": 21},
        {"sent": 0, "acknowledged": 0},
        {"acknowledged": 21, "sent": 21},
        {"acknowledged": 19, "sent": 19},
        {"strange": 1},
    ],
    ids=str,
)
def test_sums_that_differ_break_it(change: dict[str, int]) -> None:
    parts = promise.of_ledger(msgspec.structs.replace(COUNTS, **change), STATUS)
    assert not all(part.kept for part in parts)


def test_what_was_sent_again_may_be_there_twice() -> None:
    counts = msgspec.structs.replace(COUNTS, acknowledged=19, sent=19, resent=1)
    assert all(part.kept for part in promise.of_ledger(counts, STATUS))


@pytest.mark.parametrize(
    "change",
    [
        {"refused": {"device_limit": 1}},
        {"delivered": 19},
        {"accepted": 21},
        {"ledger": {"a": Entry(20, 19, 1, 0)}},
        {"ledger": {"a": Entry(20, 19, 0, 1)}},
    ],
    ids=str,
)
def test_a_ledger_that_lacks_something_breaks_it(change: dict[str, object]) -> None:
    parts = promise.of_ledger(COUNTS, msgspec.structs.replace(STATUS, **change))
    assert not all(part.kept for part in parts)
    assert not promise.of_ledger(COUNTS, None)[0].kept


@pytest.mark.parametrize(
    ("change", "p99_ms"), [({"lost": 1}, 250), ({"up": 9}, 250), ({"latencies": []}, 250), ({}, 1.5)], ids=str
)
def test_a_hold_that_is_not_as_promised_breaks_it(change: dict[str, object], p99_ms: float) -> None:
    counts = msgspec.structs.replace(COUNTS, **change)
    assert not all(part.kept for part in promise.of_holding(10, counts, STATUS, p99_ms=p99_ms))


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"back": 9}, False),
        ({"last_back_s": 131.0}, False),
        ({"lost": 1}, False),
        ({"waits_max_us": 16_000_000}, False),
    ],
    ids=str,
)
def test_a_storm_is_over_when_the_last_is_served(change: dict[str, object], kept: bool) -> None:
    storm = Counts(back=10, dropped_s=100.0, last_back_s=120.0, waits_max_us=4_000_000)
    parts = promise.of_returning(10, msgspec.structs.replace(storm, **change), within_s=30)
    assert all(part.kept for part in parts) is kept


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(NoGenerator, match="there is no C compiler no-such-cc; install one"):
        compiled(tmp_path, tls=False, compiler="no-such-cc")


def test_what_does_not_compile_is_said_with_the_compilers_words(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'openssl/ssl.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(NoGenerator, match=r"(?s)libssl-dev.*openssl/ssl.h: No such file"):
        compiled(tmp_path, tls=True, compiler=str(compiler))
