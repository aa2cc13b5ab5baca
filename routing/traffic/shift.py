"""A shift, step by step: what is to be done next, given the time and a reading of the statistics."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from routing.traffic.counts import Reading, grown, latest
from routing.traffic.judgement import Standing, Terms, Verdict, Watch
from routing.traffic.plan import Plan
from routing.traffic.sides import Sides

GAVE_UP: Final = "gave up"


class Do(enum.Enum):
    """What is to be done."""

    WAIT = "wait"
    STEP = "step"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"


class Next(msgspec.Struct, frozen=True):
    """What is to be done, and why."""

    do: Do
    why: str


class Pace(msgspec.Struct, frozen=True, array_like=True):
    """How long a step takes at least, after how long nothing better is hoped for, and how often one looks."""

    step_s: float
    step_max_s: float
    look_s: float


class Shift:
    """The state of a shift between two looks. `step` is the one that is set; `began_s` when it was.

    A shift without terms is not watched: its steps take their time, and no more.
    """

    def __init__(self, plan: Plan, pace: Pace, terms: Terms | None, sides: Sides, *, step: int) -> None:
        self.plan = plan
        self.pace = pace
        self.terms = terms
        self.step = step
        self.watch = Watch()
        self._sides = sides
        self._began_s = 0.0
        self._read: Reading = {}

    def first(self, reading: Reading) -> None:
        """Take the reading from which on is counted."""
        self._read = latest(self._read, reading)

    def begin(self, step: int, now_s: float) -> None:
        """Hear that the weights of a step are set."""
        self.step = step
        self.watch = self.watch.next_step()
        self._began_s = now_s

    def look(self, reading: Reading, now_s: float) -> Next:
        """Take a reading, which may be empty, and say what is to be done."""
        verdict = self._seen(reading)
        lasted_s = now_s - self._began_s
        if verdict.standing is Standing.BAD:
            return Next(Do.ROLL_BACK, verdict.why)
        if verdict.standing is Standing.GOOD and lasted_s >= self.pace.step_s:
            last = self.step == len(self.plan.steps) - 1
            return Next(Do.PROMOTE if last else Do.STEP, verdict.why)
        if lasted_s >= self.pace.step_max_s:
            return Next(Do.ROLL_BACK, f"{GAVE_UP} after {lasted_s:.0f} s: {verdict.why}")
        return Next(Do.WAIT, verdict.why)

    def _seen(self, reading: Reading) -> Verdict:
        if self.terms is None:
            return Verdict(Standing.GOOD, "by the clock")
        canary, baseline = self._sides.counted(grown(self._read, reading))
        self._read = latest(self._read, reading)
        self.watch = self.watch.after(canary, baseline, self.terms)
        return self.watch.verdict(self.terms, len(self.plan.steps))
