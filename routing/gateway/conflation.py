"""Which live values a dashboard sees: its filter, and what is left when it reads slower than they come.

For each (device, stream, metric) only the newest value is kept until the dashboard takes it; what it replaced
is counted as *conflated*. So memory is bounded by `KEYS_MAX` values a dashboard, however slow it is; a key
for which there is no room is counted as *dropped*. Taken = sent + conflated + dropped + kept, always.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, TypeVar

import msgspec

KEYS_MAX: Final = 10_000
VALUES_A_BATCH_MAX: Final = 1000
REMEMBERED_MAX: Final = 10_000
"""Names of devices for which a filter knows already whether they match."""
Pattern = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~:@=/*?-]{1,128}$")]
Patterns = Annotated[list[Pattern], msgspec.Meta(max_length=64)]
Value = bool | int | float | str
KeyT = TypeVar("KeyT")


class Subscription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a dashboard asks for: names with `*` and `?`. A list that is left out lets everything pass."""

    devices: Patterns = msgspec.field(default_factory=lambda: ["*"])
    streams: Patterns = msgspec.field(default_factory=lambda: ["*"])
    metrics: Patterns = msgspec.field(default_factory=lambda: ["*"])
    every_ms: Annotated[int, msgspec.Meta(ge=50, le=60_000)] = 500
    tenant: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~:@=-]{0,128}$")] = ""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics that one message of a device has, at Unix time `ts` in ms."""

    device: str
    stream: str
    ts: int
    metrics: Mapping[str, Value]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The newest value of a metric."""

    device: str
    stream: str
    metric: str
    ts: int
    value: Value


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What a dashboard is sent at once, with what it missed since the last one."""

    values: list[Kept]
    conflated: int
    dropped: int


class Filter:
    """A compiled subscription; it remembers what it found of a name, since names come again and again."""

    __slots__ = ("_devices", "_known_metrics", "_known_sources", "_metrics", "_streams")

    def __init__(self, subscription: Subscription) -> None:
        self._devices = _compiled(subscription.devices)
        self._streams = _compiled(subscription.streams)
        self._metrics = _compiled(subscription.metrics)
        self._known_sources: dict[tuple[str, str], bool] = {}
        self._known_metrics: dict[str, bool] = {}

    def wanted(self, reading: Reading) -> list[str]:
        """Return the metrics of a reading that pass."""
        source = (reading.device, reading.stream)
        known = self._known_sources.get(source)
        if known is None:
            known = _matches(self._devices, source[0]) and _matches(self._streams, source[1])
            _remember(self._known_sources, source, matches=known)
        return [metric for metric in reading.metrics if self._wants(metric)] if known else []

    def _wants(self, metric: str) -> bool:
        known = self._known_metrics.get(metric)
        if known is None:
            known = _matches(self._metrics, metric)
            _remember(self._known_metrics, metric, matches=known)
        return known


class Conflation:
    """What waits for one dashboard: `take` what comes, `batch` it when it is due and the last was read."""

    __slots__ = ("_conflated", "_dropped", "_filter", "_kept", "_keys_max", "_next_s", "every_s")

    def __init__(self, subscription: Subscription, *, keys_max: int, now_s: float) -> None:
        assert keys_max > 0
        self._filter = Filter(subscription)
        self._keys_max = keys_max
        self._kept: dict[tuple[str, str, str], Kept] = {}
        self._conflated = 0
        self._dropped = 0
        self._next_s = now_s
        self.every_s = subscription.every_ms / 1000

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, reading: Reading) -> int:
        """Keep the values of a reading that pass the filter; return how many did.

        One that is older than what is kept is conflated at once: a dashboard goes back in time for nobody.
        """
        wanted = self._filter.wanted(reading)
        for metric in wanted:
            key = (reading.device, reading.stream, metric)
            kept = self._kept.get(key)
            if kept is None and len(self._kept) >= self._keys_max:
                self._dropped += 1
                continue
            if kept is not None:
                self._conflated += 1
                if reading.ts < kept.ts:
                    continue
            self._kept[key] = Kept(
                device=reading.device,
                stream=reading.stream,
                metric=metric,
                ts=reading.ts,
                value=reading.metrics[metric],
            )
        return len(wanted)

    def due_in_s(self, now_s: float) -> float | None:
        """Return how long until a batch may be sent, or None when there is nothing to send."""
        if not self._kept and not self._dropped:
            return None
        return max(0.0, self._next_s - now_s)

    def batch(self, now_s: float) -> Batch:
        """Return the values that waited longest, at most `VALUES_A_BATCH_MAX`; the others wait on."""
        keys = list(itertools.islice(self._kept, VALUES_A_BATCH_MAX))
        values = [self._kept.pop(key) for key in keys]
        batch = Batch(values=values, conflated=self._conflated, dropped=self._dropped)
        self._conflated = self._dropped = 0
        self._next_s = now_s + self.every_s
        return batch


def _compiled(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Return one expression for all patterns, or None where everything matches."""
    if "*" in patterns:
        return None
    return re.compile("|".join(f"(?:{fnmatch.translate(pattern)})" for pattern in patterns) or r"(?!)")


def _matches(pattern: re.Pattern[str] | None, name: str) -> bool:
    return pattern is None or pattern.match(name) is not None


def _remember(known: dict[KeyT, bool], key: KeyT, *, matches: bool) -> None:
    if len(known) >= REMEMBERED_MAX:
        known.clear()
    known[key] = matches
