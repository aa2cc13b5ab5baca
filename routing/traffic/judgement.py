"""Whether a canary is good, bad, or not known to be either yet.

Bad is what is proved, at any look, with a bounded probability of a mistake over the whole shift; good is
what is not proved to be bad after enough samples, and does not look worse than it may either.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from routing.traffic.counts import Counts
from routing.traffic.evidence import Evidence

QUANTILE: Final = 0.99
SLOW: Final = 1 - QUANTILE


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """What is asked of a canary. What is None is not asked.

    `success_min` is a part of its requests; `worse_max` the part of them by which more may fail than of the
    baseline's. `p99_max_ms` is taken up to the next bound that proxies count by, as is what the baseline's
    99th percentile allows, times `p99_ratio_max`. `mistakes_max` is the probability that a shift of a good
    canary is rolled back.
    """

    success_min: float | None = None
    worse_max: float | None = 0.005
    p99_max_ms: float | None = None
    p99_ratio_max: float | None = None
    samples_min: int = 500
    mistakes_max: float = 0.01


class Criterion(enum.Enum):
    """What a canary is judged by."""

    SUCCESS = "success"
    BASELINE = "baseline"
    P99 = "p99"
    P99_RATIO = "p99_ratio"


class Standing(enum.Enum):
    """What is known of a canary."""

    GOOD = "good"
    BAD = "bad"
    UNSURE = "unsure"


class Verdict(msgspec.Struct, frozen=True):
    """A standing, and the reason in words with figures."""

    standing: Standing
    why: str


class Known(msgspec.Struct, frozen=True):
    """What the baseline was before a look."""

    requests: int
    failures: int
    p99_ms: float | None

    @property
    def failure_rate(self) -> float:
        """Which part of it is expected to fail, which is never quite nothing (Laplace)."""
        return (self.failures + 1) / (self.requests + 2)


class Watch(msgspec.Struct, frozen=True):
    """What was seen of a step: the counts, the evidence, and what was known of the baseline before it."""

    canary: Counts = Counts()
    baseline: Counts = Counts()
    evidence: dict[Criterion, Evidence] = {}
    known: Known | None = None

    def after(self, canary: Counts, baseline: Counts, terms: Terms) -> Watch:
        """Return what was seen after another look, which counted this much more."""
        seen = self.baseline + baseline
        evidence = {
            each: self._evidence(each, canary, baseline, terms) for each in Criterion if _asked(each, terms)
        }
        return Watch(self.canary + canary, seen, evidence, _known(seen, self.known, terms.samples_min))

    def next_step(self) -> Watch:
        """Return the beginning of the step after this one."""
        return Watch(known=self.known)

    def verdict(self, terms: Terms, steps: int) -> Verdict:
        """Judge a canary, in one of so many steps."""
        asked = [each for each in Criterion if _asked(each, terms)]
        beyond = {each: said for each in asked if (said := self._beyond(each, terms))}
        for each, said in beyond.items():
            if self.evidence.get(each, Evidence()).proves(terms.mistakes_max / (steps * len(asked))):
                return Verdict(Standing.BAD, said)
        for each, said in beyond.items():
            return Verdict(Standing.UNSURE, f"{said}, which is not certain: {each.value}")
        timed = any(each in {Criterion.P99, Criterion.P99_RATIO} for each in asked)
        samples = min(self.canary.requests, self.canary.timed) if timed else self.canary.requests
        if samples < terms.samples_min:
            return Verdict(Standing.UNSURE, f"{samples} of {terms.samples_min} samples")
        if self.known is None and {Criterion.BASELINE, Criterion.P99_RATIO} & set(asked):
            return Verdict(Standing.UNSURE, "the baseline had no requests to compare with")
        return Verdict(Standing.GOOD, f"{samples} samples, {self.canary.failures} failed")

    def _evidence(self, of: Criterion, canary: Counts, baseline: Counts, terms: Terms) -> Evidence:
        before = self.evidence.get(of, Evidence())
        match of:
            case Criterion.SUCCESS:
                assert terms.success_min is not None
                return before.after(canary.failures, canary.requests, 1 - terms.success_min)
            case Criterion.P99:
                assert terms.p99_max_ms is not None
                return before.after(canary.slower(canary.bound(terms.p99_max_ms)), canary.timed, SLOW)
            case Criterion.BASELINE:
                assert terms.worse_max is not None
                chance = None if self.known is None else min(self.known.failure_rate + terms.worse_max, 1.0)
                failed = canary.failures, baseline.failures
                return _compared(before, failed, (canary.requests, baseline.requests), chance)
            case Criterion.P99_RATIO:
                if (bound := self._bound(canary, terms)) is None:
                    return before
                slow = canary.slower(bound), baseline.slower(bound)
                return _compared(before, slow, (canary.timed, baseline.timed), SLOW)

    def _beyond(self, of: Criterion, terms: Terms) -> str:
        """Say how the counts themselves are worse than they may be, or nothing."""
        canary = self.canary
        failed = f"{canary.failures} of {canary.requests} requests failed"
        match of:
            case Criterion.SUCCESS:
                assert terms.success_min is not None
                if canary.failure_rate > 1 - terms.success_min:
                    return f"{failed}, {1 - terms.success_min:.3%} may"
            case Criterion.BASELINE:
                assert terms.worse_max is not None
                known = self.known
                if known is not None and canary.failure_rate > known.failure_rate + terms.worse_max:
                    return f"{failed}, and {known.failures} of {known.requests} of the baseline's"
            case Criterion.P99:
                assert terms.p99_max_ms is not None
                return _slower(canary, canary.bound(terms.p99_max_ms))
            case Criterion.P99_RATIO:
                bound = self._bound(canary, terms)
                return "" if bound is None else _slower(canary, bound)
        return ""

    def _bound(self, canary: Counts, terms: Terms) -> float | None:
        """Return the bound which the baseline's 99th percentile allows, as far as it is known."""
        assert terms.p99_ratio_max is not None
        if self.known is None or self.known.p99_ms is None:
            return None
        return canary.bound(self.known.p99_ms * terms.p99_ratio_max)


def _compared(before: Evidence, hits: tuple[int, int], of: tuple[int, int], chance: float | None) -> Evidence:
    """Return the evidence that the first has more hits; where the second has nothing, more than `chance`."""
    if of[1]:
        return before.after(hits[0], sum(hits), of[0] / sum(of))
    return before if chance is None else before.after(hits[0], of[0], chance)


def _asked(criterion: Criterion, terms: Terms) -> bool:
    match criterion:
        case Criterion.SUCCESS:
            return terms.success_min is not None
        case Criterion.BASELINE:
            return terms.worse_max is not None
        case Criterion.P99:
            return terms.p99_max_ms is not None
        case Criterion.P99_RATIO:
            return terms.p99_ratio_max is not None


def _known(seen: Counts, before: Known | None, enough: int) -> Known | None:
    """Return what is known now: of this step, unless too little of it was seen and more was of the last."""
    if not seen.requests or (before is not None and seen.requests < min(before.requests, enough)):
        return before
    return Known(seen.requests, seen.failures, seen.quantile_ms(QUANTILE))


def _slower(canary: Counts, bound: float) -> str:
    slow = canary.slower(bound)
    if slow <= SLOW * canary.timed:
        return ""
    return f"{slow} of {canary.timed} requests took more than {bound:g} ms, {SLOW:.0%} may"
