"""A series: one metric of one stream of a device. With no device it is the tenant's, of all its devices."""

from __future__ import annotations

from typing import Final

import msgspec

from services.analytics.baseline import Baseline
from services.analytics.rollup import Rollup

EVERY_DEVICE: Final = ""
"""The device of the series that are of all devices of a tenant."""


class Key(msgspec.Struct, frozen=True):
    """What a series is known by."""

    tenant: str
    device: str
    stream: str
    metric: str


class Anomaly(msgspec.Struct, frozen=True):
    """A reading that was far off: when, what, and by how many deviations."""

    at_ms: int
    value: float
    sigma: float


class Series(msgspec.Struct, kw_only=True):
    """What is kept of a series, and the roll-ups of its finest windows that are not stored yet.

    `number` is 0 until it is stored. `sigma` is of the last number that was scored, `anomaly` the last there
    was, of `anomalies`.
    """

    key: Key
    number: int = 0
    last_ms: int = 0
    last: float | None = None
    baseline: Baseline = msgspec.field(default_factory=Baseline)
    sigma: float | None = None
    anomalies: int = 0
    anomaly: Anomaly | None = None
    windows: dict[int, Rollup] = msgspec.field(default_factory=dict)

    def window(self, start_s: int) -> Rollup:
        """Return the roll-up of a window that is not stored yet."""
        found = self.windows.get(start_s)
        if found is None:
            found = self.windows[start_s] = Rollup()
        return found


class Device(msgspec.Struct, kw_only=True):
    """What is kept of a device: its latest time, and how many of its values were dropped, by why."""

    tenant: str
    name: str
    high_ms: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)
