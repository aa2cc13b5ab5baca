"""What a fleet says at its end: rows for the ledger, figures, what Locust has counted. Imports no gevent."""

from __future__ import annotations

import msgspec

from loadtests.ledger import Row


class Figures(msgspec.Struct, frozen=True):
    """What a process says of its devices."""

    devices: int = 0
    up: int = 0
    open: int = 0
    """Readings that are not answered."""
    measuring: int = 0
    """Devices that go on measuring."""
    lost: int = 0
    turned_away: int = 0
    strange: int = 0
    back_longest_s: float = 0.0

    def plus(self, other: Figures) -> Figures:
        """Return the figures of both."""
        return Figures(
            **{
                field: getattr(self, field) + getattr(other, field)
                for field in self.__struct_fields__
                if field != "back_longest_s"
            },
            back_longest_s=max(self.back_longest_s, other.back_longest_s),
        )


class Measured(msgspec.Struct, frozen=True):
    """What Locust has counted under a name."""

    method: str
    name: str
    count: int
    failures: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    histogram: dict[int, int]


class Result(msgspec.Struct, frozen=True):
    """What the fleet says at the end."""

    rows: dict[str, list[Row]]
    figures: Figures
    measured: list[Measured]
    errors: dict[str, int]
    exceptions: list[str]
    settled: bool
    handed_over: bool
