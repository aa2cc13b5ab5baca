"""The ledger of the campaigns: lost, order, duplicates, and what nobody sent."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from loadtests.ledger import Ledger, Row, Verdict

ROW = Row("acme", "pump", 5, [], {}, [])
PUMP = ("acme", "pump")


def judged(row: Row, arrivals: list[int]) -> Verdict:
    ledger = Ledger([row])
    for seq in arrivals:
        ledger.deliver(PUMP, seq)
    return ledger.close()


def bad(verdict: Verdict) -> dict[str, int]:
    fields = ("lost", "out_of_order", "duplicates", "unexplained", "uninvited")
    return {field: getattr(verdict, field) for field in fields if getattr(verdict, field)}


@pytest.mark.parametrize(
    ("changes", "arrivals", "found"),
    [
        ({}, [1, 2, 3, 4, 5], {}),
        ({}, [1, 2, 4, 5], {"lost": 1}),
        ({}, [], {"lost": 5}),
        ({}, [1, 3, 2, 4, 5], {"out_of_order": 1}),
        ({}, [1, 2, 2, 3, 4, 5], {"unexplained": 1}),
        ({"repeated": [2]}, [1, 2, 2, 3, 4, 5], {"duplicates": 1}),
        ({"repeated": [2, 2]}, [1, 2, 3, 2, 2, 4, 5], {"duplicates": 2}),
        ({"repeated": [2, 3]}, [1, 2, 3, 2, 3, 4, 5], {"duplicates": 2}),
        ({}, [1, 2, 3, 4, 5, 6], {"uninvited": 1}),
        ({}, [0, 1, 2, 3, 4, 5], {"uninvited": 1}),
        ({"refused": {3: "malformed"}}, [1, 2, 4, 5], {}),
        ({"refused": {3: "malformed"}}, [1, 2, 3, 4, 5], {"uninvited": 1}),
        ({"unanswered": [5]}, [1, 2, 3, 4], {}),
        ({"unanswered": [5]}, [1, 2, 3, 4, 5], {}),
        ({"unanswered": [5, 6, 7]}, [1, 2, 3, 4], {}),
        ({"sent": 0}, [], {}),
    ],
    ids=str,
)
def test_it_finds_what_is_wrong_and_nothing_else(
    changes: dict[str, Any], arrivals: list[int], found: dict[str, int]
) -> None:
    assert bad(judged(msgspec.structs.replace(ROW, **changes), arrivals)) == found


def test_it_adds_up() -> None:
    rows = [
        ROW,
        Row("acme", "meter", 4, [4, 5], {2: "malformed"}, [1]),
        Row("other", "pump", 3, [], {1: "too_large", 2: "malformed"}, []),
    ]
    ledger = Ledger(rows)
    for tenant, device, seq in [
        *(("acme", "pump", seq) for seq in range(1, 6)),
        ("acme", "meter", 1),
        ("other", "pump", 3),
        ("acme", "meter", 3),
        ("acme", "meter", 1),
    ]:
        ledger.deliver((tenant, device), seq)
    verdict = ledger.close()
    assert (verdict.devices, verdict.sent, verdict.acknowledged) == (3, 12, 5 + 2 + 1)
    assert verdict.refused == {"malformed": 2, "too_large": 1}
    assert (verdict.unanswered, verdict.repeated, verdict.delivered) == (2, 1, 8)
    assert bad(verdict) == {"duplicates": 1}


def test_it_gives_a_few_examples() -> None:
    verdict = judged(msgspec.structs.replace(ROW, sent=100), [2, 1])
    assert verdict.lost == 98
    assert verdict.examples["lost"] == [f"acme/pump {seq}" for seq in range(3, 8)]
    assert verdict.examples["out_of_order"] == ["acme/pump 1"]


@pytest.mark.parametrize("seed", range(10))
def test_any_doctored_delivery_is_noticed(seed: int) -> None:
    chance = random.Random(seed)
    rows = [Row("acme", f"d{number}", chance.randrange(1, 40), [], {}, []) for number in range(20)]
    arrivals = [((row.tenant, row.device), seq) for row in rows for seq in range(1, row.sent + 1)]
    at = chance.randrange(len(arrivals))
    doctored = arrivals[:at] + arrivals[at + 1 :]
    if seed % 2:
        doctored = [*arrivals, arrivals[at]]
    ledger = Ledger(rows)
    for device, seq in doctored:
        ledger.deliver(device, seq)
    assert bad(ledger.close()) == ({"unexplained": 1} if seed % 2 else {"lost": 1})
