"""When to look at which connection: a wheel of seconds, so that a packet costs a deadline nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import Generic, Protocol, TypeVar


class Watched(Protocol):
    """What can be on a wheel; `due_s` is the wheel's own."""

    due_s: int


WatchedT = TypeVar("WatchedT", bound=Watched)


class Wheel(Generic[WatchedT]):
    """Holds each connection in the slot of the second in which it is to be looked at."""

    def __init__(self, now_s: float) -> None:
        self._slots: defaultdict[int, set[WatchedT]] = defaultdict(set)
        self._turned_to = int(now_s)

    def watch(self, watched: WatchedT, in_s: float, now_s: float) -> None:
        """Look at `watched` in `in_s`, and not when it was to be looked at before."""
        self.unwatch(watched)
        watched.due_s = max(int(now_s + in_s), self._turned_to) + 1
        self._slots[watched.due_s].add(watched)

    def unwatch(self, watched: WatchedT) -> None:
        """Take `watched` off, which would else be kept until its slot comes."""
        slot = self._slots.get(watched.due_s)
        if slot is not None:
            slot.discard(watched)
            if not slot:
                del self._slots[watched.due_s]

    def turn(self, now_s: float) -> list[WatchedT]:
        """Return, and take off, all that are due."""
        due: list[WatchedT] = []
        while self._turned_to < int(now_s):
            self._turned_to += 1
            due.extend(self._slots.pop(self._turned_to, ()))
        return due
