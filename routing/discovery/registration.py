"""What AWS Cloud Map is to be told next of one instance: from what it was told, and what checks say."""

from __future__ import annotations

import enum
from typing import Final

from routing.balancing.policy import Random
from routing.resilience.backoff import full_jitter_s

RETRY_BASE_S: Final = 0.5
RETRY_CAP_S: Final = 30.0
SETTLE_S: Final = 60.0
"""How long Cloud Map may not know an instance yet that it was told of: it registers in the background."""


class Step(enum.Enum):
    """A call to Cloud Map."""

    REGISTER = "register"
    CONFIRM = "confirm"
    """Say how healthy it is, or look whether it is still there."""


class Registration:
    """An instance is registered once it is healthy, and confirmed each `every_s` and when its health changes.

    Every call is answered by exactly one of `done`, `lost` and `failed`.
    """

    def __init__(self, *, every_s: float, random: Random) -> None:
        self._every_s = every_s
        self._random = random
        self._registered_s: float | None = None
        self._told: bool | None = None
        self._known = False
        self._due_s = 0.0
        self._retry_s = 0.0
        self.failures = 0
        """In a row."""

    @property
    def registered(self) -> bool:
        """Whether Cloud Map was told of the instance."""
        return self._registered_s is not None

    def step(self, *, healthy: bool, now_s: float) -> Step | None:
        """Return what is to be done now."""
        if now_s < self._retry_s:
            return None
        if self._registered_s is None:
            return Step.REGISTER if healthy else None
        return Step.CONFIRM if healthy != self._told or now_s >= self._due_s else None

    def due_in_s(self, *, healthy: bool, now_s: float) -> float:
        """Return how long nothing is to be done, if nothing changes."""
        if self._registered_s is None and not healthy:
            return self._every_s
        waits = healthy == self._told and self.registered
        return max(0.0, (max(self._due_s, self._retry_s) if waits else self._retry_s) - now_s)

    def done(self, step: Step, *, healthy: bool, now_s: float) -> None:
        """Hear that Cloud Map took what it was told."""
        if step is Step.REGISTER:
            self._registered_s = now_s
        self._known = step is Step.CONFIRM
        self._told = healthy
        self._due_s = now_s + self._every_s
        self._retry_s = 0.0
        self.failures = 0

    def lost(self, now_s: float) -> bool:
        """Hear that Cloud Map does not know the instance; return whether it is registered again."""
        assert self._registered_s is not None
        if not self._known and now_s - self._registered_s < SETTLE_S:
            self.failed(now_s)
            return False
        self._registered_s = self._told = None
        self._retry_s = 0.0
        return True

    def failed(self, now_s: float) -> None:
        """Hear that a call failed: the next comes later, each time at most twice as late."""
        self.failures += 1
        self._retry_s = now_s + full_jitter_s(
            self.failures, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, random=self._random
        )
