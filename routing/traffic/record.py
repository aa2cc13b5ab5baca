"""What is noted of a shift at its route, in tags of at most 256 characters, for whoever looks after it."""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec

from routing.traffic import route
from routing.traffic.judgement import Terms
from routing.traffic.plan import BEFORE, Plan
from routing.traffic.shift import Pace

TAG: Final = "headworks:shift"
PLAN: Final = "headworks:shift:plan"
TERMS: Final = "headworks:shift:terms"
WHY: Final = "headworks:shift:why"
VALUE_MAX: Final = 256
LOOKS_MISSED: Final = 3
CALLS_S: Final = 10.0
"""How long the calls of a look may take."""


class State(enum.Enum):
    """Where a shift is."""

    RUNNING = "running"
    RESTORING = "restoring"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    STOPPED = "stopped"


OPEN: Final = {State.RUNNING, State.RESTORING}


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Who shifts, since when, which step is set, and when they looked last; times are seconds since 1970.

    `digest` is of the route without its weights.
    """

    id: str
    by: str
    state: State
    step: int
    began_s: float
    beat_s: float
    digest: str


class Record(msgspec.Struct, frozen=True):
    """All that is noted. Without terms, it is not watched."""

    head: Head
    plan: Plan
    pace: Pace
    terms: Terms | None
    why: str = ""

    @property
    def open(self) -> bool:
        """Whether somebody is to bring it to an end."""
        return self.head.state in OPEN

    def stalled(self, now_s: float) -> bool:
        """Say whether nobody has looked after it for longer than looks take."""
        return self.open and now_s - self.head.beat_s > LOOKS_MISSED * self.pace.look_s + CALLS_S

    def after(self, now_s: float, **changes: Any) -> Record:
        """Return it with other members of its head, at a time."""
        return msgspec.structs.replace(
            self, head=msgspec.structs.replace(self.head, beat_s=round(now_s, 3), **changes)
        )

    def explains(self, spec: dict[str, Any]) -> bool:
        """Say whether the route is as this shift has left it: nobody else has changed it.

        A step is noted before it is set, and may be one up or, of a shift that goes on, one down.
        """
        if route.digest(spec) != self.head.digest:
            return False
        last = len(self.plan.steps) - 1
        steps = {self.head.step, max(self.head.step - 1, BEFORE), min(self.head.step + 1, last)}
        if self.head.state is State.RESTORING:
            steps.add(BEFORE)
        return route.weights(spec) in {self.plan.weights(step) for step in steps}


def tags_of(record: Record) -> dict[str, str]:
    """Return the tags of a record."""
    made = {
        TAG: msgspec.json.encode(record.head).decode(),
        PLAN: msgspec.json.encode(record.plan).decode(),
        TERMS: msgspec.json.encode((record.pace, record.terms)).decode(),
        WHY: record.why[:VALUE_MAX],
    }
    assert all(len(value) <= VALUE_MAX for value in made.values())
    return made


def record_in(tags: dict[str, str]) -> Record | None:
    """Return the record that tags have, or None; raises msgspec.DecodeError where they are not ours."""
    if TAG not in tags:
        return None
    pace, terms = msgspec.json.decode(tags.get(TERMS, ""), type=tuple[Pace, Terms | None])
    return Record(
        msgspec.json.decode(tags[TAG], type=Head),
        msgspec.json.decode(tags.get(PLAN, ""), type=Plan),
        pace,
        terms,
        tags.get(WHY, ""),
    )
