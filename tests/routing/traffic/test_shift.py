"""A shift goes on, waits, gives up and goes back, by the time and by what proxies counted."""

from __future__ import annotations

import random

import pytest

from routing.traffic.counts import Counts, Reading
from routing.traffic.judgement import Terms
from routing.traffic.plan import planned
from routing.traffic.shift import Do, Pace, Shift
from routing.traffic.sides import Sides

SIDES = Sides("shop", "v2", ("v1",))
PACE = Pace(step_s=10, step_max_s=60, look_s=1)


def shift(terms: Terms | None, *steps: int) -> Shift:
    plan = planned(["v1", "v2"], [100, 0], to="v2", away=(), steps=steps or (5, 100))
    made = Shift(plan, PACE, terms, SIDES, step=-1)
    made.begin(0, 100.0)
    return made


def reading(canary: Counts, baseline: Counts) -> Reading:
    return {"proxy": {"cds_egress_shop_v2_http_80": canary, "cds_egress_shop_v1_http_80": baseline}}


def test_a_step_takes_its_time_and_its_samples() -> None:
    of = shift(Terms(samples_min=100))
    assert of.look(reading(Counts(), Counts()), 100.0).do is Do.WAIT
    early = of.look(reading(Counts(100), Counts(1000)), 105.0)
    assert (early.do, early.why) == (Do.WAIT, "100 samples, 0 failed")
    assert of.look(reading(Counts(100), Counts(1000)), 110.0).do is Do.STEP
    of.begin(1, 110.0)
    few = of.look(reading(Counts(199), Counts(1000)), 130.0)
    assert (few.do, few.why) == (Do.WAIT, "99 of 100 samples")
    assert of.look(reading(Counts(200), Counts(1000)), 130.0).do is Do.PROMOTE


def test_what_is_bad_goes_back_at_once() -> None:
    of = shift(Terms())
    of.look(reading(Counts(), Counts()), 100.0)
    said = of.look(reading(Counts(100, 5), Counts(1900)), 101.0)
    assert (said.do, said.why) == (
        Do.ROLL_BACK,
        "5 of 100 requests failed, and 0 of 1900 of the baseline's",
    )


def test_what_cannot_be_judged_goes_back_in_the_end() -> None:
    of = shift(Terms())
    assert of.look({}, 159.0).do is Do.WAIT
    said = of.look({}, 160.0)
    assert (said.do, said.why) == (Do.ROLL_BACK, "gave up after 60 s: 0 of 500 samples")


def test_what_was_counted_before_the_first_look_is_not_of_the_canary() -> None:
    of = shift(Terms(samples_min=1))
    of.look(reading(Counts(1000, 1000), Counts(1)), 100.0)
    assert of.look(reading(Counts(1001, 1000), Counts(10)), 110.0).do is Do.STEP


def test_a_shift_that_is_not_watched_goes_by_the_clock() -> None:
    of = shift(None)
    assert of.look({}, 109.0).do is Do.WAIT
    assert of.look({}, 110.0).do is Do.STEP


def simulated(seed: int, canary_rate: float, baseline_rate: float) -> Do:
    """Run a whole shift of 200 requests a look, and return how it ended."""
    chooser = random.Random(seed)
    of = shift(Terms(samples_min=200, mistakes_max=0.05), 10, 50, 100)
    canary = baseline = Counts()
    of.first(reading(canary, baseline))
    for look in range(1, 10_000):
        share = of.plan.share(of.step)
        asked = sum(chooser.random() < share for _ in range(200))
        canary += Counts(asked, sum(chooser.random() < canary_rate for _ in range(asked)))
        baseline += Counts(200 - asked, sum(chooser.random() < baseline_rate for _ in range(200 - asked)))
        said = of.look(reading(canary, baseline), 100.0 + look)
        if said.do is Do.STEP:
            of.begin(of.step + 1, 100.0 + look)
        elif said.do is not Do.WAIT:
            return said.do
    raise AssertionError


def test_whole_shifts_of_good_canaries_are_rolled_back_seldom() -> None:
    ends = [simulated(seed, 0.01, 0.01) for seed in range(100)]
    assert ends.count(Do.ROLL_BACK) <= 12  # of 5 on average at most, by three standard deviations


@pytest.mark.parametrize(("canary", "baseline"), [(0.05, 0.0), (0.05, 0.01), (0.5, 0.1)])
def test_whole_shifts_of_bad_canaries_are_never_promoted(canary: float, baseline: float) -> None:
    assert all(simulated(seed, canary, baseline) is Do.ROLL_BACK for seed in range(50))
