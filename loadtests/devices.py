"""What a device does of itself: when it measures, by which clock, when it is out of reach, and what it owes.

A decider: time comes as an argument, chance from the seed. Times are monotonic seconds unless they end in
`_ms`, which is Unix time. A device keeps what it measured until it is answered, up to `backlog_max`; what is
not answered when its connection is lost goes again, in order, before what is newer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

MASK: Final = (1 << 64) - 1
Reading = tuple[int, int]
"""(sequence number, time by the device's clock in ms)."""


class Habit(msgspec.Struct, frozen=True, kw_only=True):
    """How the devices of a group behave."""

    period_s: float
    """Between two readings, on average."""
    jitter: float
    """A pause is between `1 - jitter` and `1 + jitter` of the period."""
    clock_error_s: float
    """A device's clock is wrong by up to so much, either way."""
    drift_ppm: float
    """And gains or loses up to so many seconds in a million."""
    offline_share: float
    """Of a device's time that it is out of reach."""
    offline_s: float
    """How long it is, on average, each time."""
    backlog_max: int
    """Readings that it keeps; beyond them the oldest are forgotten."""
    window: int
    """Readings that it may be owed an answer for at a time."""


class Chance:
    """A device's luck: SplitMix64, in a fiftieth of the memory of `random.Random`."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & MASK

    def random(self) -> float:
        """Return a number from 0 up to 1."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & MASK
        mixed = self._state
        mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & MASK
        return ((mixed ^ mixed >> 31) >> 11) / (1 << 53)

    def uniform(self, low: float, high: float) -> float:
        """Return a number between two."""
        return low + (high - low) * self.random()


class Device:
    """One device. `due_s` is when it wants to be told the time again."""

    __slots__ = (
        "_chance",
        "_clock_error_s",
        "_clock_rate",
        "_epoch_s",
        "_habit",
        "_next_reading_s",
        "_next_turn_s",
        "flying",
        "in_reach",
        "measured",
        "name",
        "refused",
        "repeated",
        "sent",
        "tenant",
        "unanswered",
        "waiting",
    )

    def __init__(self, tenant: str, name: str, habit: Habit, *, seed: int, now_s: float, now_ms: int) -> None:
        chance = Chance(seed)
        self.tenant = tenant
        self.name = name
        self._habit = habit
        self._chance = chance
        self._clock_error_s = now_ms / 1000 - now_s + chance.uniform(-1, 1) * habit.clock_error_s
        self._clock_rate = 1 + chance.uniform(-1, 1) * habit.drift_ppm / 1e6
        self._epoch_s = now_s
        self._next_reading_s = now_s + habit.period_s * chance.random()
        self.in_reach = True
        self._next_turn_s = now_s + self._turn_s()
        self.measured = 0
        self.sent = 0
        self.waiting: deque[Reading] = deque()
        self.flying: deque[tuple[int, int, float]] = deque()
        self.repeated: list[int] = []
        self.refused: dict[int, str] = {}
        self.unanswered: list[int] = []

    @property
    def due_s(self) -> float:
        """Return when it measures or comes into reach next, or leaves it."""
        return min(self._next_reading_s, self._next_turn_s)

    @property
    def settled(self) -> bool:
        """Return whether all that it has measured was answered."""
        return not self.waiting and not self.flying

    def clock_ms(self, now_s: float) -> int:
        """Return what its clock shows."""
        return int(1000 * (self._epoch_s + (now_s - self._epoch_s) * self._clock_rate + self._clock_error_s))

    def step(self, now_s: float, *, rate: float, measuring: bool) -> None:
        """Do what is due: measure, which happens `rate` times as often as is its habit, and come and go."""
        while self._next_reading_s <= now_s:
            if measuring:
                self._measure(self._next_reading_s)
            pause_s = self._habit.period_s / rate
            self._next_reading_s += pause_s * (1 + self._habit.jitter * self._chance.uniform(-1, 1))
        while self._next_turn_s <= now_s:
            self.in_reach = not self.in_reach
            self._next_turn_s += self._turn_s()
        if not measuring and not self.in_reach:  # at the end everybody comes home
            self.in_reach = True
            self._next_turn_s = float("inf")

    def go_out_of_reach(self, now_s: float, for_s: float) -> None:
        """Be out of reach from now on for so long: the network is away, or the power."""
        self.in_reach = False
        self._next_turn_s = now_s + for_s

    def _measure(self, at_s: float) -> None:
        self.measured += 1
        self.waiting.append((self.measured, self.clock_ms(at_s)))
        if len(self.waiting) > self._habit.backlog_max:
            self.unanswered.append(self.waiting.popleft()[0])

    def _turn_s(self) -> float:
        """Return how long it stays as it is."""
        habit = self._habit
        if not habit.offline_share:
            return float("inf")
        away_s = habit.offline_s
        mean_s = away_s * (1 - habit.offline_share) / habit.offline_share if self.in_reach else away_s
        return -math.log(1.0 - self._chance.random()) * mean_s

    def take(self, count_max: int, now_s: float) -> list[Reading]:
        """Return the oldest readings that may be sent now, which are in flight from then on."""
        room = self._habit.window - len(self.flying)
        taken: list[Reading] = []
        while self.waiting and len(taken) < min(room, count_max):
            reading = self.waiting.popleft()
            taken.append(reading)
            self.flying.append((*reading, now_s))
            if reading[0] <= self.sent:
                self.repeated.append(reading[0])
            else:
                self.sent = reading[0]
        return taken

    def answered(self, seqs: Iterable[int], reason: str, now_s: float) -> float:
        """Book an answer, a refusal if there is a reason; return how long the oldest of them waited.

        -1 if it was not owed: an answer to what was never asked, or a second one.
        """
        oldest_s = -1.0
        flying = self.flying
        for seq in seqs:
            if flying and flying[0][0] == seq:
                since_s = flying.popleft()[2]
            else:
                found = next((entry for entry in flying if entry[0] == seq), None)
                if found is None:
                    return -1.0
                flying.remove(found)
                since_s = found[2]
            oldest_s = max(oldest_s, now_s - since_s)
            if reason:
                self.refused[seq] = reason
        return oldest_s

    def again(self) -> None:
        """Note that the connection is lost: what was not answered goes again, first and in order."""
        self.waiting.extendleft((seq, ts_ms) for seq, ts_ms, _ in reversed(self.flying))
        self.flying.clear()

    def back_off_s(self, attempt: int, first_s: float, most_s: float) -> float:
        """Return how long to wait before trying again: full jitter over a span that doubles."""
        return self._chance.uniform(0.0, min(most_s, first_s * 2.0 ** min(attempt, 16)))

    def chance(self) -> float:
        """Return a number from 0 to 1, of this device's own luck."""
        return self._chance.random()
