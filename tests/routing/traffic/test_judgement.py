"""A canary is bad when that is proved, good after enough samples, and otherwise not known."""

from __future__ import annotations

import math
import random

import pytest

from routing.traffic.counts import Counts
from routing.traffic.judgement import Standing, Terms, Watch

STEPS = 4


def counts(requests: int, failures: int = 0, slow: int = 0, fast_ms: float = 10.0) -> Counts:
    within = {fast_ms: requests - slow, 100.0: requests - slow, 250.0: requests, math.inf: requests}
    return Counts(requests, failures, within)


def judged(terms: Terms, *looks: tuple[Counts, Counts]) -> tuple[Standing, str]:
    watch = Watch()
    for canary, baseline in looks:
        watch = watch.after(canary, baseline, terms)
    verdict = watch.verdict(terms, STEPS)
    return verdict.standing, verdict.why


def test_too_few_samples_are_no_verdict() -> None:
    assert judged(Terms(), (counts(499), counts(9000))) == (Standing.UNSURE, "499 of 500 samples")
    assert judged(Terms(), (counts(500), counts(9000))) == (Standing.GOOD, "500 samples, 0 failed")


def test_without_a_baseline_nothing_is_compared() -> None:
    said = "the baseline had no requests to compare with"
    assert judged(Terms(), (counts(500), counts(0))) == (Standing.UNSURE, said)
    assert judged(Terms(worse_max=None), (counts(500), counts(0)))[0] is Standing.GOOD


@pytest.mark.parametrize(
    ("terms", "canary", "baseline", "said"),
    [
        (Terms(), counts(100, 5), counts(1900), "5 of 100 requests failed, and 0 of 1900 of the baseline's"),
        (
            Terms(success_min=0.99, worse_max=None),
            counts(100, 20),
            counts(0),
            "20 of 100 requests failed, 1.000% may",
        ),
        (
            Terms(p99_max_ms=90, worse_max=None),
            counts(100, slow=20),
            counts(0),
            "20 of 100 requests took more than 100 ms, 1% may",
        ),
    ],
)
def test_what_is_proved_is_bad_before_all_samples_are_there(
    terms: Terms, canary: Counts, baseline: Counts, said: str
) -> None:
    assert judged(terms, (canary, baseline)) == (Standing.BAD, said)


def test_what_may_be_chance_is_waited_for() -> None:
    standing, said = judged(Terms(), (counts(500, 6), counts(500, 2)))
    assert standing is Standing.UNSURE
    assert said == "6 of 500 requests failed, and 2 of 500 of the baseline's, which is not certain: baseline"


def test_a_difference_that_is_small_is_no_reason() -> None:
    looks = [(counts(10_000, 30), counts(10_000, 0))] * 10
    assert judged(Terms(worse_max=0.005), *looks)[0] is Standing.GOOD
    assert judged(Terms(worse_max=0.001), *looks)[0] is Standing.BAD


def test_a_canary_is_slower_than_the_baseline_was() -> None:
    terms = Terms(p99_ratio_max=1.5)
    fast, slow = (counts(100), counts(1900)), (counts(100, slow=20), counts(1900))
    assert judged(terms, fast, fast)[0] is Standing.UNSURE
    assert judged(terms, fast, slow)[0] is Standing.BAD
    both = (counts(100, slow=20), counts(1900, slow=380))
    assert judged(terms, fast, both)[0] is not Standing.BAD


def test_a_canary_alone_is_compared_with_the_baseline_of_the_step_before() -> None:
    terms = Terms(p99_ratio_max=1.5, samples_min=100)
    before = Watch().after(counts(500), counts(500), terms).next_step()
    alone = counts(0)
    good = before.after(counts(500), counts(3, 3), terms).after(counts(500), alone, terms)
    assert good.verdict(terms, STEPS).standing is Standing.GOOD
    bad = before.after(counts(500), alone, terms).after(counts(500, 100), alone, terms)
    assert bad.verdict(terms, STEPS).standing is Standing.BAD
    slow = before.after(counts(500, slow=100), alone, terms)
    assert slow.verdict(terms, STEPS).standing is Standing.BAD


def test_good_canaries_are_found_bad_no_more_often_than_said() -> None:
    terms = Terms(success_min=0.98, p99_max_ms=90, p99_ratio_max=1.0, worse_max=0.0, mistakes_max=0.1)
    wrong = 0
    for seed in range(200):
        chooser = random.Random(seed)

        def drawn(count: int, chooser: random.Random = chooser) -> Counts:
            failed = sum(chooser.random() < 0.02 for _ in range(count))
            return counts(count, failed, sum(chooser.random() < 0.01 for _ in range(count)))

        watch, bad = Watch(), False
        for _ in range(30):
            watch = watch.after(drawn(40), drawn(60), terms)
            bad = bad or watch.verdict(terms, 1).standing is Standing.BAD
        wrong += bad
    assert wrong <= 33  # of 20 on average, by three standard deviations


def test_bad_canaries_are_never_promoted_for_want_of_proof() -> None:
    terms = Terms()
    for seed in range(100):
        chooser = random.Random(seed)
        watch = Watch()
        for _ in range(200):
            failed = sum(chooser.random() < 0.05 for _ in range(20))
            watch = watch.after(counts(20, failed), counts(380), terms)
            standing = watch.verdict(terms, STEPS).standing
            if standing is not Standing.UNSURE:
                break
        assert standing is Standing.BAD
