"""Evidence is mistaken as seldom as it says, however often it is looked at, and finds what is wrong."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.traffic.evidence import ODDS, Evidence

ALPHA = 0.1
RUNS = 400
ALLOWED = 60
"""More than 40 of 400, by three standard deviations."""


@given(of=st.integers(1, 6), chance=st.floats(0.01, 0.99), less=st.floats(0, 1))
def test_a_look_does_not_grow_on_average_where_all_is_well(of: int, chance: float, less: float) -> None:
    truth = chance * less
    for place in range(len(ODDS)):
        mean = math.fsum(
            math.comb(of, hits)
            * truth**hits
            * (1 - truth) ** (of - hits)
            * math.exp(Evidence().after(hits, of, chance).logs[place])
            for hits in range(of + 1)
        )
        assert mean <= 1 + 1e-9


@given(canary=st.integers(1, 12), baseline=st.integers(1, 12), data=st.data())
def test_nor_where_failures_fall_on_two_by_chance(canary: int, baseline: int, data: st.DataObject) -> None:
    failures = data.draw(st.integers(0, canary + baseline))
    chance = canary / (canary + baseline)
    ways = math.comb(canary + baseline, failures)
    for place in range(len(ODDS)):
        mean = math.fsum(
            math.comb(canary, hits)
            * math.comb(baseline, failures - hits)
            / ways
            * math.exp(Evidence().after(hits, failures, chance).logs[place])
            for hits in range(min(canary, failures) + 1)
        )
        assert mean <= 1 + 1e-9


def looked(
    seed: int, share: float, canary: float, baseline: float, count: int = 60, lot: int = 100
) -> int | None:
    """Look `count` times, after `lot` requests each, and return the look that proves something."""
    chooser = random.Random(seed)
    evidence = Evidence()
    for look in range(count):
        asked = sum(chooser.random() < share for _ in range(lot))
        hits = sum(chooser.random() < canary for _ in range(asked))
        others = sum(chooser.random() < baseline for _ in range(lot - asked))
        evidence = evidence.after(hits, hits + others, asked / lot)
        if evidence.proves(ALPHA):
            return look
    return None


@pytest.mark.parametrize(("share", "rate"), [(0.05, 0.02), (0.5, 0.1)])
def test_equal_canaries_are_found_bad_no_more_often_than_said(share: float, rate: float) -> None:
    wrong = sum(looked(seed, share, rate, rate, 30) is not None for seed in range(RUNS))
    assert wrong <= ALLOWED


def test_a_rate_that_goes_up_for_both_proves_nothing() -> None:
    wrong = 0
    for seed in range(RUNS):
        chooser = random.Random(seed)
        evidence, proved = Evidence(), False
        for look in range(30):
            rate = 0.01 if look % 3 else 0.3
            share = 0.05 if look < 15 else 0.5
            asked = sum(chooser.random() < share for _ in range(100))
            hits = sum(chooser.random() < rate for _ in range(asked))
            others = sum(chooser.random() < rate for _ in range(100 - asked))
            evidence = evidence.after(hits, hits + others, asked / 100)
            proved = proved or evidence.proves(ALPHA)
        wrong += proved
    assert wrong <= ALLOWED


def test_a_rate_at_its_limit_is_found_above_it_no_more_often_than_said() -> None:
    wrong = 0
    for seed in range(RUNS):
        chooser = random.Random(seed)
        evidence, proved = Evidence(), False
        for _ in range(60):
            evidence = evidence.after(sum(chooser.random() < 0.05 for _ in range(50)), 50, 0.05)
            proved = proved or evidence.proves(ALPHA)
        wrong += proved
    assert wrong <= ALLOWED


def test_a_canary_that_fails_is_found_after_a_few_failures() -> None:
    assert all(looked(seed, 0.05, 0.05, 0.0) is not None for seed in range(100))
    assert all(looked(seed, 0.5, 1.0, 0.0) == 0 for seed in range(20))


@pytest.mark.parametrize(("share", "failures"), [(0.05, 3), (0.2, 5), (0.5, 10)])
def test_a_few_failures_of_one_side_alone_are_proof(share: float, failures: int) -> None:
    alpha = 0.01 / 4
    assert not Evidence().after(failures - 1, failures - 1, share).proves(alpha)
    assert Evidence().after(failures, failures, share).proves(alpha)


def test_all_that_fail_of_none_that_may_are_proof() -> None:
    assert not Evidence().after(1, 1000, 0.0).proves(0.001)
    assert Evidence().after(3, 1000, 0.0).proves(0.001)
    assert Evidence().after(0, 1000, 0.5).log < 0
