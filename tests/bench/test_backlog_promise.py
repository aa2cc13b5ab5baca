"""What `make backlog` makes of its samples: figures, and the promise."""

from __future__ import annotations

import msgspec
import pytest

from bench.backlog import MIB, Result, Sample, broken, result
from bench.side_by_side.measure import Driven

GROWING = [Sample(0.0, 0, 0, 0, 40 * MIB), Sample(10.0, 5000, 0, 5000, 100 * MIB)]
DRAINING = [
    Sample(0.0, 5000, 0, 5000, 110 * MIB),
    Sample(1.0, 5100, 2100, 3000, 150 * MIB),
    Sample(2.0, 5200, 5190, 10, 120 * MIB),
    Sample(3.0, 5210, 5210, 0, 120 * MIB),
]
FILLED = Driven(per_s=500, p50_ms=1, p99_ms=2, resumed=0, busy=0.1, all=5000)
STEADY = Driven(per_s=100, p50_ms=3, p99_ms=9, resumed=0, busy=0.1, all=205)


kept = result(per_s=100, growing=GROWING, draining=DRAINING, ended=True, filled=FILLED, steady=STEADY)


def test_rates_and_memory_are_those_of_the_drain() -> None:
    assert kept == Result(
        messages=5000,
        per_s=100,
        filled_per_s=500.0,
        drained_s=2.0,
        delivered_per_s=2595.0,
        accepted_per_s=100.0,
        p50_ms=3.0,
        p99_ms=9.0,
        memory_before_bytes=40 * MIB,
        memory_full_bytes=100 * MIB,
        memory_min_bytes=110 * MIB,
        memory_max_bytes=150 * MIB,
        lost=0,
    )
    assert broken(kept, growth_max_bytes=50 * MIB) == []


@pytest.mark.parametrize(
    ("of", "word"),
    [
        ({"drained_s": None}, "did not end"),
        ({"lost": 3}, "3 messages"),
        ({"accepted_per_s": 90.0}, "ingest fell to 90 of 100"),
        ({"memory_max_bytes": 151 * MIB}, "grew by 51 MiB, 50 are allowed"),
    ],
)
def test_each_part_of_the_promise_is_judged(of: dict[str, float], word: str) -> None:
    [said] = broken(msgspec.structs.replace(kept, **of), growth_max_bytes=50 * MIB)
    assert word in said


def test_what_was_accepted_and_never_acknowledged_is_not_lost() -> None:
    steady = msgspec.structs.replace(STEADY, all=300)
    of = result(per_s=100, growing=GROWING, draining=DRAINING, ended=False, filled=FILLED, steady=steady)
    assert (of.lost, of.drained_s) == (90, None)
    assert kept.lost == 0
